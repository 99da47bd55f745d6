"""The joint choice of filters, against its objective written out."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import miniature_vgg
from networks import Branches, depthwise_network, draw_images, network, settle
from torch.utils._python_dispatch import TorchDispatchMode

from lrp_core.control import contributions as contributions_module
from lrp_core.control import methods
from lrp_core.control.contributions import Contributions
from lrp_core.graph import execution
from lrp_core.graph.tracing import trace
from lrp_core.importance import contribution, joint
from lrp_core.importance.contribution import Contribution, projected_contributions
from lrp_core.importance.joint import SPREAD, joint_choice, joint_order
from lrp_core.pruning.network import PrunedNetwork


def objective(contributions, drift, chosen):
    """What is to be small, as the module's page has it, of centred logits."""
    c = contributions[..., list(chosen)]
    c, d = c - c.mean(axis=1, keepdims=True), drift - drift.mean(axis=1, keepdims=True)
    return ((d - c.sum(axis=2)) ** 2).sum() + SPREAD * (c**2).sum()


def whole(contributions):
    """All of them as one chunk, to centred logits."""
    return [(slice(None), slice(None), contributions - contributions.mean(axis=1, keepdims=True))]


def test_contributions_are_gradients_whatever_the_callers_mode():
    images, targets = torch.randn(4, 3, 12, 12, dtype=torch.float64), torch.arange(4)
    model, directions = miniature_vgg(), torch.ones(4, 1, 4)
    directions[:, :, 0] = -1

    def found() -> list[torch.Tensor]:
        projected, _ = projected_contributions(trace(model), images, directions)
        return [*Contribution()(model, images, targets).filters.values(), *projected.values()]

    expected = found()
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(found(), expected, strict=True))


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 3, 12)) * rng.uniform(0.2, 2, size=12), rng.normal(size=(5, 3))


@pytest.mark.parametrize("layers", [[0] * 12, [0] * 2 + [1] * 2 + [2] * 8])
def test_each_next_filter_is_the_best_one(drawn, layers):
    contributions, drift = drawn
    layers, active = np.array(layers), np.ones(12, dtype=bool)
    active[[5, 7]] = False
    contributions[..., ~active] = np.nan
    ranks = joint_order(whole(contributions), drift, layers, active, 6)
    assert np.isinf(ranks[~active]).all()
    assert sorted(ranks[active]) == list(range(10))
    order, chosen = np.argsort(ranks)[:6], []
    for filter_ in order:
        left = [
            f
            for f in np.flatnonzero(active)
            if f not in chosen and sum(layers[g] == layers[f] and g not in chosen for g in np.flatnonzero(active)) > 1
        ]
        values = {f: objective(contributions, drift, [*chosen, f]) for f in left}
        assert filter_ == min(values, key=values.get)
        chosen.append(filter_)


def test_what_cancels_is_removed_together_and_what_adds_up_is_not():
    """Two filters that cancel each other are taken before two smaller ones that add up."""
    contributions = np.zeros((1, 2, 4))
    contributions[0, 0] = [1.0, -1.0, 0.99, 0.99]  # to the first class, of four filters
    ranks = joint_order(whole(contributions), np.zeros((1, 2)), np.zeros(4, dtype=int), np.ones(4, dtype=bool), 2)
    assert ranks[2] == 0
    assert ranks[1] == 1  # the one that makes good what the first has done, though larger than its twin


def test_drift_is_made_good():
    """The first logit has gained 1 by earlier steps: the filter that gave it comes before one that gave nothing."""
    contributions = np.zeros((1, 2, 3))
    contributions[0, 0] = [1.0 / (1 + SPREAD), 0.0, -0.1]
    drift = np.array([[1.0, 0.0]])
    assert joint_order(whole(contributions), drift, np.zeros(3, int), np.ones(3, bool), 1).argmin() == 0
    assert joint_order(whole(contributions), 0 * drift, np.zeros(3, int), np.ones(3, bool), 1).argmin() == 1


def test_the_weight_of_the_spread_is_three():
    """Three filters give a = 1, y and -x to one centred logit, -a, -y and x to the other; nothing has drifted.

    With the first chosen, the objective is 2 [(1 + y)^2 + 3 (1 + y^2)] with the second, 2 [(1 - x)^2 + 3 (1 + x^2)]
    with the third. With a weight w for 3 the third is better if x - y < 2 / (1 + w): for y = 1.1, up to x = 1.6. The
    two cases here are told apart right for w between 2.7 and 3.4 only.
    """
    for x, second in ((1.55, 2), (1.65, 1)):
        one = np.array([1.0, 1.1, -x])
        contributions = np.stack([one, -one])[None]
        ranks = joint_order(whole(contributions), np.zeros((1, 2)), np.zeros(3, int), np.ones(3, bool), 2)
        assert ranks.tolist().index(0) == 0
        assert ranks.tolist().index(1) == second
        values = [(1 + one[f]) ** 2 + 3 * (1 + one[f] ** 2) for f in (1, 2)]
        assert np.argmin(values) + 1 == second


