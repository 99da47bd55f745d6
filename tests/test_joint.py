"""The joint choice of filters, against its objective written out."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import draw_images, network
from torch.utils._python_dispatch import TorchDispatchMode

from lrp_core.control import contributions as contributions_module
from lrp_core.control import methods
from lrp_core.control.contributions import Contributions
from lrp_core.importance import contribution
from lrp_core.importance.contribution import Contribution
from lrp_core.importance.joint import SPREAD, joint_order
from lrp_core.pruning.network import PrunedNetwork


def objective(contributions, drift, chosen):
    """What is to be small, as the module's page has it, of centred logits."""
    c = contributions[..., list(chosen)]
    c, d = c - c.mean(axis=1, keepdims=True), drift - drift.mean(axis=1, keepdims=True)
    return ((d - c.sum(axis=2)) ** 2).sum() + SPREAD * (c**2).sum()


def whole(contributions):
    """All of them as one chunk, to centred logits."""
    return [(slice(None), slice(None), contributions - contributions.mean(axis=1, keepdims=True))]


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
