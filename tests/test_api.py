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
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

import lrp_core
from lrp_core import api
from lrp_core.control.descent import Descent
from lrp_core.control.methods import Method
from lrp_core.importance.criterion import Scores
from lrp_core.metrics.accuracy import harmonic_mean
from lrp_core.pruning.saving import load_pruned
from lrp_core.pruning.surgery import remove_filters
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.ridge_head import fit_heads
from lrp_core.repair.temperature import fit_scale
from lrp_core.study.runs.runner import run
from lrp_core.utils.sites import single_site


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


FULL_SIZE = "joint-cost+reconstruction"  # the default but for smaller images


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


class Residual(nn.Module):
    """Convolutions with batch normalisation and without biases, of which two meet in a sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 18, 3, padding=1, bias=False), nn.BatchNorm2d(18)
        self.wide, self.thin = nn.Conv2d(18, 22, 3, padding=1, bias=False), nn.Conv2d(22, 18, 1, bias=False)
        self.last, self.head = nn.Conv2d(18, 21, 3, bias=False), nn.Linear(21, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.thin(F.relu(self.wide(x)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    return settle(Residual())


@pytest.fixture(scope="module")
def pruned(samples, model) -> lrp_core.Pruned:
    """By the default on images of the given size, with estimates."""
    return prune(model, *samples, method=FULL_SIZE, multiply_adds=0.5)


def accuracies(network: nn.Module, samples) -> np.ndarray:
    """Count, class by class."""
    predicted = network(samples[0]).argmax(dim=1)
    return np.array([(predicted[samples[1] == label] == label).float().mean().item() for label in samples[1].unique()])


HEADS = {  # of torchvision's networks
    "vgg11": "dense layers over flattened positions, dropout",
    "resnet18": "one dense layer",
    "mobilenet_v2": "dropout and a dense layer",
    "squeezenet1_1": "a convolution",
}


@pytest.mark.parametrize("name", HEADS)
def test_torchvisions_networks_with_their_own_heads(name):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64, generator=generator), torch.arange(8) % 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_model(name, weights=None, num_classes=5)  # one class has no image
        if name == "vgg11":  # 100 million weights less
            model.classifier[0], model.classifier[3] = nn.Linear(25088, 64), nn.Linear(64, 64)
            model.classifier[6] = nn.Linear(64, 5)
    settle(model)
    pruned = prune(model, images, labels, method="px-static", pruning_ratio=0.3, folds=0)
    assert 0.3 <= pruned.pruning_ratio < 0.301
    assert pruned.after.filters == sum(map(len, pruned.kept.values())) < pruned.before.filters
    assert pruned.after.multiply_adds < pruned.before.multiply_adds
    assert pruned.estimate is None
    assert same_by_removal(model, pruned, images)


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "dynamic+refit"])
def test_the_model_comes_back_as_it_was(samples, method):
    model = trained(samples).train()
    before = copy.deepcopy(model.state_dict())
    prune(model, *samples, method=method, pruning_ratio=0.5, folds=2)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_comes_out_is_frozen_and_can_be_trained_on(pruned, samples):
    model = copy.deepcopy(pruned.model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    F.cross_entropy(model.requires_grad_(True)(samples[0]), samples[1]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_loader_gives_what_tensors_give(samples, model, pruned):
    loader = DataLoader(TensorDataset(*samples), batch_size=10)
    one = prune(model, loader, method=FULL_SIZE, multiply_adds=0.5)
    assert one.kept == pruned.kept
    assert one.estimate == pruned.estimate
    assert torch.equal(one.model(samples[0]), pruned.model(samples[0]))


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "random+reconstruction", "dynamic+refit"])
def test_two_calls_give_the_same(samples, model, method):
    one = prune(model, *samples, method=method, multiply_adds=0.3, seed=3, folds=2)
    torch.rand(7)  # draws of others do not matter
    other = prune(model, *samples, method=method, multiply_adds=0.3, seed=3, folds=2)
    assert one.kept == other.kept
    assert one.estimate == other.estimate
    assert torch.equal(one.model(samples[0]), other.model(samples[0]))


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "dynamic", "px-static+refit"])
def test_what_is_saved_is_what_is_loaded(samples, model, tmp_path, method):
    pruned = prune(model, *samples, method=method, pruning_ratio=0.6, folds=0)
    pruned.save(tmp_path / "net.safetensors")
    assert torch.equal(load_pruned(tmp_path / "net.safetensors", build)(samples[0]), pruned.model(samples[0]))


def test_biases_that_reconstruction_adds_are_saved(samples, residual, tmp_path):
    options = {"method": FULL_SIZE, "multiply_adds": 0.4, "folds": 0, "round_to": 4, "ignored_layers": ["last"]}
    pruned = prune(residual, *samples, **options)
    assert pruned.model.last.bias is not None
    pruned.save(tmp_path / "net.safetensors")
    assert torch.equal(load_pruned(tmp_path / "net.safetensors", Residual)(samples[0]), pruned.model(samples[0]))


# Budgets


def left(name: str, model: nn.Module, images: torch.Tensor) -> int:
    """Count what a network has, or for a pruning ratio what it has of filters."""
    if name == "multiply_adds":
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images[:1])
        return counter.get_total_flops()
    if name == "parameters":
        return sum(parameter.numel() for parameter in model.parameters())
    return sum(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "px-static"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("multiply_adds", 0.85),
        ("multiply_adds", 0.22),
        ("multiply_adds", 0.008),
        ("parameters", 0.6),
        ("parameters", 0.1),
        ("pruning_ratio", 0.4),
        ("pruning_ratio", 0.9),
    ],
)
def test_a_budget_is_kept_and_one_filter_more_would_break_it(samples, model, method, name, value):
    pruned, images = prune(model, *samples, method=method, folds=0, **{name: value}), samples[0]
    most = (1 - value if name == "pruning_ratio" else value) * left(name, model, images)
    removed = 60 - left("pruning_ratio", pruned.model, images)  # no two filters are coupled
    assert left(name, pruned.model, images) <= most + 1e-9
    assert left(name, pruned._run.down.model(removed - 1), images) > most + 1e-9
    assert torch.equal(pruned._run.down.model(removed)(images), pruned.model(images))
    assert pruned.pruning_ratio == pytest.approx(removed / 60)
    assert (pruned.after.multiply_adds, pruned.after.parameters, pruned.after.filters) == (
        left("multiply_adds", pruned.model, images) // 2,
        left("parameters", pruned.model, images),
        60 - removed,
    )


class Branches(nn.Module):
    """Two convolutions side by side: a filter of the first has half of the weights, at 144 positions instead of one."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 4), nn.Linear(24, 3)

    def forward(self, x):
        both = F.relu(self.wide(x)).mean((2, 3)), F.relu(self.narrow(F.adaptive_avg_pool2d(x, 4))).flatten(1)
        return self.head(torch.cat(both, dim=1))


