"""Costs and smallest networks by hand."""

import numpy as np
import pandas as pd
import pytest
from straight_lines import BASELINES, areas_of, straight_lines

from lrp_core.study.analysis.comparisons import auc_table
from lrp_core.study.analysis.costs import cost_table, smallest_network, smallest_networks, time_spent


@pytest.fixture
def measured():
    """Two backbones; the best unpruned network is b's, by cross-fitted accuracy; the smallest near it is a's."""
    rows = []
    for seed in (0, 1):
        rows += [("a", "px-static", seed, 0.0, 500, 0.70, 0.90)]
        rows += [("a", "px-static", seed, 0.5, 40, 0.79, 0.60 + 0.02 * seed)]
        rows += [("b", "px-static", seed, 0.0, 900, 0.80, 0.70), ("b", "px-static", seed, 0.5, 300, 0.76, 0.99)]
        rows += [("b", "kcm", seed, 0.0, 900, 0.80, 0.70), ("b", "kcm", seed, 0.9, 10, 0.2, 0.9)]
    columns = ["backbone", "method", "seed", "rate", "multiply_adds", "crossfitted", "accuracy"]
    table = pd.DataFrame(rows, columns=columns).assign(dataset="d", rate_requested=lambda rows: rows["rate"])
    return table.assign(parameters=table["multiply_adds"], overlap=0.0)


def test_smallest_networks_are_chosen_without_the_test(measured):
    table = smallest_networks(measured, (0.0, 0.01, 0.05)).set_index(["method", "max_accuracy_drop"])
    assert table.loc[("unpruned", 0.0), ["backbone", "multiply_adds", "accuracy"]].tolist() == ["b", 900, 0.7]
    assert table.loc[("px-static", 0.0), "multiply_adds"] == 900
    near = table.loc[("px-static", 0.01)]
    assert near[["found", "seeds", "backbone", "multiply_adds"]].tolist() == [2, 2, "a", 40]
    assert near["accuracy"] == pytest.approx(0.61)
    assert near["difference"] == pytest.approx(-0.09)
    assert near["low"] < -0.09 < near["high"]
    assert table.loc[("kcm", 0.05), "multiply_adds"] == 900


def test_smallest_networks_are_of_the_same_seeds(measured):
    lone = measured.query("method == 'px-static' and backbone == 'b' and seed == 1").assign(seed=2, accuracy=0.1)
    expected = smallest_networks(measured)
    pd.testing.assert_frame_equal(smallest_networks(pd.concat([measured, lone], ignore_index=True)), expected)


def test_a_guess_of_an_earlier_version_is_no_small_network(measured):
    """Its rows for rates held guesses, of which the calibration images think as well as of any."""
    choosing = measured.query("method == 'px-static'").assign(method="early-exit", rate_requested=np.nan)
    guess = choosing.query("rate > 0").assign(rate_requested=0.95, multiply_adds=0, crossfitted=0.9)
    together = pd.concat([measured, guess, choosing], ignore_index=True)
    table = smallest_networks(together, (0.01,)).set_index("method")
    assert table.loc["early-exit", "multiply_adds"] == table.loc["px-static", "multiply_adds"] == 40


def test_smallest_network_of_a_run(measured):
    run = measured.query("backbone == 'b' and method == 'px-static' and seed == 0")
    assert smallest_network(run, 0.05)["multiply_adds"] == 300
    assert smallest_network(run, 0.01)["multiply_adds"] == 900


def test_cost_is_what_a_run_spends():
    """Of seed 2, which only one method has, nothing is read: neither its steps nor its area."""
    networks = straight_lines(dynamic=0.4, random=0.2, px_iterative=0.1)
    networks = networks[networks["backbone"] == "small"]
    lone = networks.query("method == 'dynamic' and seed == 1").assign(seed=2, accuracy=0.0)
    networks = pd.concat([networks, lone], ignore_index=True)
    auc = auc_table(areas_of(networks), networks, [*BASELINES, "random"])
    steps = [("dynamic", 0, 3), ("dynamic", 0, 8), ("dynamic", 1, 4), ("dynamic", 2, 900)]
    steps += [("random", seed, 0) for seed in (0, 1)]
    steps += [("early-exit+px-static+refit", 0, 0), ("budget-search", 1, 0)]
    traces = pd.DataFrame(steps, columns=["method", "seed", "evaluations"]).assign(dataset="d", backbone="small")
    table = cost_table(traces, auc).set_index("method")
    assert list(table.index) == ["random", "dynamic"]
    assert table.loc["dynamic", ["steps", "evaluations", "seeds"]].tolist() == [1.5, 6.0, 2]
    assert table.loc["dynamic", "auc"] == pytest.approx((0.6 + 0.61) / 2)
    assert table.loc["dynamic", "difference"] == pytest.approx(0.1)
    assert table.loc["random", ["evaluations", "difference", "low", "high"]].tolist() == [0.0] * 4


def test_time_spent(tmp_path):
    stages = {
        "dynamic": [("dynamic", 0, 10.0), ("dynamic", 1, 20.0)],
        "baseline": [("px-static", 0, 1.0), ("px-static", 1, 2.06), ("px-static", 2, 900.0)],
        "budget_search": [("budget-search", 1, 3.0), ("budget-search", 0, 4.0)],
    }
    for stage, rows in stages.items():
        (folder := tmp_path / "runs" / "x" / stage).mkdir(parents=True)
        pd.DataFrame(rows, columns=["method", "seed", "seconds"]).to_csv(folder / "seconds.csv", index=False)
    spent = time_spent(tmp_path, ["x"])
    assert spent.set_index("method")["seconds"].to_dict() == {"budget-search": 3.5, "dynamic": 15.0, "px-static": 1.53}
