"""Labelled images: ELPV, torchvision's data sets, folders of class folders, lists of files."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from lrp_core.study.data.downloads import Wheel
from lrp_core.study.data.files import write_csv, write_tensors
from lrp_core.study.paths import ROOT

ELPV_WHEEL = Wheel(
    package="elpv-dataset",
    version="1.0.0.post1",
    filename="elpv_dataset-1.0.0.post1-py3-none-any.whl",
    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)


@dataclass(frozen=True)
class Dataset:
    """Images with class labels.

    Attributes:
        images: uint8, RGB, (N, 3, size, size).
        labels: int64, (N,), indices into ``class_names``.
        positions: int64, (N,), each image's position in the source's own order, where neighbours resemble each other.
        class_names: one name per class.
        block: how many consecutive positions resemble each other, as far as is known.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    class_names: tuple[str, ...]
    block: int = 1


def _elpv(size: int) -> Dataset:
    """Solar cells in electroluminescence (Deitsch et al. 2019): mono- or polycrystalline, functional or defective.

    The 401 cells whose defect the experts were unsure of (probability 1/3 or 2/3) are left out.
    """
    folder = "elpv_dataset/data"
    table = pd.read_csv(
        ELPV_WHEEL.read(f"{folder}/labels.csv"), sep=r"\s+", names=["path", "probability", "type"], engine="python"
    )
    table = table[table["probability"].isin([0.0, 1.0])]
    class_names = ("mono functional", "mono defective", "poly functional", "poly defective")
    names = table["type"] + np.where(table["probability"] > 0, " defective", " functional")
    images = []
    with ELPV_WHEEL.open() as archive:
        for path in tqdm(table["path"], desc="reading ELPV", unit="image"):
            with archive.open(f"{folder}/{path}") as file:
                images.append(read_image(file, path, size))
    return Dataset(
        images=torch.stack(images),
        labels=torch.from_numpy(pd.Categorical(names, class_names).codes.astype(np.int64)),
        positions=torch.tensor([int(re.search(r"\d+", path)[0]) - 1 for path in table["path"]]),
        class_names=class_names,
        block=32,  # half a module or so
    )


def _folder(path: Path, size: int) -> Dataset:
    """Images in class folders, at any depth in them, in the order of their names."""
    suffixes = Image.registered_extensions()
    files = [
        [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in suffixes and not _hidden(file, path)]
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not _hidden(folder, path)
    ]
    files = [paths for paths in files if paths]
    if len(files) < 2:
        raise ValueError(f"{path} needs a folder of images for each of two classes or more, found {len(files)}")
    names = tuple(paths[0].relative_to(path).parts[0] for paths in files)
    labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files])
    return _read_all([file for paths in files for file in paths], labels, np.arange(len(labels)), names, size)


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _manifest(path: Path, size: int) -> Dataset:
    """Images that a CSV file lists: columns image (a path from the CSV's folder), label, and, if known, position."""
    table = pd.read_csv(path, dtype={"image": str, "label": str}, skipinitialspace=True)
    if missing := {"image", "label"} - set(table):
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; it has: {', '.join(table)}")
    if empty := (table[["image", "label"]].isna().any(axis=1).to_numpy().nonzero()[0] + 2).tolist():
        raise ValueError(f"{path} has no image or no label in line {', '.join(map(str, empty[:10]))}")
    if twice := table["image"][table["image"].duplicated()].unique().tolist():
        raise ValueError(f"{path} lists images twice: {', '.join(twice[:10])}")
    names = tuple(sorted(table["label"].unique()))
    if len(names) < 2:
        raise ValueError(f"{path} needs two classes or more in its column label, found {len(names)}")
    labels = pd.Categorical(table["label"], names).codes
    positions = table["position"].to_numpy() if "position" in table else np.arange(len(table))
    if not np.issubdtype(positions.dtype, np.integer) or positions.min() < 0:
        raise ValueError(f"{path} needs whole numbers of 0 or more in its column position")
    return _read_all([path.parent / image for image in table["image"]], labels, positions, names, size)