def test_a_budget_of_parameters_weighs_harm_by_parameters(samples):
    images, labels = samples
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Branches().eval()
    by_parameters = prune(model, images, labels, parameters=0.6, folds=0)
    by_multiply_adds = prune(model, images, labels, multiply_adds=0.5, folds=0, method=FULL_SIZE).select(parameters=0.6)
    for found in (by_parameters, by_multiply_adds):
        assert found.after.parameters <= 0.6 * found.before.parameters
    for found, dearer, cheaper in ((by_parameters, "narrow", "wide"), (by_multiply_adds, "wide", "narrow")):
        assert len(found.kept[dearer]) < len(found.kept[cheaper])


@pytest.mark.parametrize("name", ["multiply_adds", "parameters"])
def test_at_every_size_what_is_said_to_be_left_is_left(samples, residual, name):
    """Biases count that reconstruction adds: as a fraction of a network that had none."""
    down = prune(residual, *samples, folds=0, multiply_adds=0.02)._run.down
    whole = left(name, residual, samples[0])
    for removed in range(1, len(down.order)):
        counted = left(name, down.model(removed), samples[0]) / whole
        assert counted <= getattr(down, name)(removed) + 1e-9 <= counted + 0.03  # a bias that is not added, at most


def test_latency_takes_the_first_row_of_the_path_that_keeps_it(samples, model, monkeypatch):
    """By a clock that counts filters, with one size out of turn: it is faster than the next smaller ones."""
    sizes = [row.filters for row in prune(model, *samples, folds=0, multiply_adds=0.5).path]
    fast = sizes[2]
    assert 30 < fast < 60

    def count(network: nn.Module, *_: object, **__: object) -> float:
        filters = left("pruning_ratio", network, samples[0])
        return 0.5 if filters == fast else filters / 60

    for where in ("lrp_core.api", "lrp_core.metrics.cost"):
        monkeypatch.setattr(f"{where}.latency", count)
    pruned = prune(model, *samples, folds=0, latency=0.5)
    assert [row.latency for row in pruned.path] == [0.5 if size == fast else size / 60 for size in sizes]
    assert pruned.after.filters == fast > 30
    assert pruned.select(latency=0.45).after.filters == next(size for size in sizes if size <= 27)
    with pytest.raises(
        ValueError, match=rf"latency=0\.01 cannot be kept: the path ends at latency={min(sizes) / 60:.4f}"
    ):
        pruned.select(latency=0.01)


