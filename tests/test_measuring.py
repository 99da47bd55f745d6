"""Which measured network stands for a rate or a budget, by hand; and what was measured, against plain removal."""

import numpy as np
import pandas as pd
import pytest
import torch
from miniature import SETTINGS, Miniature
from torch import nn

from lrp_core.graph.truncation import classifier, up_to
from lrp_core.metrics.cost import multiply_adds
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.ridge_head import fit_heads, pooled_features
from lrp_core.study.runs.finished import within
from lrp_core.study.runs.measuring import GRID, TAIL, at_rates, choose, chooses, measured_once, on_grid
from lrp_core.study.runs.runner import run, write_runs


def measured(*rows):
    return pd.DataFrame(rows, columns=["rate", "squared_error", "multiply_adds", "accuracy"]).assign(truncation="")


@pytest.mark.parametrize("refitted", [True, False])
def test_the_best_that_a_head_can_tell_is_chosen_of_equal_ones_the_smallest(refitted):
    networks = measured((0.0, 0.1, 100, 0.5), (0.3, 0.2, 60, 0.9), (0.5, 0.2, 40, 0.1), (0.7, 0.2, 50, 0.8))
    if refitted:
        networks["crossfitted"] = 0.5
    else:  # with outputs of no scale
        networks["crossfitted"], networks["squared_error"] = 1 - networks["squared_error"], 0.5

    def chosen(small_enough):
        return choose(networks, small_enough, refitted)

    assert chosen(networks["rate"] >= 0)["rate"] == 0.0
    assert chosen(networks["rate"] >= 0.1)["rate"] == 0.5  # whatever its accuracy on the test images
    assert chosen(networks["multiply_adds"] > 45)["rate"] == 0.0
    assert chosen(networks["rate"] >= 0.6)["rate"] == 0.7
    assert chosen(networks["rate"] > 0.7) is None


def test_methods_that_choose_are_early_exits_and_budget_searches():
    for name in ("early-exit", "early-exit+px-iterative-abs+refit", "budget-search", "budget-search-filters"):
        assert chooses(name)
    for name in ("px-iterative-abs", "joint+reconstruction+refit", "dynamic", "kcm+refit"):
        assert not chooses(name)
    with pytest.raises(ValueError, match="unknown method 'end-early'"):
        chooses("end-early")


def test_without_a_choice_the_first_networks_are_those_of_the_grid():
    rates = [*GRID, *TAIL]
    curve = on_grid(measured(*((rate + 0.001, 0.5, 1, 0.5) for rate in rates)), choosing=False)
    assert curve["rate"].tolist() == [rate + 0.001 for rate in rates]
    assert curve["rate_requested"][: len(GRID)].tolist() == list(GRID)
    assert curve["rate_requested"][len(GRID) :].isna().all()
    short = on_grid(measured((0.0, 0.5, 1, 0.5), (0.06, 0.5, 1, 0.5)), choosing=False)
    assert short["rate_requested"].tolist() == [0.0, 0.05]


@pytest.mark.parametrize("n_networks", [1, 24, 40])
def test_networks_of_a_method_that_chooses_stand_for_no_rate(n_networks):
    networks = measured(*[(0.5, 0.1, 50, 0.2)] * n_networks)
    curve = on_grid(networks, choosing=True)
    assert curve["rate_requested"].isna().all()
    pd.testing.assert_frame_equal(curve[networks.columns], networks)