def _read_all(
    files: list[Path], labels: np.ndarray, positions: np.ndarray, class_names: tuple[str, ...], size: int
) -> Dataset:
    """Read image files; all that cannot be read are named in one error."""
    images, broken = [], []
    for file in tqdm(files, desc="reading images", unit="image"):
        try:
            images.append(read_image(file, str(file), size))
        except ValueError as error:
            broken.append(f"\n  {file}: {error.__cause__}")
    if broken:
        more = f"\n  and {len(broken) - 20} more" if len(broken) > 20 else ""
        raise ValueError(
            f"{len(broken)} of {len(files)} images cannot be read; replace or remove them:{''.join(broken[:20])}{more}"
        )
    return Dataset(
        torch.stack(images),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(positions.astype(np.int64)),
        class_names,
    )


def _torchvision(name: str, size: int) -> Dataset:
    """Read the training images of a data set of torchvision's, which it keeps under data/ or downloads."""
    folder = ROOT / "data" / "torchvision"
    try:
        source = getattr(datasets, name)(folder, download=True)
    except (OSError, RuntimeError) as error:  # no network, or a file that is not what torchvision expects
        raise ConnectionError(f"could not get {name} into {folder}: {error}") from error
    pairs = tqdm(source, desc=f"reading {name}", unit="image", total=len(source))
    images, labels = zip(*((_resized(image, size), label) for image, label in pairs), strict=True)
    labels = torch.tensor(labels)
    return Dataset(torch.stack(images), labels, torch.arange(len(labels)), tuple(map(str, source.classes)))


_TORCHVISION = ("CIFAR10", "CIFAR100", "EuroSAT", "FashionMNIST", "KMNIST", "MNIST", "OxfordIIITPet", "STL10")
_DATASETS: dict[str, Callable[[int], Dataset]] = {"elpv": _elpv} | {
    name: partial(_torchvision, name) for name in _TORCHVISION
}


def load_dataset(name: str, size: int) -> Dataset:
    """Read a data set, each image resized (antialiased, bilinear) to ``size`` x ``size`` pixels.

    Args:
        name: "elpv"; a name of torchvision's, downloaded if need be; a folder of class folders; or a CSV file with the
            columns image (a path from the CSV's folder), label, and, if images are not listed in an order in which
            neighbours resemble each other, position. Paths are taken from the repository root.
        size: pixels a side.

    Raises:
        ValueError: unknown name, a size below 32 (five poolings need 32 pixels), images that cannot be decoded (all are
            named), or fewer than two classes.
        ConnectionError: the data are not at hand and cannot be fetched.
    """
    if size < 32:
        raise ValueError(f"image size {size} is too small: five poolings need at least 32 pixels")
    if name in _DATASETS:
        return _DATASETS[name](size)
    path = ROOT / Path(name).expanduser()
    if path.is_dir():
        return _folder(path, size)
    if path.is_file() and path.suffix == ".csv":
        return _manifest(path, size)
    raise ValueError(
        f"{name!r} is no folder of class folders, no CSV file, and no known data set ({', '.join(_DATASETS)})"
    )


def read_image(file: str | Path | BinaryIO, name: str, size: int) -> torch.Tensor:
    """Return an image as RGB pixels, (3, size, size), uint8, turned as its EXIF data say.

    Args:
        file: a path, or an open file.
        name: what messages call it.
        size: of each side, in pixels.

    Raises:
        ValueError: the image cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            return _resized(ImageOps.exif_transpose(image), size)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot decode the image {name}: {error}; replace or remove the file") from error


def _resized(image: Image.Image, size: int) -> torch.Tensor:
    if image.mode.startswith("I;16"):  # of which Pillow would keep the lowest 8 bits only, saturated
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return transforms.resize(transforms.pil_to_tensor(image.convert("RGB")), [size, size], antialias=True)


def write_dataset(workspace: Path, dataset: Dataset, splits: pd.DataFrame, name: str) -> None:
    """Write dataset/images.safetensors and dataset/splits.csv (the rows of all seeds) into a workspace."""
    tensors = {"images": dataset.images, "labels": dataset.labels, "positions": dataset.positions}
    # One entry of metadata: safetensors writes several in a random order, and the file's bytes would differ.
    description = json.dumps({"name": name, "classes": dataset.class_names})
    write_tensors(workspace / "dataset" / "images.safetensors", tensors, {"dataset": description})
    write_csv(workspace / "dataset" / "splits.csv", splits)