OTHERS = [
    ("multiply_adds", 0.2),
    ("parameters", 0.7),
    ("pruning_ratio", 0.5),
    ("max_accuracy_drop", 20.0),
]


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_another_size_is_what_a_call_for_it_would_have_given(samples, model, pruned, monkeypatch, name, value):
    anew = prune(model, *samples, method=FULL_SIZE, **{name: value})
    for what in ("walk", "__init__"):
        monkeypatch.setattr(Descent, what, lambda *_, **__: pytest.fail("it is pruned again"))
    selected = pruned.select(**{name: value})
    assert selected.kept == anew.kept != pruned.kept
    assert selected.estimate == anew.estimate
    assert selected.after.accuracies == anew.after.accuracies
    assert torch.equal(selected.model(samples[0]), anew.model(samples[0]))
    assert torch.equal(selected.select(multiply_adds=0.5).model(samples[0]), pruned.model(samples[0]))


def test_a_new_size_is_estimated_by_the_next_smaller_one_of_the_path(pruned):
    for share in (0.95, 0.5, 0.07):
        selected = pruned.select(multiply_adds=share)
        removed = round(60 * selected.pruning_ratio)
        assert (
            selected.estimate
            == min((row for row in pruned.path if row.removed >= removed), key=lambda r: r.removed).estimate
        )


def test_a_larger_drop_lets_more_go(pruned):
    with pytest.warns(UserWarning, match=r"36 independent images can exclude a drop of 6\.2 points at best"):
        shares = [pruned.select(max_accuracy_drop=drop).after.multiply_adds for drop in (0.0, 4.0)]
    shares += [pruned.select(max_accuracy_drop=drop).after.multiply_adds for drop in (20.0, 60.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < shares[0]


@pytest.mark.filterwarnings("ignore:36 independent images")
@pytest.mark.parametrize("points", [0.5, 5.0, 15.0, 40.0])
def test_the_drop_that_is_allowed_is_kept_by_what_the_path_says_smoothed(pruned, points):
    """Isotonic regression by its definition: the most, over where to begin, of the least mean of what follows."""
    rows = [row for row in pruned.path if row.estimate is not None]
    drops = np.array([row.estimate.drop for row in rows[1:]])
    smoothed = [
        max(min(drops[start : end + 1].mean() for end in range(i, len(drops))) for start in range(i + 1))
        for i in range(len(drops))
    ]
    expected = rows[sum(drop <= points + 1e-9 for drop in smoothed)]
    selected = pruned.select(max_accuracy_drop=points)
    assert selected.pruning_ratio == expected.pruning_ratio
    assert any("36 independent images can exclude" in note for note in selected.notes) == (points < 6.2)
    assert any("this is the unpruned one" in note for note in selected.notes) == (expected.removed == 0)


def test_no_drop_can_be_asked_for_without_estimates(samples, model):
    pruned = prune(model, *samples, folds=0, multiply_adds=0.5)
    assert pruned.estimate is None
    with pytest.raises(ValueError, match="max_accuracy_drop needs estimates on unseen images"):
        pruned.select(max_accuracy_drop=2.0)
    with pytest.raises(ValueError, match="there are no estimates to draw"):
        pruned.plot()


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, "one budget, got none"),
        ({"multiply_adds": 0.5, "latency": 0.25}, r"one budget, got {'multiply_adds': 0\.5, 'latency': 0\.25}"),
        ({"multiply_adds": 0.0}, r"multiply_adds must lie between 0 and 1, .*got 0\.0"),
        ({"parameters": 1.0}, r"parameters must lie between 0 and 1, .*got 1\.0"),
        ({"max_accuracy_drop": 100}, r"max_accuracy_drop must lie in \[0, 100\), .*got 100"),
        ({"multiply_adds": 0.001}, r"multiply_adds=0\.001 cannot be kept: the path ends at multiply_adds=0\.0[0-9]*;"),
    ],
)
def test_budgets_that_cannot_be_selected_are_told(pruned, budgets, message):
    with pytest.raises(ValueError, match=message):
        pruned.select(**budgets)


