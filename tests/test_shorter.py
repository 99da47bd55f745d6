"""Shorter networks through the one call: where they end, what they are, that no held-out image has a part in it."""

import pytest
import torch
from networks import settle
from torch import nn
from torch.nn import functional as F

import lrp_core
from lrp_core.control import early_exit
from lrp_core.control.budget_search import BudgetSearch
from lrp_core.control.descent import STEP
from lrp_core.graph.exits import own_end
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import classifier, truncated, up_to
from lrp_core.importance.registry import criterion
from lrp_core.metrics.accuracy import predict
from lrp_core.metrics.cost import multiply_adds
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.ridge_head import fit_heads, read_by


class Deep(nn.Module):
    """A residual block and a convolution more than a task of colours needs; flattened, with a head of two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.thin, self.last = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 10, 3, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(10 * 9, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.thin(F.relu(self.wide(x))))
        x = F.max_pool2d(F.relu(self.last(x)), 2)
        return self.head(F.relu(self.hidden(torch.flatten(x, 1))))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return settle(Deep())


@pytest.fixture(scope="module")
def samples():
    """Noise with a colour for each of three classes."""
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return noise + 0.4 * torch.eye(3)[labels][:, :, None, None], labels


def folds(labels: torch.Tensor) -> torch.Tensor:
    """As prune() draws them with seed 0, where every image is a group."""
    return draw_folds(labels, torch.arange(len(labels)).numpy(), 5, 0)


def prune(*args, **kwargs) -> lrp_core.Pruned:
    return lrp_core.prune(*args, progress=False, **kwargs)


def test_a_backbone_ends_where_pooling_and_flattening_begin(model):
    assert own_end(model) == "relu_3"  # that of the last convolution
    assert own_end(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())) == "1"


class TwoDepths(nn.Module):
    """A gate that flattens on the way, and a head that may read an earlier layer, too."""

    def __init__(self, both: bool):
        super().__init__()
        self.both, self.first, self.second = both, nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.gate, self.head = nn.Linear(6, 6), nn.Linear(32 if both else 8, 3)

    def forward(self, x):
        early = F.relu(self.first(x))
        gated = early * torch.sigmoid(self.gate(early.mean((2, 3))))[:, :, None, None]
        late = F.relu(self.second(gated)).mean((2, 3))
        return self.head(torch.cat([F.adaptive_avg_pool2d(gated, 2).flatten(1), late], dim=1) if self.both else late)


def test_a_gate_that_flattens_is_no_end():
    model = TwoDepths(both=False)
    assert "second" in {layer.name: layer.inputs for layer in trace(model)}[own_end(model)]


@pytest.mark.parametrize("method", ["early-exit+joint-cost", "budget-search"])
def test_a_head_that_reads_two_layers_has_no_one_end(samples, method):
    model = settle(TwoDepths(both=True))
    with pytest.raises(ValueError, match=r"several layers, which meet in 'cat'.* choose another method"):
        prune(model, *samples, method=method, multiply_adds=0.5, folds=0, head_fitted=False)


@pytest.mark.parametrize("method", ["early-exit", "early-exit+joint-cost+reconstruction", "early-exit+px-static"])
def test_it_ends_at_the_first_exit_that_is_as_good(samples, model, method):
    images, labels = samples
    found = early_exit.exits(up_to(model, own_end(model)), images, labels, folds(labels))
    own = (predict(model, images).argmax(dim=1) == labels).double()
    assert own.mean() < 0.6  # its own head was fitted to nothing
    expected = early_exit.earliest(found)
    budget = 1.2 * expected.multiply_adds / multiply_adds(model, images[:1])
    pruned = prune(model, images, labels, method=method, multiply_adds=budget, head_fitted=False, folds=0)
    assert pruned.truncation == expected.name != own_end(model)
    assert pruned.path[0].multiply_adds == 1
    largest = pruned._run.down.model(0)
    reference = classifier(up_to(model, expected.name), expected.heads.weight)
    assert torch.allclose(largest(images), reference(images), atol=1e-5)
    assert pruned.after.multiply_adds <= budget * pruned.before.multiply_adds
    if method == "early-exit":  # nothing else has gone; the head is scaled so that its softmax is probabilities
        assert pruned.after.multiply_adds == multiply_adds(reference, images[:1])
        scale = pruned.model.head.weight / reference.head.weight
        assert torch.allclose(scale, scale[0, 0].expand_as(scale), rtol=1e-3)


def test_it_keeps_its_own_end_where_no_exit_is_as_good():
    """Classes that differ in where a bright column stands: what pools cannot tell them apart, its own head can."""
    labels = torch.arange(60) % 3
    images = 0.1 * torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images[torch.arange(60), :, :, 4 * labels] += 1
    own = settle(Deep()).requires_grad_(True)
    optimiser = torch.optim.Adam(own.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(own(images), labels).backward()
        optimiser.step()
    own.requires_grad_(False)
    assert (own(images).argmax(dim=1) == labels).all()
    end, shorter = early_exit.end_early(own, images, labels, folds(labels), fitted=False)
    assert end == ""
    assert shorter is own


def test_exits_are_chosen_inside_the_folds(samples, model, monkeypatch):
    """Each fold's network, and the exits that it chooses among, come from the other images alone."""
    seen, images = [], samples[0]

    def watched(model, some, labels, fold, fitted):
        seen.append({int((images == image).flatten(1).all(dim=1).nonzero()) for image in some})
        return early_exit.end_early(model, some, labels, fold, fitted)

    monkeypatch.setattr("lrp_core.control.preparation.end_early", watched)
    pruned = prune(model, *samples, method="early-exit+px-static", multiply_adds=0.5, head_fitted=False, folds=4)
    *inside, every = seen
    assert every == set(range(60))
    assert [len(some) for some in inside] == [45] * 4
    assert set.union(*(every - some for some in inside)) == every
    assert pruned.estimate.images == 60