def test_chunks_of_images_and_classes_give_the_order_of_all_at_once(drawn):
    contributions, drift = drawn
    layers, active = np.repeat([0, 1], 6), np.ones(12, dtype=bool)
    chunks = [
        (images, classes, contributions[images, classes])
        for images in (slice(0, 2), slice(2, 5))
        for classes in (slice(0, 2), slice(2, 3))
    ]
    ranks = [joint_order(parts, drift, layers, active, 6) for parts in ([(slice(5), slice(3), contributions)], chunks)]
    np.testing.assert_array_equal(*ranks)


def test_memory_is_that_of_a_chunk_however_many_images_there_are():
    """400 chunks of 10 images: all at once they would take 400 times a chunk's 96 kB."""

    class Drawn:
        def __iter__(self):
            rng = np.random.default_rng(0)
            for first in range(0, 4000, 10):
                yield slice(first, first + 10), slice(0, 20), rng.normal(size=(10, 20, 60))

    arguments = np.zeros((4000, 20)), np.arange(60) // 30, np.ones(60, dtype=bool), 10
    tracemalloc.start()
    joint_order(Drawn(), *arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6 < 400 * 96e3  # the drift alone takes 0.64e6, twice


def test_contributions_come_in_chunks_of_a_bounded_size(monkeypatch):
    """Of images and of classes; put together, or held, or computed anew for each pass, they are the same numbers."""
    model, images, labels = network("vgg11", 6), draw_images("vgg11", 30), torch.arange(30) % 6
    all_at_once = Contribution()(model, images, labels).filters
    pruned = PrunedNetwork(model, images[:1])
    pruned.remove(np.arange(0, 40, 3))
    held = Contributions(Contribution(), pruned, images, labels)
    assert {values.shape[:2] for *_, values in held} == {(24, 6), (6, 6)}  # batches

    limit = 24 * 2 * pruned.n_filters * 8
    monkeypatch.setattr(contribution, "CHUNK", limit)
    monkeypatch.setattr(contributions_module, "HELD", limit)
    put_together = {name: torch.zeros_like(values) for name, values in all_at_once.items()}
    for chunk in Contribution().chunks(model, images, labels):
        for name, values in chunk.filters.items():
            put_together[name][chunk.images, chunk.classes] = values
    torch.testing.assert_close(put_together, all_at_once)

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dim() == 3:  # images, classes, filters
                largest = max(largest, result.numel())
            return result

    anew = Contributions(Contribution(), pruned, images, labels)
    sizes = []
    with Largest():
        for _, _, values in anew:
            sizes.append(values.nbytes)
    assert max(sizes) <= limit
    assert len(sizes) == 3 + 1  # two classes of 24 images at a time, all six of the last 6
    assert 0 < 8 * largest <= limit
    assert iter(anew) is not iter(anew)
    torch.testing.assert_close(anew.logits, held.logits, rtol=1e-4, atol=1e-5)
    drift = np.random.default_rng(0).normal(size=(30, 6)) * 0.1
    arguments = drift, pruned.layer_of, pruned.active, 60
    np.testing.assert_array_equal(joint_order(held, *arguments), joint_order(anew, *arguments))


@pytest.mark.parametrize("name", ["vgg11", "efficientnet-lite0"])
def test_logits_stay_nearer_to_the_unpruned_networks_than_with_single_choices(name):
    model, images, labels = network(name), draw_images(name, 24), torch.arange(24) % 4
    whole, drift = model(images), {}
    whole = whole - whole.mean(dim=1, keepdim=True)
    for method in ("joint", "taylor-taper", "px-iterative-abs-taper"):
        how = replace(methods.method(method), monitored="training")
        task = methods.task(model, None, images, labels, how, seed=0)
        steps = list(methods.steps(task, how, until=0.3))
        assert steps[-1].rate == pytest.approx(0.3, abs=0.001)
        logits = task.network.model(images)
        drift[method] = ((logits - logits.mean(dim=1, keepdim=True) - whole).norm() / whole.norm()).item()
    assert drift["joint"] < 0.7 * min(drift["taylor-taper"], drift["px-iterative-abs-taper"])


def centred(directions):
    return directions - directions.mean(dim=-1, keepdim=True)


@pytest.mark.parametrize("build", [miniature_vgg, lambda: settle(Branches()).double(), depthwise_network])
def test_contributions_to_each_centred_logit_are_those_of_all_classes(build, monkeypatch):
    """All images at a time, or one at a time where there is no room, and the first three logits alone."""
    model, labels = build(), torch.tensor([0, 1, 2, 3, 1, 2])
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for n_classes in (4, 3):
        expected = Contribution()(model, images, labels.clamp(max=n_classes - 1))
        directions = centred(torch.eye(n_classes, dtype=torch.float64)).expand(6, -1, -1)
        for room in (execution.ROOM, 1):
            monkeypatch.setattr(execution, "ROOM", room)
            filters, logits = projected_contributions(trace(model), images, directions)
            torch.testing.assert_close(logits, model(images))
            assert filters.keys() == expected.filters.keys()
            for layer, values in filters.items():
                torch.testing.assert_close(values, expected.filters[layer], rtol=1e-6, atol=1e-9)
        monkeypatch.undo()
    assert not images.requires_grad


def test_squares_of_combinations_average_to_the_sum_over_all_logits(images, targets):
    """Of all 16 combinations by signs, exactly; of 200 drawn ones for each image, nearly."""
    model = miniature_vgg()
    by_class = Contribution()(model, images, targets).filters
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    every, _ = projected_contributions(trace(model), images, centred(signs).expand(5, -1, -1))
    drawn = torch.randint(0, 2, (5, 200, 4), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    some, _ = projected_contributions(trace(model), images, centred(drawn))
    ratios = []
    for name, values in by_class.items():
        expected = values.square().sum(dim=1)
        torch.testing.assert_close(every[name].square().mean(dim=1), expected, rtol=1e-9, atol=1e-12)
        summed = expected.sum(dim=0)
        ratios.append((some[name].square().mean(dim=1).sum(dim=0) / summed)[summed > 0])
    # A single image and filter would be off by up to a tenth (sqrt(2 / 200)); these are summed over five images.
    ratios = torch.cat(ratios)
    assert len(ratios) > 15
    assert ((ratios - 1).abs() < 0.25).all()
    assert abs(ratios.mean() - 1) < 0.05


class Chain:
    """Layers of a chain; its cost is the sum of products of the sizes of neighbours. Costs and savings by counting."""

    def __init__(self, sizes, scale=1):
        self.sizes, self.scale = sizes, scale
        self.layer_of = np.repeat(np.arange(len(sizes)), sizes)

    def cost(self, kept):
        sizes = [3, *(int(kept[self.layer_of == layer].sum()) for layer in range(len(self.sizes))), 10]
        return self.scale * sum(a * b for a, b in itertools.pairwise(sizes))

    def without(self, active, filters):
        kept = active.copy()
        kept[np.asarray(filters, dtype=int)] = False
        return self.cost(kept)

    def savings(self, active):
        """What each filter saves if it goes alone."""
        whole = self.cost(active)
        return np.array([float(whole - self.without(active, [f])) for f in range(len(active))])


def raw_objective(c, d, chosen):
    """The objective of combinations of logits that are centred already."""
    picked = c[:, list(chosen)]
    return ((d - picked.sum(axis=1)) ** 2).sum() + SPREAD * (picked**2).sum()


def harm_per_saving(c, d, savings, chosen, f):
    harm = raw_objective(c, d, [*chosen, f]) - raw_objective(c, d, chosen)
    return harm / max(savings[f], 1) if harm > 0 else harm * max(savings[f], 1)


def greedy(c, d, savings, excess, layer_of, active, near=2):
    """The choice, by the objective from scratch for each candidate; returns it, and how many rounds were needed.

    A round chooses among the filters that save ``near`` times too much, the best ones one by one.
    """
    chosen, rounds = [], 0
    while excess(chosen) > 0:
        free = [f for f in np.flatnonzero(active) if f not in chosen]
        start, too_much = list(chosen), excess(chosen)
        ranked = sorted(free, key=lambda f: harm_per_saving(c, d, savings, start, f))
        pool = []
        while len(pool) < len(ranked) and (
            sum(max(savings[f], 1) for f in pool) < near * too_much or len(pool) < near * len(set(layer_of))
        ):
            pool.append(ranked[len(pool)])
        while excess(chosen) > 0:
            left = [f for f in free if f not in chosen]
            may = [f for f in pool if f in left and sum(layer_of[g] == layer_of[f] for g in left) > 1]
            if not may:
                break
            # Of an objective that counts what this round has chosen: what went before is drift.
            drift, now = d - c[:, start].sum(axis=1), chosen[len(start) :]
            chosen.append(min(may, key=lambda f: harm_per_saving(c, drift, savings, now, f)))
        if len(chosen) == len(start):
            break
        rounds += 1
    return chosen, rounds


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.2])
def test_the_best_filter_by_its_saving_goes_next_until_the_limit_is_kept(seed, share):
    rng = np.random.default_rng(seed)
    chain = Chain([5, 4, 6, 3])
    c = rng.normal(size=(12, 18)) * rng.uniform(0.05, 2, size=18)
    d, active = rng.normal(size=12), rng.uniform(size=18) < 0.9
    active[[0, 5, 9, 15]] = True
    savings, limit = chain.savings(active), share * chain.cost(active)

    def excess(filters):
        return int(np.ceil(chain.without(active, filters) - limit))

    expected, _ = greedy(c, d, savings, excess, chain.layer_of, active)
    given = np.where(active, c, np.nan)
    got = joint_choice(given, d, savings, excess, chain.layer_of, active)
    assert got.tolist() == expected
    assert excess(got) <= 0 < excess(got[:-1])


