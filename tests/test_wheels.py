import hashlib
import io
import tarfile
import zipfile

import pytest

from lrp_core.study.data.downloads import Wheel
from lrp_core.utils.files import atomic


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel whose download is a copy of a file made here; ``wheel.downloads`` counts."""
    source = tmp_path / "registry.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("package/data.txt", "content")
    made = Wheel("package", "1.0", "package-1.0-py3-none-any.whl", hashlib.sha256(source.read_bytes()).hexdigest())
    downloads = []

    def download(self, folder):
        downloads.append(folder)
        (folder / self.filename).write_bytes(source.read_bytes())

    monkeypatch.setattr(Wheel, "_download", download)
    return made, downloads, source, tmp_path / "cache"


def test_fetched_once(wheel):
    made, downloads, source, cache = wheel
    assert made.fetch(cache).read_bytes() == source.read_bytes()
    made.fetch(cache)
    assert len(downloads) == 1
    assert [path.name for path in cache.iterdir()] == [made.filename]  # nothing else is left behind


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-10], lambda content: b"x" + content[1:], lambda content: b""]
)
def test_damaged_file_is_fetched_again(wheel, damage, capsys):
    made, downloads, source, cache = wheel
    path = made.fetch(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert made.fetch(cache).read_bytes() == source.read_bytes()
    assert len(downloads) == 2
    assert "is damaged" in capsys.readouterr().err


def test_members_of_wheels_and_source_distributions_are_read_alike(tmp_path, monkeypatch):
    wheel, sdist = tmp_path / "package-1.0-py3-none-any.whl", tmp_path / "package-1.0.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/data.bin", bytes(range(256)))
    pack(sdist, {"package-1.0/package/data.bin": bytes(range(256)), "package-1.0/setup.py": b"raise SystemExit(1)"})
    for path, member in ((wheel, "package/data.bin"), (sdist, "package-1.0/package/data.bin")):
        monkeypatch.setattr(Wheel, "fetch", lambda made, path=path: path)
        made = Wheel("package", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        file = made.read(member)
        assert file.read(3) == bytes(range(3))
        file.seek(-1, 2)
        assert file.read() == b"\xff"
        with pytest.raises(KeyError, match=r"other\.bin"):
            made.read("package/other.bin")
    assert {path.name for path in tmp_path.iterdir()} == {wheel.name, sdist.name}  # nothing is unpacked


def test_wrong_file_from_the_registry_is_refused(wheel):
    made, _, source, cache = wheel
    source.write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=r"package==1.0: the registry's package-1.0-py3-none-any.whl has SHA-256 .*expected"
    ):
        made.fetch(cache)
    assert list(cache.iterdir()) == []


def pack(path, contents):
    """Write a source distribution."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that is all that pip knows."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


@pytest.mark.parametrize("good", [True, False])
def test_pip_itself_compares_the_hash(registry, tmp_path, good):
    path = registry / "some_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_package/data.txt", "content")
        about = "some_package-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made = Wheel("some-package", "1.0", path.name, digest if good else "0" * 64)
    if good:
        assert made.fetch(tmp_path / "cache").read_bytes() == path.read_bytes()
    else:
        with pytest.raises(ConnectionError, match=rf"pip said: [\s\S]*HASHES[\s\S]*Got +{digest}"):
            made.fetch(tmp_path / "cache")
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [path.name] * good


BACKEND = """
from pathlib import Path
Path({ran!r}).touch()

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    about = Path(folder, "some_package-1.0.dist-info")
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\\nName: some-package\\nVersion: 1.0")
    return about.name
"""


@pytest.mark.parametrize("good", [True, False])
def test_a_source_distribution_is_run_for_its_name_but_not_with_another_hash(registry, tmp_path, good):
    ran, path = tmp_path / "ran", registry / "some_package-1.0.tar.gz"
    contents = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]',
        "backend.py": BACKEND.format(ran=str(ran)),
        "PKG-INFO": "Metadata-Version: 1.0\nName: some-package\nVersion: 1.0\n",
    }
    pack(path, {f"some_package-1.0/{name}": content.encode() for name, content in contents.items()})
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if good else "0" * 64
    made = Wheel("some-package", "1.0", path.name, digest)
    if good:
        assert made.fetch(tmp_path / "cache").read_bytes() == path.read_bytes()
    else:
        with pytest.raises(ConnectionError, match=r"pip said: [\s\S]*HASHES"):
            made.fetch(tmp_path / "cache")
    assert ran.exists() == good
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [path.name] * good


def test_no_network_says_what_to_do(tmp_path, registry):
    made = Wheel("no-such-package", "1.0", "no_such_package-1.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(ConnectionError, match=r"could not download no-such-package==1.0: is there a network.*by hand"):
        made.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_half():
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