# Layers that stay, and multiples


@pytest.mark.parametrize("seed", range(3))
def test_a_small_budget_has_an_estimate_too(samples, seed):
    """Folds leave other sizes than all images do, and go on until they are as small."""
    images, labels = samples
    first = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    last = nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    found = prune(settle(nn.Sequential(*first, *last)), images, labels, multiply_adds=0.03, seed=seed)
    assert found.estimate.images == len(images)


@pytest.mark.parametrize("method", ["joint-cost+reconstruction+distillation", "joint", "px-static"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(samples, model, method, mode):
    expected = prune(model, *samples, method=method, multiply_adds=0.5, folds=0)
    with mode():
        found = prune(model, *samples, method=method, multiply_adds=0.5, folds=0)
        assert torch.equal(found.model(samples[0]), expected.model(samples[0]))


def test_a_last_layer_that_is_not_dense_is_believed_and_this_is_said(samples):
    model = trained(samples, dense_head=False)
    (note,) = prune(model, *samples, multiply_adds=0.5).notes
    assert "ends with '7', no dense layer: the numbers hold only if other images trained it" in note
    assert prune(model, *samples, multiply_adds=0.5, head_fitted=False).notes == ()
    assert prune(model, *samples, multiply_adds=0.5, folds=0).notes == ()


def test_numbers_of_numpy_are_numbers(samples, model):
    folds, seed, left = np.int64(2), np.uint32(1), np.float32(0.5)
    found = prune(model, *samples, multiply_adds=left, folds=folds, round_to=np.int16(2), seed=seed)
    expected = prune(model, *samples, multiply_adds=0.5, folds=2, round_to=2, seed=1)
    assert (found.kept, found.estimate) == (expected.kept, expected.estimate)


def test_a_selected_network_can_be_trained_whatever_the_mode(samples, pruned):
    with torch.inference_mode():
        smaller = pruned.select(multiply_adds=0.4).model
    smaller.requires_grad_(True)(samples[0]).sum().backward()


def test_warnings_are_of_the_line_that_called(samples, model, pruned):
    for call in (lambda: pruned.select(max_accuracy_drop=1), lambda: prune(model, *samples, method=FULL_SIZE, folds=2)):
        with pytest.warns(UserWarning, match="independent images can exclude") as found:
            call()
        assert {warning.filename for warning in found} == {__file__}


def test_folds_within_a_fold_have_all_classes_by_turns():
    """The last class has one image there; the others take turns: each fold has half of each."""
    labels = torch.tensor([0, 1] * 20 + [2])
    for groups in (torch.arange(41), torch.arange(41) // 2 * 2 + torch.arange(41) % 2):
        fold = api._draw(labels, groups, 5, 0, single_site)
        assert [int((fold[labels == label] == 0).sum()) for label in (0, 1)] == [10, 10]
    patients = torch.tensor([*range(20), *range(20), 20])  # each has an image of both classes
    fold = api._draw(labels, patients, 5, 0, single_site)
    assert all(len(fold[patients == patient].unique()) == 1 for patient in range(21))
    assert sorted(fold.bincount().tolist()) == [20, 21]


def test_groups_may_have_names(samples, model):
    numbers = torch.arange(36) // 4
    found = [
        prune(model, *samples, groups=groups, multiply_adds=0.5, folds=3).estimate
        for groups in (numbers, [f"patient {number}" for number in numbers.tolist()])
    ]
    assert found[0] == found[1]
    assert found[0].observations == 27  # nine groups in each of three classes


def test_one_large_group_beside_small_ones(samples, model):
    """Scikit-learn's folds would leave a class out of the inner folds that choose the strength of the head's ridge."""
    images, labels = (part[:24] for part in samples)
    groups = torch.tensor([0] * 18 + [1, 2, 3, 4, 5, 6])
    for folds in (2, 4):
        assert prune(model, images, labels, groups=groups, head_fitted=True, folds=folds, multiply_adds=0.5).estimate


def test_layers_that_are_ignored_keep_all_filters(samples, model):
    by_name = prune(model, *samples, folds=0, multiply_adds=0.3, ignored_layers=["0"])
    assert by_name.kept["0"] == list(range(20))
    assert len(by_name.kept["3"]) < 14
    as_module = prune(model, *samples, folds=2, multiply_adds=0.3, ignored_layers=model[3])
    assert as_module.kept["3"] == list(range(40))
    assert len(as_module.kept["0"]) < 10
    assert as_module.model[3].out_channels == 40


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "px-iterative", "dynamic"])
def test_what_is_added_to_a_layer_that_is_ignored_stays_too(samples, residual, method):
    pruned = prune(residual, *samples, method=method, folds=0, multiply_adds=0.5, ignored_layers=["thin"])
    assert pruned.kept["thin"] == pruned.kept["stem"] == list(range(18))
    assert len(pruned.kept["wide"]) < 22
    assert pruned.after.multiply_adds <= 0.5 * pruned.before.multiply_adds


class Padded(nn.Module):
    """A shortcut that adds channels of zeros, of what the stem gives or of the image, computed first or last."""

    def __init__(self, of_image: bool, first: bool):
        super().__init__()
        self.of_image, self.first = of_image, first
        self.stem, self.wide, self.thin = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 18, 3, 1, 1), nn.Conv2d(18, 16, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, image):
        def shortcut():
            return F.pad(image, (0, 0, 0, 0, 4, 9)) if self.of_image else F.pad(x, (0, 0, 0, 0, 4, 4))

        x = F.relu(self.stem(image))
        early = shortcut() if self.first else None
        x = self.thin(F.relu(self.wide(x))) + (early if self.first else shortcut())
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("of_image", [False, True])
@pytest.mark.parametrize("method", ["dynamic", "dynamic-joint", "dynamic+reconstruction"])
def test_when_a_padded_shortcut_is_computed_changes_nothing(samples, method, of_image):
    last, first = (
        prune(settle(Padded(of_image, first)), *samples, method=method, multiply_adds=0.3, folds=0)
        for first in (False, True)
    )
    assert first.kept == last.kept
    assert torch.allclose(first.model(samples[0]), last.model(samples[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "dynamic+refit", "budget-search"])
def test_networks_of_float64(samples, model, method):
    """Heads are fitted in float32 or float64; what comes out is of the network's own kind."""
    images, labels = samples
    double = prune(copy.deepcopy(model).double(), images.double(), labels, method=method, multiply_adds=0.5, folds=2)
    assert double.model(images.double()).dtype == torch.float64


def test_a_criterion_may_leave_its_logits_where_they_are(samples, model):
    """On a GPU they would be there; here a tensor that says so."""
    moved = []

    class Elsewhere(torch.Tensor):
        def to(self, *args, **kwargs):
            moved.append(args)
            return self.as_subclass(torch.Tensor).to(*args, **kwargs)

    def criterion(model, images, targets):
        convolutions = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
        filters = {name: torch.rand(len(images), model.get_submodule(name).out_channels) for name in convolutions}
        return Scores(filters, model(images).as_subclass(Elsewhere))

    prune(model, *samples, method=Method(criterion, rate=True), multiply_adds=0.5, folds=0)
    assert (samples[0].device,) in moved


def test_layers_that_are_not_there_cannot_be_ignored(samples, model):
    for layer in ("7", "conv1", nn.Conv2d(3, 20, 3), model[2]):
        with pytest.raises(
            ValueError, match=r"ignored_layers: .* is no convolution of this model; .*\['0', '3'\]"
        ) as error:
            prune(model, *samples, folds=0, multiply_adds=0.5, ignored_layers=["0", layer])
        assert repr(layer) in str(error.value)


def test_a_network_that_can_lose_nothing_is_told(samples, model):
    with pytest.raises(ValueError, match="no filter"):
        prune(model, *samples, folds=0, multiply_adds=0.5, ignored_layers=["0", "3"])


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "px-static"])
@pytest.mark.parametrize("share", [0.8, 0.45, 0.2])
def test_layers_keep_multiples_or_all(samples, residual, method, share):
    pruned = prune(residual, *samples, method=method, folds=0, multiply_adds=share, round_to=4)
    for name, whole in {"stem": 18, "thin": 18, "wide": 22, "last": 21}.items():
        kept = pruned.model.get_submodule(name).out_channels
        assert kept == len(pruned.kept[name])
        assert kept % 4 == 0 or kept == whole
    most = share * left("multiply_adds", residual, samples[0])
    assert left("multiply_adds", pruned.model, samples[0]) <= most
    one = prune(residual, *samples, method=method, folds=0, multiply_adds=share)
    assert any(len(kept) % 4 for kept in one.kept.values())  # it does make a difference


