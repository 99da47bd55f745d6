"""Heads on intermediate features through the one call: what they read, how they are fitted, what is pruned."""

from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
from networks import settle
from sklearn.linear_model import Ridge
from test_image_size import Flattening, Residual, colours, folds
from torch import nn
from torch.nn import functional as F

import lrp_core
from lrp_core.control import intermediate_features
from lrp_core.control.intermediate_features import fit_on_intermediate
from lrp_core.graph.intermediate import intermediate_channels
from lrp_core.metrics.accuracy import predict
from lrp_core.repair.ridge_head import STRENGTHS, fit_heads, read_by
from lrp_core.study.show.export import write_exported

METHOD = "intermediate-features+joint-cost+reconstruction"
BOTH = f"smaller-images+{METHOD}"


class Deep(nn.Module):
    """Five convolutions one after the other; the last features are nearly the same for all images."""

    def __init__(self):
        super().__init__()
        sizes = (3, 6, 7, 8, 9, 5)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


def prune(*args, **kwargs) -> lrp_core.Pruned:
    defaults = {"method": METHOD, "multiply_adds": 0.5, "head_fitted": True, "folds": 0, "progress": False}
    return lrp_core.prune(*args, **defaults | kwargs)


@pytest.fixture(scope="module")
def frozen() -> nn.Module:
    """A random backbone, whose last layer knows little of the classes."""
    model, (images, labels) = settle(Deep()), colours()
    with torch.no_grad():
        model.convs[4].weight.mul_(1e-3)
    heads = fit_heads(read_by(model, "head", images), labels, folds(), bias=True)
    model.head.weight.copy_(heads.weight)
    model.head.bias.copy_(heads.bias)
    return model


def test_the_head_is_a_ridge_regression_on_scaled_features(frozen):
    images, labels = colours()
    (accuracy, _), model = fit_on_intermediate(frozen, images, labels, folds())
    # Exits are the inputs of the second to the fifth convolution, then the end; the middle one is the third's output.
    outputs, x = [], images
    with torch.no_grad():
        for conv in frozen.convs:
            x = F.relu(conv(x))
            outputs.append(x.mean((2, 3)).double().numpy())
    assert list(intermediate_channels(frozen, images[:1]).values()) == [8, 9]
    parts = [(part - part.mean(0), share) for part, share in zip(outputs[2:], (0.5, 0.5, 1), strict=True)]
    read = np.concatenate([part * (share / (part**2).sum(1).mean()) ** 0.5 for part, share in parts], axis=1)
    wanted, fold = np.eye(3)[labels] - 1 / 3, folds().numpy()
    norm = (read**2).sum(1).mean()

    def fitted(strength: float, seen: np.ndarray) -> Ridge:
        return Ridge(strength * norm).fit(read[seen], wanted[seen])

    held = {s: np.zeros_like(wanted) for s in STRENGTHS}
    for strength, k in ((s, k) for s in STRENGTHS for k in range(5)):
        held[strength][fold == k] = fitted(strength, fold != k).predict(read[fold == k])
    best = min(STRENGTHS, key=lambda s: ((held[s] - wanted) ** 2).sum())
    expected = fitted(best, fold >= 0).predict(read)
    assert np.allclose(predict(model, images).numpy(), expected, atol=1e-4)
    by_class = [(held[best].argmax(1) == labels.numpy())[labels == label].mean() for label in range(3)]
    assert accuracy == pytest.approx(np.mean(by_class))


def test_what_the_last_features_lost_is_found_in_earlier_ones():
    """The last convolution sees one channel, which says nothing; the colours are in the others."""
    model, (images, labels) = settle(Deep()), colours()
    with torch.no_grad():
        model.convs[4].weight.zero_()
    pruned = prune(model, images, labels, folds=4, multiply_adds=0.7)
    assert pruned.path[0].estimate.accuracy < 0.5
    assert pruned.estimate.accuracy > 0.9
    assert "reads features of earlier layers, too (2)" in str(pruned)
    plain = prune(model, images, labels, method="joint-cost+reconstruction", multiply_adds=0.7)
    assert plain.intermediate_features == ()
    assert (plain.model(images).argmax(1) == labels).float().mean() < 0.5


