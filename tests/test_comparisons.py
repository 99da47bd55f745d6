"""Comparisons by hand: paired, on the same seeds, and of what can be compared."""

import numpy as np
import pandas as pd
import pytest
from straight_lines import BASELINES, areas_of, straight_lines

from lrp_core.study.analysis.ablations import ablation_table
from lrp_core.study.analysis.areas import budget_table
from lrp_core.study.analysis.comparisons import (
    auc_table,
    chance_note,
    claim,
    collapse_table,
    compared,
    comparison_table,
    where_both_have_networks,
)
from lrp_core.study.analysis.costs import smallest_networks


@pytest.fixture
def networks():
    """Two conventional methods, and one that is better by more in the second seed."""
    lines = straight_lines(dynamic=0.4, px_static=0.2, px_iterative=0.1)
    more = 0.01 * ((lines["method"] == "dynamic") & (lines["seed"] == 1) & (lines["rate"] > 0))
    return lines.assign(accuracy=lines["accuracy"] + more, harmonic_mean=lines["harmonic_mean"] + more / 2)


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_an_interval_is_wider_where_seeds_share_a_fifth_of_the_images(n_seeds):
    one, other = (pd.Series(values) for values in np.random.default_rng(0).random((2, n_seeds)))
    plain, corrected = compared(one, other, 0.0), compared(one, other, 0.2)
    wider = ((1 / n_seeds + 0.2 / 0.8) / (1 / n_seeds)) ** 0.5
    assert corrected["high"] - corrected["low"] == pytest.approx(wider * (plain["high"] - plain["low"]))
    assert corrected["difference"] == plain["difference"]
    assert corrected["p"] > plain["p"]


@pytest.mark.parametrize(
    "table",
    [
        lambda rows: auc_table(areas_of(rows), rows, ["px-static"]),
        lambda rows: comparison_table(areas_of(rows), "dynamic", ["px-static"]),
        lambda rows: where_both_have_networks(budget_table(rows), "dynamic", ["px-static"]),
        lambda rows: ablation_table(areas_of(rows)),
        lambda rows: smallest_networks(rows, [0.8]),
    ],
    ids=["auc", "comparisons", "where_both_have_networks", "ablations", "smallest"],
)
def test_intervals_of_every_table_are_corrected_each_task_by_its_own_overlap(networks, table):
    """Two seeds: (1/2 + 1/4) / (1/2) times the variance where each tests a fifth of the images, 3 times for a half."""
    networks = networks.replace({"method": {"px-iterative": "px-iterative-abs"}}).assign(dataset=networks["backbone"])
    overlap = networks["backbone"].map({"small": 0.2, "large": 0.5})
    plain, corrected = table(networks), table(networks.assign(overlap=overlap))
    width, wider = plain["high"] - plain["low"], plain["backbone"].map({"small": 1.5**0.5, "large": 3**0.5})
    assert set(plain["backbone"][width > 0.01]) == {"small", "large"}
    np.testing.assert_allclose(corrected["high"] - corrected["low"], wider * width)


def test_auc_table_compares_with_the_best_baseline_of_each_backbone(networks):
    table = auc_table(areas_of(networks), networks, BASELINES).set_index(["backbone", "method"])
    assert list(table.index) == [
        (name, method) for name in ("small", "large") for method in ("dynamic", "px-static", "px-iterative")
    ]
    new, old = table.loc["small", "dynamic"], table.loc["small", "px-static"]
    assert old["verdict"] == "the best baseline"
    assert old["auc"] == pytest.approx((0.5 + 0.51) / 2)
    assert new["auc"] == pytest.approx((0.6 + 0.615) / 2)
    assert new["difference"] == pytest.approx(0.1025)
    assert new["gain"] == pytest.approx(0.1025 / 0.505)
    assert new["retention"] == pytest.approx(0.6075 / 0.8)
    assert new["auc_harmonic_mean"] == pytest.approx(0.6075 / 2)
    assert new["verdict"] == "better: the interval lies above 0"
    assert table.loc[("small", "px-iterative"), "verdict"] == "worse: the interval lies below 0"
    assert table.loc[("large", "dynamic"), "retention"] == pytest.approx(0.6575 / 0.9)
    assert table["seeds"].tolist() == [2] * 6


@pytest.mark.parametrize("more", ["dynamic", "px-static"])
def test_all_rows_of_an_auc_table_are_of_the_same_seeds(networks, more):
    """Whichever method was run on more of them; a hard third seed would make its mean another one."""
    lone = networks[(networks["method"] == more) & (networks["seed"] == 1)]
    hard = lone.assign(seed=2, accuracy=lone["accuracy"] / 10, harmonic_mean=0.0)
    expected = auc_table(areas_of(networks), networks, BASELINES)
    together = pd.concat([networks, hard], ignore_index=True)
    pd.testing.assert_frame_equal(auc_table(areas_of(together), together, BASELINES), expected)


def test_a_method_that_chooses_is_not_beside_those_that_are_read_at_a_rate(networks):
    search = networks.query("method == 'dynamic'").assign(method="budget-search", rate_requested=np.nan)
    together = pd.concat([networks, search], ignore_index=True)
    expected = auc_table(areas_of(networks), networks, BASELINES)
    pd.testing.assert_frame_equal(auc_table(areas_of(together), together, BASELINES), expected)
    table = comparison_table(areas_of(together), "budget-search", ["px-static", "dynamic"])
    assert table["measure"].tolist() == ["multiply_adds"] * 4
    table = comparison_table(areas_of(together), "dynamic", ["px-static", "budget-search"])
    assert table.loc[table["measure"] == "accuracy", "other"].tolist() == ["px-static"] * 2