# Methods of one's own


def test_a_criterion_of_ones_own_says_which_filters_go_first(samples, model):
    """Scores that rise with the number of the filter: of each layer the last ones are left."""
    seen = set()

    def criterion(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Scores:
        seen.add(len(images))
        with torch.no_grad():
            layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
            rising = {name: 1.0 + torch.arange(layer.out_channels) for name, layer in layers.items()}
            return Scores({name: one.expand(len(images), -1) for name, one in rising.items()}, network(images))

    pruned = prune(model, *samples, method=criterion, folds=4, pruning_ratio=0.5)
    assert seen == {36, 27}
    for name, whole in {"0": 20, "3": 40}.items():
        kept = pruned.kept[name]
        assert kept == list(range(whole - len(kept), whole))
    assert not same_by_removal(model, pruned, samples[0])  # the rest is reconstructed


def test_a_method_of_ones_own_is_used_as_it_is(samples, model):
    own = prune(model, *samples, method=Method("taylor", taper=0.02, reconstruct=True), folds=0, pruning_ratio=0.5)
    named = prune(model, *samples, method="taylor+reconstruction", folds=0, pruning_ratio=0.5)
    assert [len(step.removed) for step in named.steps[:3]] == [3, 3, 3]  # a twentieth of 60
    assert max(len(step.removed) for step in own.steps) < 3  # a fiftieth of those that are left
    with torch.no_grad():
        assert not same_by_removal(model, own, samples[0])  # what is left is reconstructed


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "dynamic"])
def test_a_callback_is_given_every_step_once_and_in_order(samples, model, method):
    given = []
    pruned = prune(model, *samples, method=method, folds=2, pruning_ratio=0.5, callback=given.append)
    assert len(given) == len(pruned.steps) > 5
    assert all(one is other for one, other in zip(given, pruned.steps, strict=True))
    assert [step.step for step in given] == list(range(len(given)))
    removed = np.concatenate([step.removed for step in given])
    assert len(np.unique(removed)) == len(removed) == len(pruned._run.down.order)