def test_heads_are_fitted_inside_the_folds(frozen, monkeypatch):
    seen, (images, labels) = [], colours()

    def watched(model, some, *others):
        seen.append({int((images == image).flatten(1).all(dim=1).nonzero()) for image in some})
        return intermediate_features.fit_on_intermediate(model, some, *others)

    monkeypatch.setattr("lrp_core.control.preparation.fit_on_intermediate", watched)
    pruned = prune(frozen, images, labels, folds=4)
    *inside, every = seen
    assert every == set(range(60))
    assert [len(some) for some in inside] == [45] * 4
    assert set.union(*(every - some for some in inside)) == every
    assert pruned.estimate.images == 60


@pytest.mark.parametrize("ends", [nn.Identity, lambda: nn.Softmax(dim=1)], ids=["logits", "softmax"])
@pytest.mark.parametrize("method", [METHOD, BOTH])
def test_what_is_saved_is_what_is_loaded(frozen, tmp_path, method, ends):
    images, labels = colours()
    pruned = prune(nn.Sequential(frozen, ends()).eval(), images, labels, method=method)
    assert (pruned.image_size is None) == (method == METHOD)
    assert pruned.after.multiply_adds <= 0.5 * pruned.before.multiply_adds
    pruned.save(tmp_path / "small.safetensors")
    loaded = lrp_core.load_pruned(tmp_path / "small.safetensors", lambda: nn.Sequential(Deep(), ends()))
    assert torch.equal(loaded(images), pruned.model(images))
    # The outputs are what they were: logits, whose softmax gives probabilities; or probabilities.
    probabilities = pruned.model(images) if ends is not nn.Identity else pruned.model(images).softmax(dim=1)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(60))
    assert F.nll_loss(probabilities.log(), labels) < np.log(3)


def test_half_precision_and_a_layer_without_a_signal():
    """Squares of features overflow in float16; a layer that is always zero counts for nothing."""
    model, (images, labels) = settle(Deep()), colours()
    with torch.no_grad():
        model.convs[2].weight.mul_(300)
        model.convs[2].bias.mul_(300)
        model.convs[3].weight.zero_()
        model.convs[3].bias.zero_()
    for dtype in (torch.float32, torch.float16):
        found, wider = fit_on_intermediate(model.to(dtype), images.to(dtype), labels, folds())
        scale = wider.head_on_intermediate.scale.weight
        assert (scale[:8] > 0).all()
        assert (scale[8:17] == 0).all()
        assert found[0] > 0.9
        assert predict(wider, images.to(dtype)).dtype == dtype


def test_features_may_be_small_in_half_precision():
    """Those of the last layer differ by 1e-6: their scale is beyond the largest float16."""
    model, (images, labels) = settle(Deep()), colours()
    with torch.no_grad():
        model.convs[4].weight.mul_(1e-5)
        model.convs[4].bias.mul_(1e-5)
    model, images = model.to(torch.float16), images.to(torch.float16)
    spread = read_by(model, "head", images).float().std(dim=0)
    assert 0 < spread.max() < 1 / torch.finfo(torch.float16).max
    (accuracy, _), wider = fit_on_intermediate(model, images, labels, folds())
    assert predict(wider, images).isfinite().all()
    assert (predict(wider, images).argmax(dim=1) == labels).float().mean() > 0.9
    assert accuracy > 0.9


