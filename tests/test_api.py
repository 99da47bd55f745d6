"""The one call, on classifiers with all kinds of heads; against filters removed in one go, and plain counting."""

import copy

import numpy as np
import pytest
import torch
from miniature import Miniature
from networks import settle
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import get_model

import lrp_core
from lrp_core.metrics.accuracy import harmonic_mean
from lrp_core.pruning.saving import load_pruned
from lrp_core.pruning.surgery import remove_filters
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.ridge_head import fit_heads
from lrp_core.repair.temperature import fit_scale
from lrp_core.study.runs.runner import run


def build(n_classes: int = 3, dense_head: bool = True) -> nn.Module:
    backbone = nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 40, 3), nn.ReLU()
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    head = (*pool, nn.Linear(40, n_classes)) if dense_head else (nn.Conv2d(40, n_classes, 1), *pool)
    return nn.Sequential(*backbone, *head)


@pytest.fixture(scope="module")
def samples():
    """Noise with a colour for each of three classes, hard enough that some images are got wrong."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(36) % 3
    return torch.randn(36, 3, 12, 12, generator=generator) + 0.2 * torch.eye(3)[labels][:, :, None, None], labels


def trained(samples, n_classes: int = 3, dense_head: bool = True) -> nn.Module:
    images, labels = samples
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(n_classes, dense_head)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(40):
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def model(samples):
    return trained(samples)


def prune(*args, **kwargs) -> lrp_core.Pruned:
    return lrp_core.prune(*args, progress=False, **kwargs)


def same_by_removal(model: nn.Module, pruned: lrp_core.Pruned, images: torch.Tensor) -> bool:
    """Tell whether a network is the given one without the filters that are not kept."""
    gone = {
        name: sorted(set(range(model.get_submodule(name).out_channels)) - set(kept))
        for name, kept in pruned.kept.items()
    }
    with torch.no_grad():
        expected = remove_filters(copy.deepcopy(model).eval(), gone, images[:1])(images)
        return torch.allclose(pruned.model(images), expected, rtol=1e-4, atol=1e-5)


HEADS = {  # of torchvision's networks, what is monitored
    "vgg11": "cross-fitted",  # dense layers over flattened positions, dropout
    "resnet18": "cross-fitted",
    "mobilenet_v2": "cross-fitted",
    "squeezenet1_1": "training",  # ends with a convolution
}


@pytest.mark.parametrize(("name", "monitored"), HEADS.items())
def test_torchvisions_networks_with_their_own_heads(name, monitored):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64, generator=generator), torch.arange(8) % 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settle(get_model(name, weights=None, num_classes=5))  # one class has no image
    pruned = prune(model, images, labels, method="px-static", pruning_ratio=0.3)
    assert pruned.monitored == monitored
    assert 0.3 <= pruned.pruning_ratio < 0.301
    assert pruned.after.filters == sum(map(len, pruned.kept.values())) < pruned.before.filters
    assert pruned.after.multiply_adds < pruned.before.multiply_adds
    assert same_by_removal(model, pruned, images)


def test_the_model_comes_back_as_it_was(samples):
    model = trained(samples).train()
    before = copy.deepcopy(model.state_dict())
    prune(model, *samples, pruning_ratio=0.5)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_loader_gives_what_tensors_give(samples, model):
    loader = DataLoader(TensorDataset(*samples), batch_size=10)
    one, other = prune(model, loader, pruning_ratio=0.6), prune(model, *samples, pruning_ratio=0.6)
    assert one.kept == other.kept
    assert torch.equal(one.model(samples[0]), other.model(samples[0]))


def accuracies(network: nn.Module, samples) -> np.ndarray:
    """Count, class by class."""
    predicted = network(samples[0]).argmax(dim=1)
    return np.array([(predicted[samples[1] == label] == label).float().mean().item() for label in samples[1].unique()])


@pytest.mark.parametrize("method", ["dynamic", "dynamic+reconstruction", "px-iterative"])
@pytest.mark.parametrize("max_accuracy_drop", [3.0, 20.0])
def test_it_stops_where_the_monitored_mean_has_fallen(samples, method, max_accuracy_drop):
    """A convolution as head: the training accuracy is monitored, and can be counted on what came out."""
    model = trained(samples, dense_head=False)
    pruned = prune(model, *samples, method=method, max_accuracy_drop=max_accuracy_drop)
    unpruned = harmonic_mean(accuracies(model, samples))
    assert pruned.monitored == "training"
    assert pruned.steps[0].before == pytest.approx(unpruned, abs=1e-6)
    watched = [step.after for step in pruned.steps]
    assert all(after >= unpruned - max_accuracy_drop / 100 - 1e-9 for after in watched)
    assert harmonic_mean(accuracies(pruned.model, samples)) == pytest.approx(watched[-1], abs=1e-6)
    assert pruned.pruning_ratio == pytest.approx(sum(len(step.removed) for step in pruned.steps) / 60)
    if method == "px-iterative":  # one step more would have been too many
        further = prune(model, *samples, method=method, pruning_ratio=pruned.pruning_ratio + 0.05)
        assert harmonic_mean(accuracies(further.model, samples)) < unpruned - max_accuracy_drop / 100


def test_a_larger_drop_lets_more_go(samples, model):
    rates = [
        prune(model, *samples, max_accuracy_drop=max_accuracy_drop).pruning_ratio
        for max_accuracy_drop in (0.0, 10.0, 40.0)
    ]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] <= 0.95


def test_classes_without_images_are_not_monitored(samples):
    model = trained(samples, n_classes=6)
    few = samples[1] != 1
    pruned = prune(model, samples[0][few], samples[1][few], pruning_ratio=0.5)
    assert all(step.accuracies.shape == (2,) for step in pruned.steps)
    assert pruned.model(samples[0]).shape == (36, 6)


def test_the_artifacts_runs_are_these(tmp_path):
    """One code: a run of the artifact takes away the same filters in the same order."""
    work = Miniature(tmp_path)
    calibration = work.samples(0, "calibration")
    for method in ("dynamic-training", "px-static", "taylor"):
        pruned = prune(work.classifier(0), calibration.images, calibration.labels, method=method, pruning_ratio=0.95)
        order = np.concatenate([step.removed for step in pruned.steps])
        assert (order == run(work, method, 0).orders[""][: len(order)]).all()  # they go on to 99 %


@pytest.mark.parametrize("method", ["px-static+refit", "dynamic+reconstruction+refit"])
def test_a_refitted_head_is_the_one_for_what_is_left(samples, model, method):
    images, labels = samples
    pruned = prune(model, images, labels, method=method, pruning_ratio=0.6)
    with torch.no_grad():
        features = pruned.model[:-1](images)
    heads = fit_heads(features, labels, draw_folds(labels, np.arange(36), 5, 0), bias=True)
    scale = fit_scale(heads.out_of_fold.judge(features), labels)
    torch.testing.assert_close(pruned.model[-1].weight, scale * heads.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pruned.model[-1].bias, scale * heads.bias, rtol=1e-4, atol=1e-5)


def test_softmax_of_a_refitted_head_is_probabilities(samples, model):
    """On images that nothing has seen, drawn as the others were; before, a regression's outputs were all alike."""
    images, labels = samples
    pruned = prune(model, images, labels, method="px-static+refit", pruning_ratio=0.6)
    generator = torch.Generator().manual_seed(1)
    true = torch.arange(600) % 3
    unseen = torch.randn(600, 3, 12, 12, generator=generator) + 0.2 * torch.eye(3)[true][:, :, None, None]
    with torch.no_grad():
        logits, features = pruned.model(unseen), pruned.model[:-1](images)
        heads = fit_heads(features, labels, draw_folds(labels, np.arange(36), 5, 0), bias=True)
        regression = F.linear(pruned.model[:-1](unseen), heads.weight, heads.bias)
    assert torch.equal(logits.argmax(dim=1), regression.argmax(dim=1))
    assert F.cross_entropy(logits, true) < F.cross_entropy(regression, true) - 0.05
    assert pruned.steps[0].before != pruned.steps[-1].after  # something was at stake