# What is said of the networks


def test_accuracies_are_counted_class_by_class(samples, model, pruned):
    small = pruned.select(multiply_adds=pruned.path[-1].multiply_adds)
    for network, said in ((model, small.before), (small.model, small.after), (pruned.model, pruned.after)):
        counted = accuracies(network, samples)
        assert said.accuracies == pytest.approx(dict(enumerate(counted)), abs=1e-6)
        expected = 0 if (counted == 0).any() else 3 / (1 / counted).sum()
        assert said.harmonic_mean == pytest.approx(expected, abs=1e-6)
    assert small.after.accuracies != small.before.accuracies


def test_classes_without_images_are_left_out(samples):
    model = trained(samples, n_classes=6)
    few = samples[1] != 1
    pruned = prune(model, samples[0][few], samples[1][few], pruning_ratio=0.5)
    assert set(pruned.before.accuracies) == set(pruned.after.accuracies) == {0, 2}
    counted = accuracies(pruned.model, (samples[0][few], samples[1][few]))
    assert list(pruned.after.accuracies.values()) == pytest.approx(counted, abs=1e-6)
    assert all(step.accuracies.shape == (2,) for step in pruned.steps)
    assert pruned.estimate.images == 24
    assert pruned.model(samples[0]).shape == (36, 6)


def test_it_prints_as_a_summary_and_its_path_as_a_table(samples, model, pruned):
    share = left("multiply_adds", pruned.model, samples[0]) / left("multiply_adds", model, samples[0])
    text = str(pruned)
    assert f"{share:.0%} of the multiply-adds" in text
    assert f"{sum(map(len, pruned.kept.values()))} of 60 filters" in text
    assert f"drop of the accuracy          {pruned.estimate.drop:.1f} (" in text
    header, *lines = str(pruned.path).splitlines()
    assert header.split("  ")[-1].strip() == "drop"
    assert len(lines) == len(pruned.path) > 8
    for line, row in zip(lines, pruned.path, strict=True):
        assert line.split()[:3] == [f"{row.multiply_adds:.1%}", f"{row.parameters:.1%}", str(row.filters)]
        assert (f"{row.estimate.drop:.1f} (" in line) if row.estimate else line.endswith(f"{1000 * row.latency:.2f}")
    assert "unseen" not in str(prune(model, *samples, folds=0, multiply_adds=0.5))