def test_where_the_near_ones_do_not_do_what_they_leave_is_chosen_from(monkeypatch):
    """Savings that overlap: of a chain whose layers shrink together, each further filter saves less."""
    calls, original = [], joint.joint_choice
    monkeypatch.setattr(joint, "joint_choice", lambda *arguments: calls.append(0) or original(*arguments))
    several = 0
    for seed in range(8):
        rng, chain = np.random.default_rng(seed), Chain([9, 9, 9])
        c, d = rng.normal(size=(10, 27)) * rng.uniform(0.05, 2, size=27), rng.normal(size=10)
        active = np.ones(27, dtype=bool)
        savings = 8 * chain.savings(active)  # far more than is saved in the end

        def excess(filters, chain=chain, active=active):
            return chain.without(active, filters) - 60

        expected, rounds = greedy(c, d, savings, excess, chain.layer_of, active)
        calls.clear()
        got = original(c, d, savings, excess, chain.layer_of, active)
        assert got.tolist() == expected
        assert excess(got) <= 0 < excess(got[:-1])
        assert len(calls) == rounds - 1
        several += rounds > 1
    assert several >= 4


def test_a_limit_that_cannot_be_kept_leaves_one_filter_in_each_layer():
    rng, chain = np.random.default_rng(0), Chain([5, 1, 6])
    c, d, active = rng.normal(size=(8, 12)), rng.normal(size=8), np.ones(12, dtype=bool)
    active[[2, 7]] = False
    c[:, ~active] = np.nan
    for savings in (chain.savings(active), np.full(12, 1e9)):  # in one round, and in several
        got = joint_choice(c, d, savings, lambda filters: chain.without(active, filters), chain.layer_of, active)
        kept = active.copy()
        kept[got] = False
        assert np.bincount(chain.layer_of[kept]).tolist() == [1, 1, 1]
        assert len(set(got)) == len(got) == 3 + 0 + 4
        assert active[got].all()