def test_comparisons_and_the_claim_in_words():
    rng = np.random.default_rng(0)
    rows = [
        {"dataset": "d", "backbone": backbone, "method": method, "seed": seed, "overlap": 0.0}
        | {"accuracy": 0.5 + shift + 0.01 * rng.normal(), "multiply_adds": 0.4 + 10 * shift + 0.01 * rng.normal()}
        for backbone in ("small", "large")
        for method, shift in (("dynamic", 0.01), ("px-static", 0.0))
        for seed in range(5)
    ]
    table = comparison_table(pd.DataFrame(rows), "dynamic", ["px-static", "absent"])
    assert table["other"].tolist() == ["px-static"] * 4
    assert table["measure"].tolist() == ["accuracy", "multiply_adds"] * 2
    assert table["p_holm"].tolist() == pytest.approx(stepwise(table["p"].tolist()))
    verdicts = table.groupby("measure")["verdict"].unique()
    assert list(verdicts["multiply_adds"]) == ["better"]
    words = claim(table, "dynamic")
    assert words.startswith("`dynamic`, accuracy averaged from 100 % to 1 % of a network's multiply-adds:\n\n- **d, ")
    assert words.count("- **") == 2
    assert "against `px-static` +0.1" in words
    assert "all 4 comparisons" in words


def stepwise(p):
    """Holm's procedure as he describes it: for each p the least level at which it is still rejected."""
    levels = np.linspace(0, 1, 100_001)
    result = []
    for one in p:
        for level in levels:
            rejected = []
            for i, value in enumerate(sorted(p)):
                if value > level / (len(p) - i):
                    break
                rejected.append(value)
            if one in rejected:
                result.append(level)
                break
        else:
            result.append(1.0)
    return [pytest.approx(value, abs=2e-5) for value in result]


def test_comparisons_of_a_task_are_all_on_the_same_seeds():
    """One sentence says of how many seeds they are, and has one mean of the method that is proposed."""
    worth = {"dynamic": [0.6, 0.7, 0.1], "px-static": [0.5, 0.5, 0.5], "px-iterative": [0.4, 0.3]}
    rows = [
        {"dataset": "d", "backbone": "b", "method": name, "seed": seed, "overlap": 0.0}
        | {"accuracy": value, "multiply_adds": value}
        for name, values in worth.items()
        for seed, value in enumerate(values)
    ]
    table = comparison_table(pd.DataFrame(rows), "dynamic", ["px-static", "px-iterative"])
    assert table["seeds"].tolist() == [2] * 4
    assert table["area"].tolist() == pytest.approx([0.65] * 4)
    assert table["other_area"].tolist() == pytest.approx([0.5, 0.35] * 2)
    assert table["difference"].tolist() == pytest.approx([0.15, 0.3] * 2)


def test_where_there_is_no_network_nothing_is_compared():
    rows = [(100, 0.1, 0.8, "budget-search"), (50, 0.2, 0.7, "budget-search"), (2, 0.5, 0.6, "budget-search")]
    rows += [(100, 0.1, 0.75, "px-static"), (50, 0.2, 0.6, "px-static")]
    measured = pd.DataFrame(rows, columns=["multiply_adds", "squared_error", "accuracy", "method"])
    measured = measured.assign(crossfitted=1 - measured["squared_error"], rate_requested=np.nan)
    measured = measured.assign(rate=1 - measured["multiply_adds"] / 100, dataset="d", backbone="b", harmonic_mean=0.5)
    measured = measured.assign(accuracy_a=0.5, accuracy_b=0.5, overlap=0.0)
    measured = pd.concat([measured.assign(seed=seed) for seed in (0, 1)])
    table = where_both_have_networks(budget_table(measured), "budget-search", ["px-static", "absent"])
    assert table[["other", "seeds"]].to_numpy().tolist() == [["px-static", 2]]
    assert table["down_to"][0] == pytest.approx(10**-0.3)  # 50.1 of 100 multiply-adds
    assert table["difference"][0] == pytest.approx((0.05 + 3 * 0.1) / 4)  # the whole network, then that of 50


def test_how_much_of_a_collapse_is_the_heads():
    name, refitted = "px-static", "px-static+refit"
    rows = [(method, rate, 0.8) for method in (name, refitted) for rate in (0.0, 0.5)]
    rows += [(name, 0.75, 0.4), (refitted, 0.75, 0.7)]
    measured = pd.DataFrame(rows, columns=["method", "rate_requested", "accuracy"])
    measured = pd.concat([measured.assign(seed=seed, dataset="d", backbone="b") for seed in (0, 1)])
    alone = measured.query("method == @name and seed == 0").assign(seed=2, accuracy=0.0)  # the other has no such seed
    table = collapse_table(pd.concat([measured, alone]), name, (0.5, 0.75)).set_index("rate")
    assert table.loc[0.75, ["lost", "lost_refitted", "head_share"]].tolist() == pytest.approx([0.4, 0.1, 0.75])
    assert table["seeds"].tolist() == [2, 2]
    assert np.isnan(table.loc[0.5, "head_share"])  # nothing is lost there
    assert collapse_table(measured[measured["method"] == name], name).empty  # nothing to compare with


def test_where_nothing_can_be_told_is_said():
    rows = {"seed": [0, 0, 1], "measured on": ["training", "test", "test"], "average": [0.9, 0.5, 0.8]}
    heads = pd.DataFrame(rows | {"above chance": [True, False, True]})
    note = chance_note({"vgg16": heads, "alexnet": heads[heads["above chance"]]})
    assert note.splitlines()[2:] == ["- vgg16, seed 0: test accuracy 50%"]
    assert chance_note({"alexnet": heads[heads["above chance"]]}) == ""