def test_rows_of_an_earlier_version_are_told_apart_by_their_method():
    """It wrote the choice at each rate, a guess where there was none, before the networks of a method that chooses."""
    read = measured((0.0, 0.1, 100, 0.9), (0.05, 0.1, 90, 0.8), (0.96, 0.1, 5, 0.1))
    read = read.assign(method="px-static", rate_requested=[0.0, 0.05, np.nan])
    chosen = measured((0.6, 0.1, 40, 0.8), (0.95, 0.5, 0, 0.5)).assign(rate_requested=[0.0, 0.95])
    networks = measured((0.0, 0.2, 100, 0.9), (0.6, 0.1, 40, 0.8)).assign(rate_requested=np.nan)
    early = pd.concat([chosen, networks]).assign(method="early-exit")
    both = pd.concat([read, early], ignore_index=True)
    assert at_rates(both).index.tolist() == [0, 1]
    assert measured_once(both).index.tolist() == [0, 1, 2, 5, 6]
    assert at_rates(both[:0]).empty


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workspace of noise, with heads that are fitted to it."""
    work = Miniature(tmp_path_factory.mktemp("curves"))
    heads = {}
    for seed in (0, 1):
        calibration = work.samples(seed, "calibration")
        features = pooled_features(work.backbone, calibration.images)
        heads[seed] = fit_heads(features, calibration.labels, torch.arange(36) % 3)
    work.write_heads(heads)
    return work


def plainly(work, truncation, removed):
    """Truncate a backbone, remove filters, fit a head and measure, with nothing kept from anywhere."""
    calibration, test, fold = work.samples(0, "calibration"), work.samples(0, "test"), work.out_of_fold_heads(0).fold
    backbone = up_to(work.backbone, truncation) if truncation else work.backbone
    zeros = torch.zeros(3, pooled_features(backbone, test.images[:1]).shape[1])
    network = PrunedNetwork(classifier(backbone, zeros), calibration.images)
    network.remove(removed)
    backbone = network.model.backbone
    heads = fit_heads(features := pooled_features(backbone, calibration.images), calibration.labels, fold)

    def by_class(hits, labels):
        return [np.mean([hit for hit, label in zip(hits, labels, strict=True) if label == k]) for k in range(3)]

    outputs = [heads.out_of_fold.weight[k] @ x for x, k in zip(features, fold, strict=True)]
    judged = [output.argmax() == y for output, y in zip(outputs, calibration.labels, strict=True)]
    missed = [(z + 1 / 3 - torch.eye(3)[y]).square().sum() for z, y in zip(outputs, calibration.labels, strict=True)]
    predicted = (pooled_features(backbone, test.images) @ heads.weight.T).argmax(dim=1)
    return {
        "crossfitted": np.mean(by_class(judged, calibration.labels)),
        "squared_error": np.mean(by_class(missed, calibration.labels)),
        "accuracy": np.mean(by_class(predicted == test.labels, test.labels)),
        "multiply_adds": multiply_adds(classifier(backbone, heads.weight), test.images[:1]),
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()) + heads.weight.numel(),
        "rate": 1 - sum(layer.out_channels for layer in backbone.modules() if isinstance(layer, nn.Conv2d)) / 80,
    }


@pytest.mark.parametrize("name", ["px-static+refit", "early-exit+px-static+refit"])
def test_measured_networks_are_those_that_plain_removal_gives(work, name, tmp_path):
    one, early = run(work, name, 0, SETTINGS), name.startswith("early-exit")
    assert set(one.orders) <= ({"1", "3"} if early else {""})
    assert one.curve["rate_requested"].dropna().tolist() == ([] if early else list(GRID))
    for _, row in one.curve.iloc[:: 5 if early else 6].iterrows():
        order = one.orders[row["truncation"]][: row["removed"]] if row["removed"] else np.array([], dtype=int)
        for column, value in plainly(work, row["truncation"], order).items():
            assert row[column] == pytest.approx(value), (column, row["truncation"], row["removed"])
    # Later stages find the same networks again.
    for stage, runs in (
        ("baseline", {(name, 0): one}),
        ("dynamic", {("dynamic", 0): run(work, "dynamic", 0, SETTINGS)}),
        ("budget_search", {("budget-search", 0): run(work, "budget-search", 0, SETTINGS)}),
    ):
        write_runs(work, stage, runs, tmp_path)
    test = work.samples(0, "test")
    whole, budgets = one.curve["multiply_adds"].max(), (1.0, 0.3, 0.02)
    for budget, network in within(work, name, 0, budgets):
        row = choose(one.curve, one.curve["multiply_adds"] <= budget * whole, refitted=True)
        predicted = network.model(test.images).argmax(dim=1)
        accuracies = [(predicted[test.labels == k] == k).float().mean().item() for k in range(3)]
        assert np.mean(accuracies) == pytest.approx(row["accuracy"], abs=1e-6)
        assert multiply_adds(network.model, test.images[:1]) == row["multiply_adds"]
    assert list(within(work, name, 0, [0.0])) == []
    with pytest.raises(ValueError, match=r"unknown run '.*px-static\+refit/1'; choose one of: .*px-static\+refit/0"):
        next(within(work, name, 1, [1.0]))
