"""The joint choice of filters, against its objective written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import draw_images, network

from lrp_core.control import methods
from lrp_core.importance.joint import SPREAD, joint_order


def objective(contributions, drift, chosen):
    """What is to be small, as the module's page has it, of centred logits."""
    c = contributions[..., list(chosen)]
    c, d = c - c.mean(axis=1, keepdims=True), drift - drift.mean(axis=1, keepdims=True)
    return ((d - c.sum(axis=2)) ** 2).sum() + SPREAD * (c**2).sum()


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
    places = joint_order(contributions, drift, layers, active, 6)
    assert np.isinf(places[~active]).all()
    assert sorted(places[active]) == list(range(10))
    order, chosen = np.argsort(places)[:6], []
    for filter_ in order:
        left = [
            f
            for f in np.flatnonzero(active)
            if f not in chosen and sum(layers[g] == layers[f] and g not in chosen for g in np.flatnonzero(active)) > 1
        ]
        values = {f: objective(contributions, drift, [*chosen, f]) for f in left}
        assert filter_ == min(values, key=values.get)
        chosen.append(filter_)


def test_what_cancels_goes_together_and_what_adds_up_does_not():
    """Two filters that cancel each other are taken before two smaller ones that add up."""
    contributions = np.zeros((1, 2, 4))
    contributions[0, 0] = [1.0, -1.0, 0.99, 0.99]  # to the first class, of four filters
    places = joint_order(contributions, np.zeros((1, 2)), np.zeros(4, dtype=int), np.ones(4, dtype=bool), 2)
    assert places[2] == 0
    assert places[1] == 1  # the one that makes good what the first has done, though larger than its twin


def test_drift_is_made_good():
    """The first logit has gained 1 by earlier steps: the filter that gave it goes, before one that gave nothing."""
    contributions = np.zeros((1, 2, 3))
    contributions[0, 0] = [1.0 / (1 + SPREAD), 0.0, -0.1]
    drift = np.array([[1.0, 0.0]])
    assert joint_order(contributions, drift, np.zeros(3, int), np.ones(3, bool), 1).argmin() == 0
    assert joint_order(contributions, 0 * drift, np.zeros(3, int), np.ones(3, bool), 1).argmin() == 1


def test_what_all_logits_share_does_not_count():
    contributions = np.zeros((2, 3, 3))
    contributions[..., 0] = 5.0  # to all logits alike
    contributions[:, 0, 1] = 0.1
    contributions[:, 0, 2] = 0.2
    assert joint_order(contributions, np.zeros((2, 3)), np.zeros(3, int), np.ones(3, bool), 1).argmin() == 0


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
