"""Labelled images, and the split into scarce images and test images."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from lrp_core.errors import check_choice
from lrp_core.wheels import Wheel

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
        positions: int64, (N,), each image's place in the source's own order, in which neighbours resemble each other.
        class_names: one name a class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    class_names: tuple[str, ...]


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
                images.append(_read_image(file, path, size))
    return Dataset(
        images=torch.stack(images),
        labels=torch.from_numpy(pd.Categorical(names, class_names).codes.astype(np.int64)),
        positions=torch.tensor([int(re.search(r"\d+", path)[0]) - 1 for path in table["path"]]),
        class_names=class_names,
    )


_DATASETS: dict[str, Callable[[int], Dataset]] = {"elpv": _elpv}


def load_dataset(name: str, size: int) -> Dataset:
    """Read a data set, each image resized (antialiased, bilinear) to ``size`` x ``size`` pixels.

    Raises:
        ValueError: unknown name, a size below 32 (five poolings need 32 pixels), or an image that cannot be decoded.
        ConnectionError: the data are not at hand and cannot be fetched.
    """
    load = _DATASETS[check_choice("data set", name, _DATASETS)]
    if size < 32:
        raise ValueError(f"image size {size} is too small: five poolings need at least 32 pixels")
    return load(size)


def _read_image(file, name: str, size: int) -> torch.Tensor:
    """Return (3, size, size) uint8."""
    try:
        with Image.open(file) as image:
            pixels = transforms.pil_to_tensor(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"cannot decode the image {name}: {error}; replace or remove the file") from error
    return transforms.resize(pixels, [size, size], antialias=True)


def split_dataset(dataset: Dataset, seed: int, n_scarce: int, n_test: int, block: int) -> pd.DataFrame:
    """Draw scarce and test images from different blocks of neighbouring images.

    Images that stand next to each other may show the same thing (cells of one solar module, frames of one film), so
    blocks of ``block`` consecutive positions go to one side as a whole, with the classes balanced over the two sides.

    Args:
        dataset: the labelled images.
        seed: draws blocks and images; another seed gives another split.
        n_scarce: scarce images in each class, exactly.
        n_test: test images in each class, at most; a class with fewer on the test side gives all it has there.
        block: consecutive positions that stay together.

    Returns:
        One row an image that was drawn, sorted by index: index (into ``dataset``), label, block, split ("scarce" or
        "test").

    Raises:
        ValueError: a class has too few images on the scarce side, or none on the test side.
    """
    labels = dataset.labels.numpy()
    blocks = dataset.positions.numpy() // block
    if len(np.unique(blocks)) < 2:
        raise ValueError(f"blocks of {block} images leave fewer than two blocks to split; choose a smaller block")
    halves = StratifiedGroupKFold(n_splits=2, shuffle=True, random_state=seed)
    scarce_side, test_side = next(halves.split(labels, labels, blocks))
    rng = np.random.default_rng(seed)
    drawn = []
    for label, name in enumerate(dataset.class_names):
        scarce = scarce_side[labels[scarce_side] == label]
        test = test_side[labels[test_side] == label]
        if len(scarce) < n_scarce or len(test) == 0:
            raise ValueError(
                f"class {name!r} has {len(scarce)} images on the scarce side (needed: {n_scarce}) and {len(test)} on "
                f"the test side (needed: 1 or more) with seed {seed}; ask for fewer or label more"
            )
        for side, indices, n in (("scarce", scarce, n_scarce), ("test", test, min(n_test, len(test)))):
            chosen = rng.choice(indices, size=n, replace=False)
            drawn.append(pd.DataFrame({"index": chosen, "label": label, "block": blocks[chosen], "split": side}))
    return pd.concat(drawn).sort_values("index", ignore_index=True)