def test_it_draws_the_path(pruned):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    _, axes = plt.subplots()
    assert pruned.plot(axes) is axes
    rows = [row for row in pruned.path if row.estimate is not None]
    accuracy, mean = (line for line in axes.lines if len(line.get_xdata()) == len(rows))
    np.testing.assert_allclose(accuracy.get_ydata(), [row.estimate.accuracy for row in rows])
    np.testing.assert_allclose(mean.get_ydata(), [row.estimate.harmonic_mean for row in rows])
    np.testing.assert_allclose(mean.get_xdata(), [100 * row.multiply_adds for row in rows])
    assert pruned.plot() is not axes
    plt.close("all")


def test_the_artifacts_runs_are_these(tmp_path):
    """One code: a run of the artifact takes away the same filters in the same order."""
    work = Miniature(tmp_path)
    calibration = work.samples(0, "calibration")
    for method in ("dynamic-training", "px-static", "taylor"):
        pruned = prune(
            work.classifier(0), *(calibration.images, calibration.labels), method=method, pruning_ratio=0.95, folds=0
        )
        order = np.concatenate([step.removed for step in pruned.steps])
        expected = run(work, method, 0).orders[""]
        size = min(len(order), len(expected))
        assert size >= 76
        assert (order[:size] == expected[:size]).all()


# What is fitted


@pytest.mark.parametrize("method", ["dynamic", "dynamic-order"])
def test_a_controller_goes_by_heads_that_have_not_seen_the_images(samples, method):
    """Its weights of classes, too. The network's own head is a random one here."""
    (images, labels), model = samples, settle(build())
    pruned = prune(model, images, labels, method=method, pruning_ratio=0.5, folds=0)
    features = model[:-1](images)
    judged = fit_heads(features, labels, draw_folds(labels, np.arange(36), 5, 0)).out_of_fold.judge(features)
    counted = [(judged[labels == k].argmax(dim=1) == k).double().mean().item() for k in range(3)]
    assert pruned.steps[0].before == pytest.approx(harmonic_mean(counted))
    assert abs(pruned.steps[0].before - harmonic_mean(accuracies(model, samples))) > 0.05


@pytest.mark.parametrize("method", ["px-static+refit", "dynamic+reconstruction+refit"])
def test_a_refitted_head_is_the_one_for_what_is_left(samples, model, method):
    images, labels = samples
    pruned = prune(model, images, labels, method=method, pruning_ratio=0.6, folds=0)
    with torch.no_grad():
        features = pruned.model[:-1](images)
    heads = fit_heads(features, labels, draw_folds(labels, np.arange(36), 5, 0), bias=True)
    scale = fit_scale(heads.out_of_fold.judge(features), labels)
    torch.testing.assert_close(pruned.model[-1].weight, scale * heads.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pruned.model[-1].bias, scale * heads.bias, rtol=1e-4, atol=1e-5)


def test_softmax_of_a_refitted_head_is_probabilities(samples, model):
    """On images that nothing has seen, drawn as the others were; before, a regression's outputs were all alike."""
    images, labels = samples
    pruned = prune(model, images, labels, method="px-static+refit", pruning_ratio=0.6, folds=0)
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
    pruned = prune(model, *samples, method="dynamic-training+refit", pruning_ratio=0.5, folds=0)
    assert not torch.equal(pruned.model[-1].bias, model[-1].bias)


def test_two_images_of_a_class_are_enough_for_every_method(samples, model):
    """Without a fold there is one left, which no head could be judged by."""
    for method in ("joint-cost+reconstruction", "dynamic", "px-static+refit"):
        pruned = prune(model, samples[0][:6], samples[1][:6], method=method, pruning_ratio=0.5)
        assert pruned.estimate.images == 6


