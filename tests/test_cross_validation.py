"""No image has any part in the network that it judges: by what goes in, by changed pixels, and by doing it by hand."""

import copy

import numpy as np
import pytest
import torch
from networks import settle
from scipy.stats import binom
from torch import nn
from torch.nn import functional as F

import lrp_core
from lrp_core import api
from lrp_core.control.cross_validation import held_out, was_fitted
from lrp_core.control.descent import Descent, Stop, Whole
from lrp_core.control.methods import method
from lrp_core.control.preparation import Prepared
from lrp_core.utils.sites import single_site

N, K = 24, 3


def network() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return settle(nn.Sequential(*layers, nn.Linear(12, K))).double()


@pytest.fixture(scope="module")
def task():
    """A network, and images with labels that it mostly gives."""
    model, generator = network(), torch.Generator().manual_seed(0)
    images = torch.randn(4 * N, 3, 8, 8, dtype=torch.float64, generator=generator)
    images += 2 * torch.randn(4 * N, 3, 1, 1, dtype=torch.float64, generator=generator)
    logits = model(images)
    model[-1].bias -= logits.mean(dim=0)
    labels = (model(images) + 0.3 * torch.randn(4 * N, K, generator=generator)).argmax(dim=1)
    chosen = torch.cat([(labels == k).nonzero().flatten()[: N // K] for k in range(K)])
    chosen = chosen[torch.randperm(N, generator=generator)]
    assert labels[chosen].bincount().tolist() == [N // K] * K
    return model, images[chosen], labels[chosen]


class Recorded(Descent):
    """Notes what it is given, and the networks that come out."""

    all: "list[Recorded]"

    def __init__(self, prepared, images, labels, *args, **kwargs):
        self.given, self.networks = (prepared.model, images, labels), []
        self.all.append(self)
        super().__init__(prepared, images, labels, *args, **kwargs)

    def walk(self, *args):
        for stop in super().walk(*args):
            self.networks.append({name: tensor.clone() for name, tensor in stop.model.state_dict().items()})
            yield stop


@pytest.fixture
def recorded(monkeypatch):
    """Everything that goes down within calls of prune, and what ``held_out`` was called with."""
    Recorded.all, calls = [], []
    monkeypatch.setattr(api, "Descent", Recorded)
    monkeypatch.setattr(api, "held_out", lambda *args: calls.append(args) or held_out(*args))
    return Recorded.all, calls


def prune(*args, **kwargs) -> lrp_core.Pruned:
    return lrp_core.prune(*args, progress=False, **kwargs)


@pytest.mark.parametrize("head_fitted", [False, True])
def test_without_each_fold_only_the_other_images_are_pruned_with(task, recorded, head_fitted):
    model, images, labels = task
    descents, calls = recorded
    prune(model, images, labels, multiply_adds=0.3, head_fitted=head_fitted)
    fold = calls[0][2]
    assert fold.bincount().tolist() == [6] * 4
    assert len(descents) == 5
    for k, descent in enumerate(descents[:4]):
        assert torch.equal(descent.given[1], images[fold != k])
        assert torch.equal(descent.given[2], labels[fold != k])
    assert torch.equal(descents[4].given[1], images)


def test_what_goes_down_is_given_the_images_outside_the_fold_and_no_others(task):
    """The same, of the loop alone, with labels as a head numbers them that knows two of the classes."""
    model, images, labels = task
    some = labels != 1
    images, labels = images[some], labels[some]
    fold, groups, seen = torch.arange(len(labels)) // 2 % 3, torch.arange(len(labels)) + 100, []
    numbers = (labels == 2).long()

    def descent(network, *given):
        seen.append((network, *given))
        return Descent(
            Prepared(network), given[0], given[1], method("px-static"), None, whole=Whole.of(network, images[:1])
        )

    def classifier(k):
        return model, numbers + 0 * k

    judged = held_out(images, labels, fold, groups, classifier, descent, lambda _: True, lambda _: None, single_site)
    for k, (network_k, *given) in enumerate(seen):
        assert network_k is model
        for got, whole in zip(given, (images, numbers, groups), strict=True):
            assert torch.equal(got, whole[fold != k])
    assert judged.labels.tolist() == numbers.tolist()
    assert (judged.before == (model(images).argmax(dim=1) == numbers).numpy()).all()
    assert judged.after.shape == (len(judged.limits), len(images))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_where_no_size_can_be_reached_the_unpruned_network_is_left(task):
    """All that may go is less than 15 % of the multiply-adds; folds estimate the unpruned network alone."""
    model, images, labels = task
    first, relu, second, *rest = copy.deepcopy(model)
    wide = nn.Sequential(first, relu, second, nn.ReLU(), settle(nn.Conv2d(12, 12, 1)).double(), *rest)
    options = {"method": "joint-cost+reconstruction", "ignored_layers": ["0", "2"]}
    pruned = prune(wide, images, labels, max_accuracy_drop=5, **options)
    assert pruned.after.filters == pruned.before.filters
    assert [row.size for row in pruned.path] == [None]
    assert pruned.estimate.images == N


METHODS = ["joint-cost+reconstruction", "px-static+reconstruction+refit", "dynamic"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("head_fitted", [False, True])
def test_pixels_of_an_image_change_no_network_that_it_judges(task, recorded, name, head_fitted):
    """Bit by bit; and of the verdicts of its fold no other than its own."""
    model, images, labels = task
    descents, calls = recorded
    judged, changed = [], images.clone()
    changed[5] = 3 * torch.randn(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for given in (images, changed):
        judged.append(prune(model, given, labels, method=name, multiply_adds=0.1, head_fitted=head_fitted)._run.judged)
    fold = calls[0][2]
    assert torch.equal(calls[1][2], fold)
    k, n = int(fold[5]), len(descents) // 2
    one, other = descents[k], descents[n + k]
    for before, after in zip(one.given[0].state_dict().values(), other.given[0].state_dict().values(), strict=True):
        assert torch.equal(before, after)
    assert len(one.networks) == len(other.networks) > 6
    for before, after in zip(one.networks, other.networks, strict=True):
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    neighbours = ((fold == k) & (torch.arange(N) != 5)).numpy()
    sizes = min(len(one.limits) for one in judged)
    assert (judged[0].after[:sizes, neighbours] == judged[1].after[:sizes, neighbours]).all()
    assert (judged[0].before[neighbours] == judged[1].before[neighbours]).all()
    if "reconstruction" in name:  # where it is pruned with, it has a part
        elsewhere = [torch.cat([part.flatten() for part in descents[i].networks[3].values()]) for i in (n - 1, -1)]
        assert elsewhere[0].shape != elsewhere[1].shape or not torch.equal(*elsewhere)


def ridge_gap(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Return how far a head is from being a ridge regression to these images, of whatever strength.

    Of one, the gradient of the squared error points along the weights, and the bias makes the means equal.
    """
    y = F.one_hot(labels).double() - 1 / K
    rest = y - F.linear(x, weight.double(), bias.double())
    x = x - x.mean(dim=0)
    gradient = (rest.T @ x).flatten()
    weight = weight.double().flatten()
    strength = (gradient @ weight / weight.square().sum()).item()
    if strength <= 0:
        return float("inf")
    return ((gradient - strength * weight).norm() / gradient.norm()).item() + rest.mean(dim=0).abs().max().item()


def test_a_fitted_head_is_fitted_anew_without_the_fold(task, recorded):
    model, images, labels = task
    descents, calls = recorded
    pruned = prune(model, images, labels, method="joint-cost+reconstruction", multiply_adds=0.3, head_fitted=True)
    fold, features = calls[0][2], model[:-1](images)
    for k, descent in enumerate(descents[:4]):
        head, others = descent.given[0][-1], fold != k
        assert ridge_gap(head.weight, head.bias, features[others], labels[others]) < 1e-5
        assert ridge_gap(head.weight, head.bias, features, labels) > 1e-3  # it is not that of all images
        for layer in (0, 2):
            assert torch.equal(descent.given[0][layer].weight, model[layer].weight)
        own = descent.given[0](images[fold == k]).argmax(dim=1) == labels[fold == k]
        assert (pruned._run.judged.before[(fold == k).numpy()] == own.numpy()).all()
    assert torch.equal(descents[4].given[0][-1].weight, model[-1].weight)
    assert any("'6', counts as fitted to these images" in note for note in pruned.notes)


def test_a_head_that_is_not_fitted_stays_within_the_folds(task, recorded):
    model, images, labels = task
    pruned = prune(model, images, labels, method="joint-cost+reconstruction", multiply_adds=0.3, head_fitted=False)
    for descent in recorded[0]:
        assert torch.equal(descent.given[0][-1].weight, model[-1].weight)
    right = (model(images).argmax(dim=1) == labels).numpy()
    assert (pruned._run.judged.before == right).all()
    assert not pruned.notes


def test_images_of_a_group_stay_together(task, recorded):
    model, images, labels = task
    descents, calls = recorded
    groups = torch.arange(N) // 2 % 8  # of three images each, of several classes
    pruned = prune(model, images, labels, multiply_adds=0.3, groups=groups, head_fitted=False)
    fold = calls[0][2]
    assert all(len(fold[groups == group].unique()) == 1 for group in range(8))
    for k, descent in enumerate(descents[: int(fold.max()) + 1]):
        assert torch.equal(descent.given[1], images[~torch.isin(groups, groups[fold == k])])
    assert pruned.estimate.images == N
    assert (pruned._run.judged.groups == groups.numpy()).all()
    alone = prune(model, images, labels, multiply_adds=0.3, head_fitted=False)
    assert any(len(calls[1][2][groups == group].unique()) > 1 for group in range(8))  # else they would be spread
    assert alone.kept == pruned.kept  # all images prune what comes out, whatever the folds are


@pytest.mark.parametrize("name", ["joint-cost+reconstruction", "px-static+reconstruction", "px-iterative"])
def test_verdicts_are_those_of_a_call_without_the_fold(task, recorded, name):
    """Each fold by hand: prune on the others, at every size, and look what the fold's images get."""
    model, images, labels = task
    judged = prune(model, images, labels, method=name, multiply_adds=0.06, head_fitted=False)._run.judged
    fold = recorded[1][0][2]
    assert len(judged.limits) > 6
    for k in range(4):
        held = fold == k
        by_hand = prune(model, images[~held], labels[~held], method=name, multiply_adds=0.06, folds=0)
        for limit, verdicts in zip(judged.limits, judged.after, strict=True):
            smaller = by_hand.select(multiply_adds=limit).model
            assert (verdicts[held.numpy()] == (smaller(images[held]).argmax(dim=1) == labels[held]).numpy()).all()
    assert not (judged.after == judged.before).all()


def test_the_rows_of_the_path_say_what_the_folds_saw_at_this_size(task):
    """Right answers counted, one more image half right in each class."""
    model, images, labels = task
    pruned = prune(model, images, labels, multiply_adds=0.1, head_fitted=False)
    judged = pruned._run.judged
    for row in pruned.path[1 : len(judged.limits)]:  # of the last limit that it keeps
        size = max(i for i, limit in enumerate(judged.limits) if row.multiply_adds <= limit)
        right = judged.after[size]
        shares = [(right[labels.numpy() == k].sum() + 0.5) / (N // K + 1) for k in range(K)]
        assert row.estimate.accuracy == pytest.approx(np.mean(shares))
        assert row.estimate.images == N
    sizes = [row.size for row in pruned.path]
    assert len(set(sizes)) == len(sizes)
    assert len({row.estimate.accuracy for row in pruned.path if row.estimate}) > 1


def test_a_size_beyond_the_last_row_has_the_estimate_of_the_folds_next_size(task, monkeypatch):
    """The path ends at its budget, where it has no row; the folds go on."""
    monkeypatch.setattr("lrp_core.control.descent.LEAST", 0.9)
    model, images, labels = task
    pruned = prune(model, images, labels, method="weight", multiply_adds=0.6, head_fitted=False)
    left = pruned.after.multiply_adds / pruned.before.multiply_adds
    judged = pruned._run.judged
    following = next(i for i, limit in enumerate(judged.limits) if limit < left)
    assert pruned.path[-1].multiply_adds > left > judged.limits[following]
    assert pruned.estimate == judged.estimates()[following]
    assert pruned.estimate != pruned.path[-1].estimate


def test_the_path_has_estimates_as_far_as_all_folds_go(task):
    """Made-up descents, of which one ends earlier; what each says is told apart by the fold it judges."""
    _, images, labels = task
    fold, told = torch.arange(N) % 3, []

    class Fixed(nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def forward(self, x):
            return F.one_hot(torch.full((len(x),), self.answer), K).double()

    class Short:
        def __init__(self, n_sizes):
            self.n_sizes = n_sizes

        def walk(self, _):
            for i in range(self.n_sizes):
                yield Stop(1 / (i + 2), i + 1, 1 / (i + 3), Fixed(i % K))

    lengths = iter((4, 2, 3))
    judged = held_out(
        images,
        labels,
        fold,
        torch.arange(N),
        lambda k: (Fixed(k), labels),
        lambda *_: Short(next(lengths)),
        lambda _: True,
        told.append,
        single_site,
    )
    np.testing.assert_allclose(judged.limits, [1 / 2, 1 / 3])
    assert (judged.before == (labels == fold).numpy()).all()
    assert (judged.after == np.stack([labels.numpy() == 0, labels.numpy() == 1])).all()
    assert told.count(1) == 3
    assert told[:5] == [1 - 1 / 3, 1 - 1 / 4, 1 - 1 / 5, 1 - 1 / 6, 1]


# Whether a head was fitted to the images


def verdicts(mine: int, theirs: int, both: int = 5, none: int = 3) -> tuple[np.ndarray, np.ndarray]:
    own = [True] * mine + [False] * theirs + [True] * both + [False] * none
    other = [False] * mine + [True] * theirs + [True] * both + [False] * none
    return np.array(own), np.array(other)


def test_a_head_is_told_by_an_exact_test_of_the_images_that_change_sides():
    answers = set()
    for mine in range(12):
        for theirs in range(12):
            n = mine + theirs
            chance = binom.sf(mine - 1, n, 0.5)  # of so many or more, if both are alike
            found = was_fitted(*verdicts(mine, theirs), single_site)
            assert found == (chance < 0.05), (mine, theirs)
            answers.add(found)
    assert answers == {True, False}
    assert was_fitted(*verdicts(5, 0), single_site)
    assert not was_fitted(*verdicts(4, 0), single_site)


def test_sites_add_up_the_images_that_change_sides():
    """Three images at each of two sites: neither could tell alone."""
    assert not was_fitted(*verdicts(3, 0), single_site)
    assert was_fitted(*verdicts(3, 0), lambda part: 2 * part)


def with_head(images: torch.Tensor, labels: torch.Tensor, penalty: float) -> nn.Module:
    """A random backbone of many features, and a head that is a ridge regression to images, solved plainly."""
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 80, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = settle(nn.Sequential(*layers, nn.Linear(80, K))).double()
    x = model[:-1](images)
    y = F.one_hot(labels, K).double()
    centred = x - x.mean(dim=0)
    weight = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(80), centred.T @ (y - y.mean(dim=0))).T
    model[-1].weight.copy_(weight)
    model[-1].bias.copy_(y.mean(dim=0) - weight @ x.mean(dim=0))
    return model


def noise(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with a colour by class, weak beside the noise."""
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(n) % K
    colours = 0.15 * torch.eye(K, dtype=torch.float64)[labels][:, :, None, None]
    return torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) + colours, labels


def test_a_head_that_the_images_trained_is_recognised():
    images, labels = noise(48, 0)
    model = with_head(images, labels, 1e-6)
    assert (model(images).argmax(dim=1) == labels).all()
    pruned = prune(model, images, labels, multiply_adds=0.5)
    assert any("counts as fitted to these images" in note for note in pruned.notes)
    believed = prune(model, images, labels, multiply_adds=0.5, head_fitted=False)
    assert believed.path[0].estimate.accuracy > 0.9 > pruned.path[0].estimate.accuracy + 0.2
    unseen, true = noise(600, 1)
    right = (model(unseen).argmax(dim=1) == true).double().mean().item()
    low, high = pruned.path[0].estimate.accuracy_interval
    assert low - 0.1 < right < high + 0.1  # the folds' heads know fewer images


def test_a_head_that_other_images_trained_is_not_taken_for_one():
    images, labels = noise(48, 0)
    model = with_head(*noise(400, 2), 1.0)
    (note,) = prune(model, images, labels, multiply_adds=0.5).notes
    assert "counts as trained by other images. If these fitted it, say head_fitted=True: otherwise" in note
    assert not prune(model, images, labels, multiply_adds=0.5, head_fitted=False).notes


def test_a_head_that_is_a_convolution_is_never_fitted_anew(task):
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, K, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    _, images, labels = task
    pruned = prune(settle(nn.Sequential(*layers)).double(), images, labels, multiply_adds=0.5)
    assert not any("fits it anew" in note for note in pruned.notes)
    assert pruned.estimate.images == N