@pytest.mark.parametrize("fitted", [True, False])
def test_the_search_goes_through_the_call(samples, model, fitted):
    images, labels = samples
    backbone = up_to(model, own_end(model))
    score = criterion("lrp-abs", 3, 0)
    search = BudgetSearch(backbone, images, labels, folds(labels), score, ("filters", "exit", "block"))
    share = search.whole / multiply_adds(model, images[:1])
    limits = [0.85, *(STEP**i for i in range(1, 6))]
    steps = list(search.descend(limit / share for limit in limits))
    pruned = prune(model, images, labels, method="budget-search", multiply_adds=limits[-1], head_fitted=fitted, folds=0)
    made = [step for step in pruned.steps if step.action != "none"]
    assert [step.truncation for step in pruned.steps[:6]] == [step.truncation for step in steps]
    assert {step.action for step in made} > {"filters"} or len({step.truncation for step in made}) > 1
    for limit, step in zip(limits, steps, strict=True):
        selected = pruned.select(multiply_adds=limit)
        assert selected.truncation == step.truncation
        assert selected.after.multiply_adds <= limit * pruned.before.multiply_adds
        features = read_by(selected.model, "head", images)
        refitted = fit_heads(features, labels, folds(labels))
        scale = selected.model.head.weight / refitted.weight
        assert torch.allclose(scale, scale[0, 0].expand_as(scale), rtol=1e-2)  # its head is fitted to what is left


@pytest.mark.parametrize("method", ["early-exit", "early-exit+joint-cost+reconstruction", "budget-search"])
def test_what_is_saved_is_what_is_loaded(samples, model, tmp_path, method):
    pruned = prune(model, *samples, method=method, multiply_adds=0.3, head_fitted=False, folds=0)
    assert pruned.truncation is not None
    pruned.save(tmp_path / "small.safetensors")
    loaded = lrp_core.load_pruned(tmp_path / "small.safetensors", Deep)
    assert torch.equal(loaded(samples[0]), pruned.model(samples[0]))
    backbone = truncated(up_to(Deep(), own_end(model)), pruned.truncation)
    names = {name for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d)}
    assert set(pruned.kept) == {f"backbone.{name}" for name in names}


BAD = {
    "layers to ignore before a cut": ({"ignored_layers": ["last"]}, "takes no ignored_layers"),
    "multiples in a search": ({"method": "budget-search", "round_to": 8}, "with budget-search no round_to"),
    "a class without images": ({}, "each of its 3 classes needs images"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(samples, model, case):
    changes, message = BAD[case]
    images, labels = samples
    some = labels > 0 if "class" in case else labels >= 0
    with pytest.raises(ValueError, match=message):
        prune(model, images[some], labels[some], **{"method": "early-exit+px-static"} | changes)
