"""The draws of benchmarks/: a network that was trained on half of the images is drawn for on the other half."""

from dataclasses import replace
from pathlib import Path

import pytest
import tasks
import torch
from PIL import Image
from safetensors.torch import save_file
from tasks import FINE_TUNED, FINE_TUNED_FILE, Setup, Task, cifar10_halves, draw
from torch import nn

from lrp_core.graph.truncation import classifier

PER_CLASS = 12


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """Two classes of images that are all of one colour, which counts them."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(PER_CLASS):
            colour = 100 * label + number
            Image.new("RGB", (32, 32), (colour,) * 3).save(tmp_path / name / f"{number:02}.png")
    monkeypatch.setattr(tasks, "FINE_TUNED_TASK", Task(32, 2, 1, 3))
    monkeypatch.setattr(tasks, "load_backbone", lambda *_: nn.Conv2d(3, 4, 1))
    monkeypatch.setattr(tasks, "normalise", lambda pixels, *_: pixels.float())
    return Setup(tmp_path, Path(), tmp_path, torch.device("cpu"))


def colours(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].long().tolist()


def test_halves_share_no_image_and_have_as_many_of_each_class(setup):
    seen, unseen = cifar10_halves(setup)
    assert colours(seen.images) == [*range(6), *range(100, 106)]
    assert colours(unseen.images) == [*range(6, 12), *range(106, 112)]
    assert seen.labels.tolist() == unseen.labels.tolist() == [0] * 6 + [1] * 6


def test_images_are_drawn_that_the_network_was_not_trained_on(setup):
    saved = classifier(nn.Conv2d(3, 4, 1), torch.randn(2, 4))
    save_file(saved.state_dict(), setup.weights / FINE_TUNED_FILE)
    one = draw("cifar10", FINE_TUNED, 0, setup)
    drawn = colours(torch.cat([one.images, one.test_images]))
    assert [len(one.images), len(one.test_images), len(set(drawn))] == [4, 6, 10]
    assert all(colour % 100 >= 6 for colour in drawn)
    assert torch.equal(one.model(one.images), saved(one.images))
    assert not one.head_fitted
    assert one.overlap == 0.5  # three of the six images of a class that were not trained on


def test_smaller_images_are_means_of_pixels_and_a_frozen_backbone_gets_a_head_for_them(setup, monkeypatch):
    """At half the side a triangle 4 pixels wide weighs pixels by 1, 3, 3, 1; the head's ridge fit is its own test."""
    monkeypatch.setitem(tasks.FROZEN, "squeezenet1_1", "imagenet-caffe")
    fitted = []
    monkeypatch.setattr(tasks, "pooled_features", lambda _, images: fitted.append(images) or images.mean(dim=(2, 3)))
    whole = draw("cifar10", "squeezenet1_1", 0, setup, {"cifar10": Task(32, 6, 1, 3)})
    assert whole.head_fitted
    columns = torch.arange(32.0).square().expand(12, 3, 32, 32)
    small = replace(whole, images=columns, test_images=columns[:, :, :, :16]).at(16)
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    by_hand = torch.arange(1.0, 32.0).square().unfold(0, 4, 2) @ weights
    torch.testing.assert_close(small.images[:, :, :, 1:-1], by_hand.expand(12, 3, 16, 14).contiguous())
    assert small.test_images.shape[2:] == (16, 16)
    assert [len(images) for images in fitted] == [12, 12]
    assert fitted[1] is small.images


def test_weights_that_are_not_there_or_not_the_published_ones_are_refused(setup):
    with pytest.raises(FileNotFoundError, match=r"squeezenet1_1-cifar10\.safetensors: python benchmarks/fine_tune\.py"):
        draw("cifar10", FINE_TUNED, 0, setup)
    path = setup.weights / tasks.TRAINED["resnet20"].file
    with pytest.raises(FileNotFoundError, match=r"download it from github\.com/akamaster/pytorch_resnet_cifar10"):
        tasks._cifar_resnet(tasks.TRAINED["resnet20"], setup.weights)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match="expected one that begins with 12fca82f"):
        tasks._cifar_resnet(tasks.TRAINED["resnet20"], setup.weights)
