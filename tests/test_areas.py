"""Areas and budgets by hand; means of the same seeds, and nothing over filters for methods that choose."""

import numpy as np
import pandas as pd
import pytest
import torch
from straight_lines import BASELINES, areas_of, straight_lines

from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean
from lrp_core.study.analysis.areas import area_table, budget_table, class_table, metrics, on_common_seeds
from lrp_core.study.analysis.comparisons import auc_table
from lrp_core.study.runs.measuring import BUDGETS


@pytest.fixture
def networks():
    """Two conventional methods and the controller."""
    return straight_lines(px_static=0.2, px_iterative=0.1, dynamic=0.4)


def choosing(seeds=(0, 1)):
    """Networks of a method that chooses, with the rows for rates, some of them guesses, that earlier versions wrote.

    All of its networks have lost four fifths of their filters; at "0 %" stands the best of them.
    """
    sizes = pd.DataFrame(
        [(0.8, 400, 0.75, 0.25), (0.9, 100, 0.65, 0.35)], columns=["rate", "multiply_adds", "accuracy", "squared_error"]
    )
    taken = pd.concat([sizes.iloc[[0]], sizes.iloc[[1]]]).assign(rate_requested=[0.0, 0.9])
    guess = pd.DataFrame([{"rate": 0.95, "multiply_adds": 0, "accuracy": 0.5, "squared_error": 0.0}])
    rows = pd.concat([taken, guess.assign(rate_requested=0.95), sizes.assign(rate_requested=np.nan)])
    whole = {"rate": 0.0, "multiply_adds": 1000, "accuracy": 0.8, "squared_error": 0.3, "rate_requested": np.nan}
    rows = pd.concat([rows, pd.DataFrame([whole])]).assign(harmonic_mean=lambda some: some["accuracy"] / 2)
    rows = rows.assign(crossfitted=1 - rows["squared_error"], accuracy_a=rows["accuracy"], accuracy_b=rows["accuracy"])
    rows = rows.assign(dataset="d", backbone="small", method="early-exit", parameters=rows["multiply_adds"] // 10)
    rows["overlap"] = 0.0
    return pd.concat([rows.assign(seed=seed) for seed in seeds], ignore_index=True)


@pytest.mark.parametrize(("method", "wrong"), [("px-static+refit", "crossfitted"), ("px-static", "squared_error")])
def test_a_budget_buys_the_best_network_that_is_small_enough_by_what_its_head_can_tell(method, wrong):
    """Of 1000 multiply-adds: the one of 300 looks better than the whole, that of 20 is the last, then there is none."""
    rows = [(1000, 0.4, 0.61), (300, 0.3, 0.55), (250, 0.5, 0.99), (20, 0.6, 0.39)]
    measured = pd.DataFrame(rows, columns=["multiply_adds", "squared_error", "accuracy"])
    measured = measured.assign(crossfitted=1 - measured["squared_error"], rate_requested=np.nan)
    measured[wrong] = 0.5  # says nothing
    measured = measured.assign(rate=[0, 0.5, 0.6, 0.9], dataset="d", backbone="b", method=method, seed=3, overlap=0.2)
    measured = measured.assign(harmonic_mean=measured["accuracy"] / 2, accuracy_a=0.5, accuracy_b=0.5)
    measured["accuracy_other"] = np.nan  # of another task
    bought = budget_table(measured)
    assert bought["budget"].tolist() == pytest.approx(np.logspace(0, -2, 21))
    expected = [0.55] * 6 + [0.99] + [0.39] * 10 + [0.5] * 4
    assert bought["accuracy"].tolist() == expected  # 1000 to 316: .55; 251: .99; 200 to 25.1: .39; less than 20: none
    assert bought["harmonic_mean"].tolist() == [accuracy / 2 for accuracy in expected[:17]] + [0.0] * 4
    assert bought["guess"].tolist() == [False] * 17 + [True] * 4
    assert (bought["multiply_adds"] / bought["budget"]).tolist() == pytest.approx([1000] * 21)
    assert bought["overlap"].tolist() == [0.2] * 21
    assert len(BUDGETS) == 21


@pytest.mark.parametrize("n_classes", [2, 4, 10])
def test_a_missing_network_is_judged_as_one_that_has_collapsed_to_one_class(n_classes):
    targets = torch.arange(60) % n_classes
    collapsed = class_accuracies(torch.zeros(60, dtype=int), targets, n_classes)
    row = {"dataset": "d", "backbone": "b", "method": "px-static", "seed": 0, "rate": 0.0, "rate_requested": 0.0}
    row |= {"crossfitted": 0.9, "squared_error": 0.1, "accuracy": 0.9, "harmonic_mean": 0.9, "multiply_adds": 1000}
    row["overlap"] = 0.0
    whole = pd.DataFrame([row | {f"accuracy_{k}": 0.9 for k in range(n_classes)}])
    missing = budget_table(whole).iloc[-1]
    assert missing["guess"]
    assert missing["accuracy"] == pytest.approx(collapsed.mean().item())
    assert missing["harmonic_mean"] == harmonic_mean(collapsed)


@pytest.mark.parametrize("column", ["crossfitted", "squared_error", "overlap"])
def test_curves_of_an_earlier_version_are_refused(networks, column):
    """Whether no file has the column, or only one of two that are read together."""
    lack = "lack one of crossfitted, squared_error, overlap: an earlier version wrote them, run them anew"
    with pytest.raises(ValueError, match=f"curves of small on d, large on d {lack}"):
        budget_table(networks.drop(columns=column))
    with pytest.raises(ValueError, match=f"curves of large on d {lack}"):
        budget_table(networks.assign(**{column: networks[column].where(networks["backbone"] != "large")}))


def test_areas_by_hand(networks):
    table = areas_of(networks).set_index(["backbone", "method", "seed"])
    one = table.loc[("small", "dynamic", 1)]
    assert one["accuracy"] == pytest.approx((0.8 + 0.42) / 2)
    assert one["accuracy_a"] == pytest.approx((0.9 + 0.52) / 2)
    # 100 % of the multiply-adds: .8; then, down to 10 %, .42 (nine trapezoids after the first); then nothing.
    assert one["multiply_adds"] == pytest.approx((0.8 / 2 + 0.42 * 10 + 0.5 * 9 + 0.5 / 2) / 20)


def test_methods_that_choose_have_no_area_over_filters(networks):
    """Though their committed curves have rows for rates: the area there would be that of networks far from the rate."""
    table = areas_of(pd.concat([networks, choosing()], ignore_index=True)).set_index(["backbone", "method"])
    assert table.loc[("small", "early-exit"), ["accuracy", "harmonic_mean", "accuracy_a"]].isna().all(axis=None)
    assert table.loc[("small", "dynamic"), "accuracy"].notna().all()
    # .75 down to 400 multiply-adds (four steps), .65 down to 100, .5 beyond; the guess that looked perfect is none.
    (area,) = set(table.loc[("small", "early-exit"), "multiply_adds"].round(12))
    assert area == pytest.approx((0.75 / 2 + 0.75 * 3 + 0.65 * 7 + 0.5 * 9 + 0.5 / 2) / 20)


def test_the_order_of_methods_and_of_columns_is_that_of_the_networks(networks):
    table = areas_of(networks)
    assert table["method"].unique().tolist() == ["px-static", "px-iterative", "dynamic"]
    assert list(table) == [
        *("dataset", "backbone", "method", "seed", "accuracy"),
        *("harmonic_mean", "accuracy_a", "accuracy_b", "multiply_adds", "overlap"),
    ]


def test_an_order_that_ends_early_has_no_area(networks):
    short = networks[(networks["method"] != "dynamic") | (networks["rate"] == 0)]
    with pytest.raises(ValueError, match=r"rates must increase from 0 to 0\.95"):
        area_table(short, budget_table(short))


def test_common_seeds_are_those_of_every_method(networks):
    lone = networks[(networks["method"] == "dynamic") & (networks["backbone"] == "small")].assign(seed=2)
    gap = networks[(networks["method"] != "px-static") | (networks["backbone"] != "large") | (networks["seed"] != 0)]
    common = on_common_seeds(pd.concat([gap, lone]))
    assert common.groupby(["backbone", "method"])["seed"].unique().map(list).to_dict() == {
        (backbone, method): [0, 1] if backbone == "small" else [1]
        for backbone in ("small", "large")
        for method in ("px-static", "px-iterative", "dynamic")
    }
    within_data_set = on_common_seeds(pd.concat([gap, lone]), ["dataset"])
    assert within_data_set["seed"].unique().tolist() == [1]
    with pytest.raises(ValueError, match=r"no seed in common.*'px-static': \[0, 1\].*'kcm': \[7\]"):
        on_common_seeds(pd.concat([networks, lone.assign(method="kcm", seed=7)]))


def test_class_table(networks):
    lone = networks.query("method == 'dynamic' and seed == 1").assign(seed=2, accuracy_a=0.0, accuracy=0.0)
    together = pd.concat([networks, lone, choosing((0,))], ignore_index=True)
    table = class_table(areas_of(together)).set_index(["backbone", "method"])
    assert table.loc["small"].index.tolist() == ["dynamic", "px-static", "px-iterative"]
    assert table.loc[("small", "dynamic"), ["seeds", "a", "b"]].tolist() == pytest.approx([2, 0.705, 0.505])


def test_metrics(networks):
    areas = areas_of(pd.concat([networks, choosing()], ignore_index=True))
    numbers = metrics(areas, auc_table(areas, networks, BASELINES))
    assert list(numbers) == ["small", "large"]
    assert list(numbers["small"]) == ["px-static", "px-iterative", "dynamic", "early-exit"]
    over = areas.groupby(["backbone", "method"])["multiply_adds"].mean()
    static = {"area_over_multiply_adds": over["small", "px-static"], "auc": 0.505, "retention": 0.63125}
    assert numbers["small"]["px-static"] == pytest.approx(static, abs=1e-6)
    assert numbers["large"]["dynamic"]["retention"] == pytest.approx(0.655 / 0.9, abs=1e-6)
    assert list(numbers["small"]["early-exit"]) == ["area_over_multiply_adds"]
