"""The alternatives of benchmarks/, on a network each of whose filters has a twin: half of them can go without loss."""

from pathlib import Path
from types import SimpleNamespace

import few_images
import numpy as np
import pandas as pd
import promise
import published
import pytest
import real_size
import robustness
import torch
import training
from layer_by_layer import Readers, channel_sets, greedy_order, layer_by_layer
from networks import settle
from neuron_merging import neuron_merging
from tasks import Draw, Setup
from torch import nn

from lrp_core.api import FOLDS
from lrp_core.control.intermediate_features import fit_on_intermediate
from lrp_core.metrics.cost import multiply_adds
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.study.analysis.promise import CHOSEN, DISTILLED, INTERMEDIATE, OURS
from lrp_core.study.analysis.real_size import SMALLER, SMALLER_HALF, SMALLER_INTERMEDIATE
from lrp_core.study.paths import ROOT

WIDTHS, FACTOR = (8, 6), 0.1  # a twin is so many times its filter


def chain(first: int, second: int) -> nn.Module:
    layers = nn.Conv2d(3, first, 3), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return settle(nn.Sequential(*layers, nn.Flatten(), nn.Linear(second, 4))).double()


@pytest.fixture
def task():
    torch.manual_seed(0)
    model = chain(*WIDTHS)
    for layer in (model[0], model[2]):
        half = len(layer.weight) // 2
        layer.weight[half:], layer.bias[half:] = FACTOR * layer.weight[:half], FACTOR * layer.bias[:half]
    return model, torch.randn(40, 3, 10, 10, dtype=torch.float64)


