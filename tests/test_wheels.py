import hashlib
import zipfile

import pytest

from lrp_core.files import atomic
from lrp_core.study.wheels import Wheel


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


def test_wrong_file_from_the_registry_is_refused(wheel):
    made, _, source, cache = wheel
    source.write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=r"package==1.0: the registry's package-1.0-py3-none-any.whl has SHA-256 .*expected"
    ):
        made.fetch(cache)
    assert list(cache.iterdir()) == []


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
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