def test_distillation_comes_closer_to_the_unpruned_logits(samples, model):
    images, method = samples[0], "joint-cost+reconstruction"
    plain = prune(model, *samples, method=method, folds=0, multiply_adds=0.1)
    distilled = prune(model, *samples, method=f"{method}+distillation", folds=0, multiply_adds=0.1)
    assert distilled.kept == plain.kept
    assert not torch.equal(distilled.model(images), plain.model(images))
    away = [(pruned.model(images) - model(images)).square().mean() for pruned in (distilled, plain)]
    assert away[0] < away[1]
    assert torch.equal(distilled.select(multiply_adds=0.1).model(images), distilled.model(images))
    assert torch.equal(distilled._run.network(images), model(images))  # the teacher has not learnt
    assert not any(parameter.requires_grad for parameter in distilled.model.parameters())


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
    "a ratio of all": ({"pruning_ratio": 1.0}, r"pruning_ratio must lie between 0 and 1, .*got 1\.0"),
    "a ratio of nothing": ({"pruning_ratio": 0.0}, r"pruning_ratio must lie between 0 and 1, .*got 0\.0"),
    "a ratio that is a percentage": ({"pruning_ratio": 50}, "pruning_ratio must lie between 0 and 1, .*got 50"),
    "no multiply-adds": ({"multiply_adds": 0}, "multiply_adds must lie between 0 and 1, .*got 0"),
    "all parameters": ({"parameters": 1}, "parameters must lie between 0 and 1, .*got 1"),
    "a latency in milliseconds": ({"latency": 3.5}, r"latency must lie between 0 and 1, .*got 3\.5"),
    "a drop below 0": ({"max_accuracy_drop": -1}, r"max_accuracy_drop must lie in \[0, 100\), .*got -1"),
    "two budgets": (
        {"multiply_adds": 0.5, "parameters": 0.25},
        r"one budget at a time, got multiply_adds=0\.5, parameters=0\.25",
    ),
    "no images": ({"images": torch.zeros(0, 3, 8, 8), "labels": torch.zeros(0).long()}, "there are no images"),
    "one fold": ({"folds": 1, "multiply_adds": 0.5}, "folds must be 2 or more, or 0 with a budget .*got 1"),
    "folds below 0": ({"folds": -2, "multiply_adds": 0.5}, "folds must be 2 or more, .*got -2"),
    "a drop that nothing estimates": ({"folds": 0}, "or 0 with a budget that needs no estimate; got 0"),
    "folds that are no number of folds": ({"folds": 2.0, "multiply_adds": 0.5}, "folds must be 2 or more, .*got 2.0"),
    "multiples of nothing": ({"round_to": 0}, "round_to must be a whole number, 1 or more; got 0"),
    "multiples of more than there are": (
        {"round_to": 64, "multiply_adds": 0.5, "folds": 0, "method": FULL_SIZE},
        "nothing of this network can be removed with round_to=64 and 0 ignored layers",
    ),
    "a budget in words": ({"multiply_adds": "0.5"}, "multiply_adds must be a number, got '0.5'"),
    "a seed below 0": ({"seed": -1}, "seed must be a whole number from 0 .*got -1"),
    "a method by number": ({"method": 3}, "a method is a name, a Method or a criterion .*got 3"),
    "a fitted head that is a convolution": (
        {"model": build(dense_head=False), "head_fitted": True},
        "it has to be dense, and '7' is a Flatten",
    ),
    "a method misspelt": ({"method": "dynamics"}, "unknown method 'dynamics'; choose one of"),
    "more than can be removed": (
        {"pruning_ratio": 0.99, "folds": 0},
        r"pruning_ratio=0\.99 cannot be kept: the path ends at pruning_ratio=0\.9667",
    ),
    "fewer multiply-adds than a filter a layer has": (
        {"multiply_adds": 0.001, "folds": 0},
        r"multiply_adds=0\.001 cannot be kept: the path ends at multiply_adds=0\.00",
    ),
    "a layer unknown": ({"model": nn.Sequential(build(), nn.Softshrink())}, "unsupported kind Softshrink"),
    "a head to refit that is a convolution": (
        {"model": build(dense_head=False), "method": "dynamic+refit"},
        "'dynamic.refit' fits the last layer anew: it has to be dense, and '7' is a Flatten",
    ),
    "a class without images for a new head": ({"model": build(4), "method": "dynamic+refit"}, "of its 4 classes needs"),
    "a method that removes no filters": (
        {"method": "early-exit", "multiply_adds": 0.05, "folds": 0},
        r"removes no filters, and reaches multiply_adds=[01]\.\d+; add a method that does, as in 'early-exit\+joint",
    ),
    "no convolution": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(432, 9), nn.ReLU(), nn.Linear(9, 3)), "head_fitted": True},
        "no filter of this network can be removed",
    ),
    "groups without names": (
        {"groups": ["a", None, "b", "c", "d", "e"]},
        "groups must be all integers or all names; got NoneType and str",
    ),
    "one output": ({"model": build(1)}, r"logits \(N, K\) for K classes, two or more; for one image \(1, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(model, case):
    changes, message = BAD[case]
    arguments = {"model": model, "images": IMAGES, "labels": LABELS} | changes
    with pytest.raises(ValueError, match=message):
        prune(arguments.pop("model"), arguments.pop("images"), arguments.pop("labels"), **arguments)