def share_of_half(images: torch.Tensor) -> float:
    half, whole = (multiply_adds(chain(*widths), images[:1]) for widths in ([n // 2 for n in WIDTHS], WIDTHS))
    return half / whole


def lost(model: nn.Module, smaller: nn.Module, images: torch.Tensor) -> float:
    """Return the squared error of the logits, relative to their variance."""
    logits = model(images)
    return float((smaller(images) - logits).square().mean() / logits.var(dim=0).mean())


def test_merging_a_filter_with_its_multiple_loses_nothing(task):
    model, images = task
    ((share, smaller),) = neuron_merging(model, images[:1], [share_of_half(images)])
    assert share == share_of_half(images)
    assert lost(model, smaller, images) < 1e-15


def test_greedy_selection_takes_one_of_each_pair_first(task):
    model, images = task
    network = PrunedNetwork(model, images)
    sets = channel_sets(network.layers(network.model))
    fitted = Readers(network, images, sets)
    order = {name: groups for one in sets for name, groups in greedy_order(one, network.coupling, fitted).items()}
    for (name, groups), width, first in zip(order.items(), WIDTHS, (0, WIDTHS[0]), strict=True):
        half = width // 2
        assert sorted((groups[:half] - first) % half) == list(range(half)), name


@pytest.mark.parametrize("reconstructed", [False, True])
def test_least_squares_make_good_what_goes_with_the_twins(task, reconstructed):
    """All but the ridge's part."""
    model, images = task
    repair = Reconstruction(model, images) if reconstructed else None
    ((share, smaller),) = layer_by_layer(model, images, [share_of_half(images)], repair=repair)
    assert share == share_of_half(images)
    dropped = PrunedNetwork(model, images).without(np.array([4, 5, 6, 7, 11, 12, 13]))
    assert lost(model, dropped, images) > 100 * lost(model, smaller, images)
    assert lost(model, smaller, images) < 1e-3


def test_a_network_is_measured_before_it_is_distilled(monkeypatch):
    """Distillation changes the network in place."""
    model = chain(2, 1)

    def networks(method, one):
        for number, name in enumerate((OURS, DISTILLED)):
            model[0].bias.fill_(number)
            yield name, model

    monkeypatch.setattr(published, "networks", networks)
    monkeypatch.setattr(published, "draw", lambda *_, **__: SimpleNamespace(model=chain(2, 1)))
    monkeypatch.setattr(published, "measured", lambda model, _: {"test_accuracy": model[0].bias[0].item()})
    _, *rows = published.measured_rows("cifar10", "resnet56", 0, OURS, None)
    assert {row["method"]: row["test_accuracy"] for row in rows} == {OURS: 0, DISTILLED: 1}


def drawn(model: nn.Module | None, images: torch.Tensor, labels: torch.Tensor, pixels=None, prepare=None) -> Draw:
    """Return a draw whose test images are those for calibration."""
    return Draw(model, images, labels, images, labels, None, 0.1, pixels, prepare, lambda _: model, False)


def test_smaller_images_are_the_largest_within_a_limit(task):
    """Without padding, a side of n pixels leaves maps of n - 2 and n - 4; multiply-adds are counted by hand."""
    (model, _), images = task, torch.randn(40, 3, 20, 20, dtype=torch.float64)
    first, second = WIDTHS

    def cost(n: int) -> int:
        return 3 * first * 9 * (n - 2) ** 2 + first * second * 9 * (n - 4) ** 2 + second * 4

    one = drawn(model, images, torch.zeros(len(images)))
    for limit in (0.71, 0.5, 0.25):
        px = max(n for n in range(6, 20) if cost(n) <= limit * cost(20))
        share, found = real_size.smaller(one, limit)
        assert share == pytest.approx(cost(px) / cost(20))
        assert found.images.shape == found.test_images.shape == (len(images), 3, px, px)
    assert real_size.smaller(one, 0.9 * cost(6) / cost(20)) is None


def test_pruning_after_smaller_images_counts_from_the_large_ones(task):
    """The first row is the network on images that leave half; each limit that it is asked for is kept."""
    (model, _), images = task, torch.randn(40, 3, 20, 20, dtype=torch.float64)
    one = drawn(model, images, torch.arange(len(images)) % 4)
    first, *others = real_size.rows_of_smaller_images(SMALLER_HALF, one)
    share, found = real_size.smaller(one, 0.5)
    assert first["multiply_adds"] == share
    assert first["test_accuracy"] == real_size.measured(model, found)["test_accuracy"]
    assert [row["limit"] for row in others] == [limit for limit in real_size.LIMITS if limit < share]
    assert all(0.5 * row["limit"] < row["multiply_adds"] <= row["limit"] for row in others)
    alone = list(real_size.rows_of_smaller_images(SMALLER, one))
    assert all(row["multiply_adds"] <= row["limit"] for row in alone)
    assert [row["test_accuracy"] for row in alone if row["limit"] == 0.5] == [first["test_accuracy"]]


def test_a_head_on_intermediate_features_is_measured_with_each_image_size(task):
    """The first row is the unpruned network with such a head; each head is fitted to the images of its size."""
    (model, _), images = task, torch.randn(40, 3, 20, 20, dtype=torch.float64)
    one = drawn(model, images, torch.arange(len(images)) % 4)
    whole, *others = real_size.rows_of_smaller_images(SMALLER_INTERMEDIATE, one)
    fold = draw_folds(one.labels, np.arange(40), 5, 0)
    for row, found in ((whole, one), *((row, real_size.smaller(one, row["limit"])[1]) for row in others)):
        _, wider = fit_on_intermediate(model, found.images, one.labels, fold)
        assert row["test_accuracy"] == real_size.measured(wider, found)["test_accuracy"]
    assert whole["multiply_adds"] == 1
    assert len(others) > 2


def test_few_images_prune_by_each_method_to_each_size(task):
    model, images = task
    labels = torch.arange(len(images)) % 4
    one = drawn(model, images, labels)
    (whole, *others), cost = few_images.networks(one), multiply_adds(model, images[:1])
    assert whole == ("unpruned", 1.0, model, {})
    assert [limit for _, limit, *_ in others] == [*few_images.LIMITS] * 4
    assert len({method for method, *_ in others}) == 4
    assert [method for method, *_, estimate in others if estimate] == [CHOSEN] * 2
    for _, limit, smaller, _ in others:
        assert 0.5 * limit < multiply_adds(smaller, images[:1]) / cost <= limit


@pytest.mark.parametrize(
    ("benchmark", "columns"),
    [
        (real_size, ["method"]),
        (few_images, ["images"]),
        (robustness, []),
        (training, []),
    ],
)
def test_every_committed_row_is_of_a_part_that_the_benchmark_measures(benchmark, columns):
    rows = pd.read_csv(ROOT / "results" / "benchmarks" / f"{benchmark.__name__}.csv")
    committed = set(rows[["task", "network", "seed", *columns]].itertuples(index=False, name=None))
    assert committed <= set(benchmark.parts(rows["seed"].unique().tolist()))


class Bright(nn.Module):
    """Class 1 if the image is brighter than 0.5 on average."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, x):
        over = x.mean((1, 2, 3)) - self.level
        return torch.stack([-over, over], dim=1)


def test_robustness_measures_corrupted_images_as_the_network_reads_them(monkeypatch):
    """A grey of 60 of 255 is dark; 0.3 brighter, it is not. Noise, blur and JPEG leave means alone."""
    pixels = torch.tensor([60, 200], dtype=torch.uint8).repeat_interleave(5)[:, None, None, None].repeat(1, 3, 32, 32)
    images, labels = pixels.float() / 255, torch.arange(2).repeat_interleave(5)
    one = drawn(None, images, labels, pixels, lambda given: given.float() / 255)
    monkeypatch.setattr(robustness, "draw", lambda *_: one)
    monkeypatch.setattr(robustness, "networks", lambda one: [("unpruned", 1.0, Bright())])
    setup = Setup(Path(), Path(), Path(), torch.device("cpu"))
    rows = {row["images"]: row for row in robustness.measured_rows("elpv", "resnet20", 0, setup)}
    assert {kind: row["accuracy"] for kind, row in rows.items()} == {
        kind: 0.5 if kind == "brightness" else 1.0 for kind in ("clean", "noise", "blur", "brightness", "JPEG")
    }
    assert rows["brightness"]["harmonic_mean"] == 0


@pytest.fixture
def resized(task, monkeypatch):
    """A draw whose images may be of any size, as all answers are the same; one logit stands for accuracy.

    Returns:
        The draw; the same on half of the pixels; and the fraction of the multiply-adds that these take.
    """
    (model, _), images = task, torch.randn(40, 3, 20, 20, dtype=torch.float64)
    one = drawn(model, images, torch.arange(len(images)) % 4)

    def first_logit(model, one):
        return {"test_accuracy": model(one.test_images)[0, 0].item()}

    for module in (real_size, promise):
        monkeypatch.setattr(module, "measured", first_logit)
    small = one.at(14)
    return one, small, multiply_adds(model, small.images[:1]) / multiply_adds(model, images[:1])


def test_the_call_that_chooses_the_image_size_has_a_row_for_each_limit(resized):
    """Half of the pixels are less than 71 and 50 % of the multiply-adds: they answer for both."""
    one, small, share = resized
    rows = list(real_size.rows(CHOSEN, "vgg16", one))
    kept = [row for row in rows if row["limit"] > share]
    assert [row["limit"] for row in kept] == [0.71, 0.5]
    for row in kept:
        assert row["multiply_adds"] == pytest.approx(share)
        assert row["test_accuracy"] == pytest.approx(one.model(small.images)[0, 0].item())
    assert all(row["multiply_adds"] <= row["limit"] for row in rows)


def test_what_predicts_accuracy(resized):
    """The default does, of trained and of frozen networks; on images as given only what is quick."""
    one, _, _ = resized
    folds = {
        (method, network): [call.folds for call in real_size.calls(method, network)]
        for method in (INTERMEDIATE, CHOSEN, OURS, "px-static")
        for network in ("resnet20", "vgg16")
    }
    assert folds[INTERMEDIATE, "vgg16"] == [FOLDS] * 3
    assert folds[CHOSEN, "resnet20"] == folds[OURS, "resnet20"] == [FOLDS]
    assert folds[CHOSEN, "vgg16"] == folds[OURS, "vgg16"] == folds["px-static", "resnet20"] == [0]
    predicted = [row for row in real_size.rows(OURS, "resnet20", one) if "drop" in row]
    assert predicted
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in predicted)


def test_the_word_of_the_call_is_measured_on_the_network_that_resizes(resized, monkeypatch):
    """The path's first two networks are the unpruned one, on all pixels and on half of them."""
    one, small, share = resized
    monkeypatch.setattr(promise, "draw", lambda *_: one)
    rows = list(promise.measured_rows("elpv", "vgg16", 0, CHOSEN, None))
    assert [row["multiply_adds"] for row in rows[:2]] == pytest.approx([1, share])
    logits = [one.model(images)[0, 0].item() for images in (one.images, small.images)]
    assert [row["test_accuracy"] for row in rows[:2]] == pytest.approx(logits)
    assert {row["method"] for row in rows} == {CHOSEN}