def test_other_runtimes_compute_alike(frozen, tmp_path):
    images, labels = colours()
    pruned = prune(frozen, images, labels, method=BOTH).model
    write_exported(pruned, images[:2], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    exported = torch.export.load(tmp_path / "network.pt2").module()(images)
    for got in (torch.from_numpy(logits), exported):
        assert (got - pruned(images)).abs().max() <= 1e-4 * pruned(images).abs().max()


def test_filters_go_as_from_any_network(frozen):
    """Layers by name stay whole, others are kept in multiples of 4, and the given network is untouched."""
    images, labels = colours()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    pruned = prune(frozen, images, labels, ignored_layers=["convs.2"], round_to=4)
    sizes = {name: len(kept) for name, kept in pruned.kept.items()}
    assert sizes["convs.2"] == 8
    assert all(n % 4 == 0 or n == frozen.get_submodule(name).out_channels for name, n in sizes.items())
    assert sum(sizes.values()) < 6 + 7 + 8 + 9 + 5
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_last_layer_that_was_fitted_to_the_images_gets_such_a_successor_by_default(frozen):
    images, labels = colours()
    named, default = (prune(frozen, images, labels, method=name) for name in (BOTH, None))
    assert len(default.intermediate_features) == 2
    assert torch.equal(default.model(images), named.model(images))
    other = prune(frozen, images, labels, method=None, head_fitted=False)
    assert other.intermediate_features == ()


def test_two_images_of_a_class_are_too_few_to_judge_such_a_head(frozen):
    """A fold of the cross-validation would have one of them, which is either fitted to or judged by."""
    images, labels = (part[:6] for part in colours())
    default = prune(frozen, images, labels, method=None, folds=2)
    assert (default.image_size, default.intermediate_features) == (None, ())
    of_patients = prune(frozen, *colours(), method=None, groups=torch.arange(60) % 6)
    assert (of_patients.image_size, of_patients.intermediate_features) == (None, ())
    assert prune(frozen, *colours(), method=None, groups=torch.arange(60) % 9).intermediate_features


def test_a_network_that_has_it_already_keeps_it(frozen):
    images, labels = colours()
    for method, resized in ((METHOD, False), (BOTH, True)):
        once = prune(frozen, images, labels, method=method)
        assert (once.image_size is not None) == resized
        twice = prune(once.model, images, labels, method=None, multiply_adds=0.8)
        assert (twice.image_size, twice.intermediate_features) == (None, ())
        with pytest.raises(ValueError, match="reads intermediate features already"):
            prune(once.model, images, labels, method=METHOD)


@pytest.mark.parametrize(("lost", "size"), [(0.15, (11, 11)), (0.17, None)])
def test_images_become_smaller_within_two_standard_errors(frozen, monkeypatch, lost, size):
    def judged(model, images, *others):
        _, wider = fit_on_intermediate(model, images, *others)
        return (0.85 if images.shape[-1] == 16 else 0.85 - lost, 0.08), wider

    monkeypatch.setattr("lrp_core.control.preparation.fit_on_intermediate", judged)
    assert prune(frozen, *colours(), method=BOTH).image_size == size


def test_a_latency_that_no_size_reaches_is_told(frozen, monkeypatch):
    monkeypatch.setattr("lrp_core.api.latency", lambda *_, **__: 1.0)  # of the pruned ones
    with pytest.raises(ValueError, match=r"the fastest network of the path takes [\d.]+ times as long"):
        prune(frozen, *colours(), method=None, multiply_adds=None, latency=0.9)


def test_a_network_that_reads_one_size_gets_it_too():
    images, labels = colours()
    default = prune(settle(Flattening()), images, labels, method=None)
    assert (len(default.intermediate_features), default.image_size) == (1, None)


def test_by_parameters_it_comes_on_request_only(frozen):
    images, labels = colours()
    budget = {"multiply_adds": None, "parameters": 0.5}
    assert prune(frozen, images, labels, method=None, **budget).intermediate_features == ()
    by_parameters = prune(frozen, images, labels, **budget)
    assert len(by_parameters.intermediate_features) == 2
    assert by_parameters.after.parameters <= 0.5 * by_parameters.before.parameters


class OneConvolution(nn.Module):
    """Has no intermediate features."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def test_networks_that_flatten_their_maps_have_them_too():
    """What the last layer reads need not be averaged."""
    images, labels = colours()
    pruned = prune(settle(Flattening()), images, labels)
    assert len(pruned.intermediate_features) == 1
    assert pruned.model(images).shape == (60, 3)


class ConvolutionLast(nn.Module):
    """Averages the maps of its last convolution, as SqueezeNet does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.last(F.relu(self.second(F.relu(self.first(x))))).mean((2, 3))


BAD = {
    "one convolution": (OneConvolution, {}, "this network has none, so choose another method"),
    "no dense last layer": (ConvolutionLast, {"head_fitted": None}, "it has to be dense, and .* is a"),
    "a head on a head": (
        lambda: prune(settle(Deep()), *colours()).model,
        {},
        "reads intermediate features already: choose a method without",
    ),
    "a class without images": (Residual, {}, "each of its 3 classes needs images"),
    "several sites": (Residual, {"all_reduce": lambda tensor: tensor}, "without smaller-images, intermediate-features"),
    "an early exit": (
        Residual,
        {"method": "intermediate-features+early-exit+joint-cost"},
        "contradict each other: each fits its own head",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    build, changes, message = BAD[case]
    images, labels = colours()
    some = labels > 0 if case == "a class without images" else labels >= 0
    with pytest.raises(ValueError, match=message):
        prune(settle(build()), images[some], labels[some], **changes)
