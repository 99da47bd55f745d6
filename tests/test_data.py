import io

import numpy as np
import pytest
import torch
from PIL import Image

from lrp_core.data import Dataset, _read_image, load_dataset, split_dataset


def made_up(counts=(60, 90, 40), seed=0) -> Dataset:
    """Images of 1 pixel, classes in runs of 7 as in ELPV's modules."""
    rng = np.random.default_rng(seed)
    runs = np.concatenate([np.full(n // 7 + 1, label) for label, n in enumerate(counts)])
    labels = np.repeat(rng.permutation(runs), 7)
    kept = np.concatenate([np.flatnonzero(labels == label)[:n] for label, n in enumerate(counts)])
    kept.sort()
    n = len(kept)
    names = tuple("abc")
    return Dataset(
        torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.from_numpy(labels[kept]), torch.from_numpy(kept), names
    )


@pytest.mark.parametrize("seed", range(5))
def test_scarce_and_test_images_share_no_image_and_no_block(seed):
    dataset = made_up()
    rows = split_dataset(dataset, seed, n_scarce=10, n_test=12, block=5)
    scarce, test = rows[rows["split"] == "scarce"], rows[rows["split"] == "test"]
    assert not set(scarce["index"]) & set(test["index"])
    blocks = dataset.positions.numpy() // 5
    assert not set(blocks[scarce["index"]]) & set(blocks[test["index"]])
    assert rows["index"].is_unique
    assert scarce["label"].value_counts().to_dict() == {0: 10, 1: 10, 2: 10}
    assert test["label"].value_counts().max() == 12
    assert (dataset.labels.numpy()[rows["index"]] == rows["label"]).all()


def test_seed_decides_the_split():
    dataset = made_up()
    first, again, other = (split_dataset(dataset, seed, 10, 12, 5) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_too_small_a_class_is_named():
    with pytest.raises(
        ValueError, match=r"class 'c' has \d+ images on the scarce side \(needed: 25\) .* ask for fewer"
    ):
        split_dataset(made_up(), 0, n_scarce=25, n_test=12, block=5)


def test_too_large_a_block_is_refused():
    with pytest.raises(ValueError, match="blocks of 1000 images leave fewer than two blocks"):
        split_dataset(made_up(), 0, 10, 12, block=1000)


def test_unknown_data_set_and_small_size_are_refused():
    with pytest.raises(ValueError, match="unknown data set 'elvp'; choose one of: elpv"):
        load_dataset("elvp", 64)
    with pytest.raises(ValueError, match="image size 16 is too small"):
        load_dataset("elpv", 16)


def test_grey_image_becomes_rgb_of_the_right_size():
    file = io.BytesIO()
    Image.fromarray(np.full((30, 20), 77, dtype=np.uint8)).save(file, "PNG")
    pixels = _read_image(io.BytesIO(file.getvalue()), "cell.png", 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.unique().tolist() == [77]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_broken_image_is_named(content):
    if content is None:  # a PNG that ends in the middle
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(file, "PNG")
        content = file.getvalue()[:700]
    with pytest.raises(ValueError, match=r"cannot decode the image cell0001.png: .*; replace or remove the file"):
        _read_image(io.BytesIO(content), "cell0001.png", 32)


def test_elpv_is_what_its_authors_describe():
    dataset = load_dataset("elpv", 32)
    assert torch.bincount(dataset.labels).tolist() == [588, 313, 920, 402]
    assert dataset.class_names == ("mono functional", "mono defective", "poly functional", "poly defective")
    assert dataset.images.shape == (2223, 3, 32, 32)
    assert (dataset.positions.diff() > 0).all()
