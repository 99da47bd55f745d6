import io
import re
from dataclasses import replace
from typing import ClassVar
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from lrp_core.study.data import datasets
from lrp_core.study.data.datasets import Dataset, load_dataset, read_image
from lrp_core.study.data.splits import overlap, split_dataset


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
def test_calibration_and_test_images_share_no_image_and_no_block(seed):
    dataset = made_up()
    rows = split_dataset(dataset, seed, n_calibration=10, n_test=12, block=5)
    calibration, test = rows[rows["split"] == "calibration"], rows[rows["split"] == "test"]
    assert not set(calibration["index"]) & set(test["index"])
    blocks = dataset.positions.numpy() // 5
    assert not set(blocks[calibration["index"]]) & set(blocks[test["index"]])
    assert rows["index"].is_unique
    assert calibration["label"].value_counts().to_dict() == {0: 10, 1: 10, 2: 10}
    assert test["label"].value_counts().max() == 12
    assert (dataset.labels.numpy()[rows["index"]] == rows["label"]).all()
    together = replace(dataset, positions=dataset.positions // 5)  # one number for all that belong together
    assert split_dataset(together, seed, n_calibration=10, n_test=12, block=1).equals(rows)


def test_overlap_is_the_correlation_of_class_averaged_accuracies_of_two_draws():
    """By simulation: 100 test images each of classes of 200 and 800, which a classifier gets right at random."""
    rng, sizes, n_test, means = np.random.default_rng(0), (200, 800), 100, []
    for _ in range(3000):
        right = [rng.random(size) < 0.7 for size in sizes]
        means.append([np.mean([rng.permutation(of)[:n_test].mean() for of in right]) for _ in range(2)])
    labels, tested = (torch.arange(2).repeat_interleave(torch.tensor(counts)) for counts in (sizes, (n_test, n_test)))
    assert overlap(labels, tested) == pytest.approx((0.5 + 0.125) / 2)
    assert overlap(labels, torch.cat([tested, tested]), draws=2) == overlap(labels, tested)
    assert np.corrcoef(np.array(means).T)[0, 1] == pytest.approx(overlap(labels, tested), abs=0.05)


def test_unlabelled_images_are_of_the_calibration_side_and_change_nothing_else():
    dataset = made_up()
    rows, more = (split_dataset(dataset, 0, 10, 12, 5, n_unlabelled) for n_unlabelled in (0, 20))
    assert more.query("split != 'unlabelled'").reset_index(drop=True).equals(rows)
    unlabelled, test = more[more["split"] == "unlabelled"], more[more["split"] == "test"]
    assert (len(unlabelled), set(unlabelled["label"])) == (20, {-1})
    assert more["index"].is_unique
    assert not set(unlabelled["block"]) & set(test["block"])
    everything = split_dataset(dataset, 0, 10, 12, 5, 10_000)
    left = set(everything["block"]) - set(everything.query("split == 'test'")["block"])
    blocks = dataset.positions.numpy() // 5
    assert len(everything.query("split != 'test'")) == np.isin(blocks, list(left)).sum()
    with pytest.raises(ValueError, match="n_unlabelled must be 0 or more, got -1"):
        split_dataset(dataset, 0, 10, 12, 5, -1)


def test_seed_decides_the_split():
    dataset = made_up()
    first, again, other = (split_dataset(dataset, seed, 10, 12, 5) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_too_small_a_class_is_named():
    with pytest.raises(
        ValueError,
        match=r"too few images for 25 calibration .* of 'c': 20 and 20: "
        r"set calibration_per_class in params.yaml to 20 or",
    ):
        split_dataset(made_up(), 0, n_calibration=25, n_test=12, block=5)


def test_too_large_a_block_is_refused():
    with pytest.raises(ValueError, match="blocks of 1000 images leave fewer than two blocks"):
        split_dataset(made_up(), 0, 10, 12, block=1000)


def test_unknown_data_set_and_small_size_are_refused():
    with pytest.raises(
        ValueError, match=r"'elvp' is no folder of class folders, no CSV file, and no known .*\(elpv, CIF"
    ):
        load_dataset("elvp", 64)
    with pytest.raises(ValueError, match="image size 16 is too small"):
        load_dataset("elpv", 16)


def test_grey_image_becomes_rgb_of_the_right_size():
    file = io.BytesIO()
    Image.fromarray(np.full((30, 20), 77, dtype=np.uint8)).save(file, "PNG")
    pixels = read_image(io.BytesIO(file.getvalue()), "cell.png", 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.unique().tolist() == [77]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_broken_image_is_named(content):
    if content is None:  # a PNG that ends in the middle
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(file, "PNG")
        content = file.getvalue()[:700]
    with pytest.raises(ValueError, match=r"cannot decode the image cell0001.png: .*; replace or remove the file"):
        read_image(io.BytesIO(content), "cell0001.png", 32)


def test_elpv_is_what_its_authors_describe():
    dataset = load_dataset("elpv", 32)
    assert torch.bincount(dataset.labels).tolist() == [588, 313, 920, 402]
    assert dataset.class_names == ("mono functional", "mono defective", "poly functional", "poly defective")
    assert dataset.images.shape == (2223, 3, 32, 32)
    assert (dataset.positions.diff() > 0).all()


@pytest.fixture
def photos(tmp_path):
    """A folder as users have them: formats, modes, depths, sizes, orientation, unequal classes, other files."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(0, 255, shape, dtype=np.uint8)  # noqa: E731
    for name in ("cat", "dog/outdoors", "bird", ".thumbnails", "empty"):
        (tmp_path / name).mkdir(parents=True)
    Image.fromarray(draw(40, 50, 3)).save(tmp_path / "cat" / "a.jpg")
    Image.fromarray(draw(40, 50)).save(tmp_path / "cat" / "b.PNG")
    Image.fromarray(draw(33, 64, 4)).save(tmp_path / "cat" / "c.webp")
    Image.fromarray(draw(40, 40, 3)).convert("CMYK").save(tmp_path / "dog" / "outdoors" / "d.tif")
    Image.fromarray(draw(40, 40, 3)).quantize(16).save(tmp_path / "dog" / "e.gif")
    Image.fromarray(np.full((40, 40), 51 * 257, dtype=np.uint16)).save(tmp_path / "bird" / "f.png")  # 16 bits
    turned = np.zeros((32, 64, 3), dtype=np.uint8)
    turned[:, :32] = 200  # bright on the left, and by its EXIF data to be turned: bright above
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(turned).save(tmp_path / "bird" / "g.png", exif=exif)
    for file in ("cat/notes.txt", ".thumbnails/h.png", "cat/.i.png", "readme.md"):
        (tmp_path / file).write_bytes(b"no image")
    return tmp_path


def test_folder_of_class_folders(photos):
    dataset = load_dataset(str(photos), 32)
    assert dataset.class_names == ("bird", "cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert dataset.positions.tolist() == list(range(7))
    assert dataset.images.shape == (7, 3, 32, 32)
    assert dataset.images[0].unique().tolist() == [51]
    turned = dataset.images[1].float().mean(dim=0)
    assert turned[:12].min() > 150
    assert turned[20:].max() < 50
    grey = dataset.images[3]
    assert (grey[0] == grey[1]).all()


def test_broken_files_are_all_named_in_one_message(photos):
    (photos / "dog" / "j.jpg").write_bytes(b"")
    whole = (photos / "cat" / "a.jpg").read_bytes()
    (photos / "cat" / "k.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"2 of 9 images cannot be read; .*\n.*k\.jpg: .*truncated.*\n.*j\.jpg: "):
        load_dataset(str(photos), 32)


def test_a_folder_without_two_classes_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "cat" / "a.png")
    with pytest.raises(ValueError, match="needs a folder of images for each of two classes or more, found 1"):
        load_dataset(str(tmp_path), 32)


def test_csv_manifest(photos):
    manifest = photos / "list.csv"
    manifest.write_text("image, label, position\ncat/a.jpg, pet, 9\nbird/f.png, wild, 2\ndog/e.gif, pet, 3\n")
    dataset = load_dataset(str(manifest), 32)
    assert dataset.class_names == ("pet", "wild")
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.positions.tolist() == [9, 2, 3]
    folder = load_dataset(str(photos), 32)
    assert torch.equal(dataset.images, folder.images[[2, 0, 5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "has no column image; it has: file, label"),
        ("image,label\na.png,x\nb.png,\n", "no image or no label in line 3"),
        ("image,label\na.png,x\na.png,y\n", "lists images twice: a.png"),
        ("image,label\na.png,x\nb.png,x\n", "needs two classes or more in its column label, found 1"),
        ("image,label,position\na.png,x,0\nb.png,y,-1\n", "whole numbers of 0 or more in its column position"),
        ("image,label,position\na.png,x,0.5\nb.png,y,1\n", "whole numbers of 0 or more in its column position"),
        ("image,label\nnone.png,x\nb.png,y\n", r"2 of 2 images cannot be read; .*none\.png: .*No such file"),
    ],
)
def test_faulty_manifests_are_refused(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        load_dataset(str(tmp_path / "list.csv"), 32)


def test_torchvision_data_sets_by_name(monkeypatch):
    class CIFAR10:
        """Stands in for torchvision's: the same interface, without a download."""

        classes: ClassVar = ["plane", "car"]

        def __init__(self, root, download):
            assert download

        def __len__(self):
            return 3

        def __getitem__(self, i):
            if i == 3:
                raise IndexError
            return Image.new("RGB", (32, 32), (i, 0, 0)), i % 2

    monkeypatch.setattr(datasets.datasets, "CIFAR10", CIFAR10)
    dataset = load_dataset("CIFAR10", 48)
    assert dataset.class_names == ("plane", "car")
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.images[:, 0].amax(dim=(1, 2)).tolist() == [0, 1, 2]

    def offline(root, download):
        raise URLError("no route")

    monkeypatch.setattr(datasets.datasets, "MNIST", offline)
    with pytest.raises(ConnectionError, match=r"could not get MNIST into .*torchvision: .*no route"):
        load_dataset("MNIST", 48)