def test_a_head_is_refitted_whatever_accuracy_is_monitored(samples, model):
    pruned = prune(model, *samples, method="dynamic-training+refit", pruning_ratio=0.5)
    assert pruned.monitored == "training"
    assert not torch.equal(pruned.model[-1].bias, model[-1].bias)


@pytest.mark.parametrize("method", ["dynamic", "dynamic+reconstruction", "dynamic+refit"])
def test_what_is_saved_is_what_is_loaded(samples, model, tmp_path, method):
    pruned = prune(model, *samples, method=method, pruning_ratio=0.6)
    pruned.save(tmp_path / "net.safetensors")
    assert torch.equal(load_pruned(tmp_path / "net.safetensors", build)(samples[0]), pruned.model(samples[0]))


def test_two_calls_give_the_same(samples, model):
    one, other = (prune(model, *samples) for _ in range(2))
    assert one.kept == other.kept
    assert torch.equal(one.model(samples[0]), other.model(samples[0]))


IMAGES, LABELS = torch.zeros(6, 3, 12, 12), torch.arange(6) % 3
BAD = {
    "no labels": ({"labels": None}, "images come without labels"),
    "an empty loader": ({"images": [], "labels": None}, "must yield pairs of images"),
    "a loader of images alone": ({"images": [IMAGES], "labels": None}, "must yield pairs of images"),
    "bytes": ({"images": IMAGES.byte()}, r"a float tensor \(N, C, H, W\).*got torch.uint8 \(6, 3, 12, 12\)"),
    "one image": ({"images": IMAGES[0]}, r"got torch.float32 \(3, 12, 12\)"),
    "too few labels": ({"labels": LABELS[:5]}, r"6 images need as many integer labels \(N,\), got torch.int64 \(5,\)"),
    "labels that are no classes": ({"labels": LABELS.float()}, "integer labels"),
    "pixels that are no numbers": ({"images": IMAGES / 0}, "not finite numbers"),
    "a class too many": ({"labels": LABELS + 1}, r"labels must lie in 0\.\.2, got 1\.\.3"),
    "one class": ({"labels": LABELS * 0}, "two classes or more are needed, .* got class 0: 6"),
    "one image of a class": ({"labels": torch.tensor([0, 0, 0, 1, 1, 2])}, "got class 0: 3, class 1: 2, class 2: 1"),
    "a ratio of all": ({"pruning_ratio": 1.0}, r"pruning_ratio must lie between 0 and 1, got 1\.0"),
    "a ratio that is a percentage": ({"pruning_ratio": 50}, "pruning_ratio must lie between 0 and 1, got 50"),
    "a drop below 0": ({"max_accuracy_drop": -1}, r"max_accuracy_drop must lie in \[0, 100\), got -1"),
    "a method misspelt": ({"method": "dynamics"}, "unknown method 'dynamics'; choose one of"),
    "more than can be removed": (
        {"pruning_ratio": 0.99},
        r"60 filters in 2 layers cannot lose 99\.0%.*can be removed is 96\.7%",
    ),
    "no class known": (
        {},
        "a class is never right, so there is nothing to monitor; give more images, or a pruning_ratio",
    ),
    "a layer unknown": ({"model": nn.Sequential(build(), nn.GELU())}, "unsupported kind GELU"),
    "a backbone to end earlier": (
        {"method": "early-exit+dynamic+refit"},
        "'early-exit.dynamic.refit' is a method of the study.*lrp_core.graph.truncation",
    ),
    "an early exit alone": ({"method": "early-exit"}, "'early-exit' is a method of the study"),
    "a search over budgets": ({"method": "budget-search"}, "'budget-search' is a method of the study"),
    "a head to refit that is a convolution": (
        {"model": build(dense_head=False), "method": "dynamic+refit"},
        "'dynamic.refit' fits the last layer anew: it has to be dense, and each of its 3 classes needs images",
    ),
    "a class without images for a new head": ({"model": build(4), "method": "dynamic+refit"}, "of its 4 classes needs"),
    "one output": ({"model": build(1)}, r"logits \(N, K\) for K classes, two or more; for one image \(1, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(model, case):
    changes, message = BAD[case]
    arguments = {"model": model, "images": IMAGES, "labels": LABELS} | changes
    with pytest.raises(ValueError, match=message):
        prune(arguments.pop("model"), arguments.pop("images"), arguments.pop("labels"), **arguments)