def test_a_limit_that_is_kept_already_asks_for_nothing():
    got = joint_choice(np.ones((2, 3)), np.ones(2), np.ones(3), lambda filters: 0, np.zeros(3, int), np.ones(3, bool))
    assert got.tolist() == []


def test_of_two_filters_that_do_the_same_harm_the_one_that_costs_more_goes():
    c, d = np.array([[1.0, 1.0, 1.0]]), np.zeros(1)
    savings = np.array([10.0, 30.0, 20.0])

    def choice(c, d):
        return joint_choice(c, d, savings, lambda fs: 1 - len(fs), np.zeros(3, int), np.ones(3, bool)).tolist()

    assert choice(c, d) == [1]
    assert choice(c * [1, 2, 1], d) == [2]  # four times the harm, three times the saving
    assert choice(c, np.array([9.0])) == [1]  # so of those that do good


def test_sites_choose_what_one_site_with_all_images_chooses():
    """Each has half of the rows; sums over images are all that they share."""
    rng, chain = np.random.default_rng(3), Chain([5, 4, 6])
    c, d, active = rng.normal(size=(12, 15)), rng.normal(size=12), np.ones(15, dtype=bool)
    savings = chain.savings(active)
    sums = []

    def excess(filters):
        return chain.without(active, filters) - chain.cost(active) // 3

    def chosen(rows, all_reduce):
        return joint_choice(c[rows], d[rows], savings, excess, chain.layer_of, active, all_reduce).tolist()

    whole = chosen(slice(None), lambda part: sums.append(part.clone()) or part)
    received = iter(sums)
    assert chosen(slice(0, 6), lambda part: next(received)) == whole
    assert next(received, None) is None
    assert chosen(slice(0, 6), lambda part: part) != whole
