"""Tables by hand."""

import numpy as np
import pandas as pd
import pytest
from lrp_core.study.analysis.areas import area_table, budget_table, class_table, metrics
from lrp_core.study.runs.measuring import BUDGETS

from lrp_core.study.analysis.comparisons import (
    ablation_table,
    auc_table,
    chance_note,
    claim,
    collapse_table,
    comparisons,
    where_both_have_networks,
)
from lrp_core.study.analysis.costs import cost_table, smallest_networks, time_spent
from lrp_core.study.analysis.statistics import above_chance


@pytest.fixture
def networks():
    """Two backbones, three methods, two seeds; straight lines, so that areas over filters are means of their ends."""
    rows = []
    for backbone, offset in (("small", 0.0), ("large", 0.1)):
        for method, end in (("px-static", 0.2), ("px-iterative", 0.1), ("budget-search", 0.4)):
            for seed in (0, 1):
                for rate in (0.0, 0.95):
                    accuracy = (
                        0.8 + offset
                        if rate == 0
                        else end + 0.02 * seed + (0.01 * seed if method == "budget-search" else 0)
                    )
                    rows.append(
                        {"dataset": "d", "backbone": backbone, "method": method, "seed": seed}
                        | {"rate": rate, "rate_requested": rate, "crossfitted": accuracy, "squared_error": 1 - accuracy}
                        | {"multiply_adds": 1000 if rate == 0 else 100, "parameters": 50 if rate == 0 else 10}
                        | {"accuracy": accuracy, "harmonic_mean": accuracy / 2}
                        | {"accuracy_a": accuracy + 0.1, "accuracy_b": accuracy - 0.1}
                    )
    return pd.DataFrame(rows)


def areas_of(networks):
    return area_table(networks, budget_table(networks))


@pytest.mark.parametrize(("method", "wrong"), [("px-static+refit", "crossfitted"), ("px-static", "squared_error")])
def test_a_budget_buys_the_best_network_that_is_small_enough_by_what_its_head_can_tell(method, wrong):
    """Of 1000 multiply-adds: the one of 300 looks better than the whole, that of 20 is the last, then one guesses."""
    rows = [(1000, 0.4, 0.61), (300, 0.3, 0.55), (250, 0.5, 0.99), (20, 0.6, 0.39), (0, 0.1, 0.0)]
    measured = pd.DataFrame(rows, columns=["multiply_adds", "squared_error", "accuracy"])
    measured = measured.assign(crossfitted=1 - measured["squared_error"])
    measured[wrong] = 0.5  # says nothing
    measured = measured.assign(rate=[0, 0.5, 0.6, 0.9, 0.95], dataset="d", backbone="b", method=method, seed=3)
    measured = measured.assign(accuracy_a=0.5, accuracy_b=0.5, accuracy_other=np.nan)  # of another task
    bought = budget_table(measured)
    assert bought["budget"].tolist() == pytest.approx(np.logspace(0, -2, 21))
    expected = [0.55] * 6 + [0.99] + [0.39] * 10 + [0.5] * 4
    assert bought["accuracy"].tolist() == expected  # 1000 to 316: .55; 251: .99; 200 to 25.1: .39; 20 and less
    assert (bought["multiply_adds"] / bought["budget"]).tolist() == pytest.approx([1000] * 21)
    assert len(BUDGETS) == 21


def test_curves_of_an_earlier_version_are_refused(networks):
    of_old = networks.assign(squared_error=networks["squared_error"].where(networks["backbone"] != "large"))
    with pytest.raises(ValueError, match="curves of large on d lack crossfitted or squared_error: an earlier version"):
        budget_table(of_old)


def test_where_one_guesses_nothing_is_compared():
    rows = [(100, 0.1, 0.8, "budget-search"), (50, 0.2, 0.7, "budget-search"), (2, 0.5, 0.6, "budget-search")]
    rows += [(100, 0.1, 0.75, "px-static"), (50, 0.2, 0.6, "px-static")]
    measured = pd.DataFrame(rows, columns=["multiply_adds", "squared_error", "accuracy", "method"])
    measured = measured.assign(crossfitted=1 - measured["squared_error"])
    measured = measured.assign(rate=1 - measured["multiply_adds"] / 100, dataset="d", backbone="b")
    measured = pd.concat([measured.assign(seed=seed, accuracy_a=0.5, accuracy_b=0.5) for seed in (0, 1)])
    table = where_both_have_networks(budget_table(measured), "budget-search", ["px-static", "absent"])
    assert table[["other", "seeds"]].to_numpy().tolist() == [["px-static", 2]]
    assert table["down_to"][0] == pytest.approx(10**-0.3)  # 50.1 of 100 multiply-adds
    assert table["difference"][0] == pytest.approx((0.05 + 3 * 0.1) / 4)  # the whole network, then that of 50


def test_areas_by_hand(networks):
    table = areas_of(networks).set_index(["backbone", "method", "seed"])
    one = table.loc[("small", "budget-search", 1)]
    assert one["accuracy"] == pytest.approx((0.8 + 0.43) / 2)
    assert one["accuracy_a"] == pytest.approx((0.9 + 0.53) / 2)
    # 100 % of the multiply-adds: .8; then, down to 10 %, .43 (nine trapezoids after the first); then guessing.
    assert one["multiply_adds"] == pytest.approx((0.8 / 2 + 0.43 * 10 + 0.5 * 9 + 0.5 / 2) / 20)


def test_auc_table_compares_with_the_best_baseline_of_each_backbone(networks):
    table = auc_table(areas_of(networks), networks, ["px-static", "px-iterative"]).set_index(["backbone", "method"])
    assert list(table.index) == [
        (name, method) for name in ("small", "large") for method in ("budget-search", "px-static", "px-iterative")
    ]
    new, old = table.loc["small", "budget-search"], table.loc["small", "px-static"]
    assert old["verdict"] == "the best baseline"
    assert old["auc"] == pytest.approx((0.5 + 0.51) / 2)
    assert new["auc"] == pytest.approx((0.6 + 0.615) / 2)
    assert new["difference"] == pytest.approx(0.1025)
    assert new["gain"] == pytest.approx(0.1025 / 0.505)
    assert new["retention"] == pytest.approx(0.6075 / 0.8)
    assert new["auc_harmonic_mean"] == pytest.approx(0.6075 / 2)
    assert new["seeds"] == 2
    assert new["verdict"] == "better: the interval lies above 0"
    assert table.loc[("small", "px-iterative"), "verdict"] == "worse: the interval lies below 0"
    assert table.loc[("large", "budget-search"), "retention"] == pytest.approx(0.6575 / 0.9)


def test_only_seeds_of_both_are_compared(networks):
    """A method that was run on more seeds than another is compared on those that both have."""
    lone = networks[(networks["method"] == "budget-search") & (networks["seed"] == 1)].assign(seed=2, accuracy=0.0)
    together = pd.concat([networks, lone])
    table = auc_table(areas_of(together), together, ["px-static", "px-iterative"]).set_index(["backbone", "method"])
    assert table.loc[("small", "budget-search"), "difference"] == pytest.approx(0.1025)
    assert table.loc[("small", "budget-search"), "seeds"] == 2
    assert table.loc[("small", "px-static"), "retention"] == pytest.approx(0.63125)  # of the seeds that it has


def test_comparisons_and_the_claim_in_words(networks):
    rng = np.random.default_rng(0)
    rows = [
        {"dataset": "d", "backbone": backbone, "method": method, "seed": seed}
        | {"accuracy": 0.5 + shift + 0.01 * rng.normal(), "multiply_adds": 0.4 + 10 * shift + 0.01 * rng.normal()}
        for backbone in ("small", "large")
        for method, shift in (("budget-search", 0.01), ("px-static", 0.0))
        for seed in range(5)
    ]
    table = comparisons(pd.DataFrame(rows), "budget-search", ["px-static", "absent"])
    assert table["other"].tolist() == ["px-static"] * 4
    assert table["measure"].tolist() == ["accuracy", "multiply_adds"] * 2
    assert table["p_holm"].tolist() == pytest.approx(stepwise(table["p"].tolist()))
    verdicts = table.groupby("measure")["verdict"].unique()
    assert list(verdicts["multiply_adds"]) == ["better"]
    words = claim(table, "budget-search")
    assert words.startswith("`levers`, accuracy averaged from 100 % to 1 % of a network's multiply-adds:\n\n- **d, ")
    assert words.count("- **") == 2
    assert "against `px-static` +0.1" in words
    assert "all\n4 comparisons together" in words


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


def test_smallest_networks_are_chosen_without_the_test():
    """The best unpruned network is b's, by cross-fitted accuracy; the smallest near it is a's."""
    rows = []
    for seed in (0, 1):
        rows += [("a", "m", seed, 0.0, 500, 0.70, 0.90), ("a", "m", seed, 0.5, 40, 0.79, 0.60 + 0.02 * seed)]
        rows += [("b", "m", seed, 0.0, 900, 0.80, 0.70), ("b", "m", seed, 0.5, 300, 0.76, 0.99)]
        rows += [("b", "other", seed, 0.0, 900, 0.80, 0.70), ("b", "other", seed, 0.9, 10, 0.2, 0.9)]
    columns = ["backbone", "method", "seed", "rate", "multiply_adds", "crossfitted", "accuracy"]
    measured = pd.DataFrame(rows, columns=columns).assign(dataset="d", parameters=lambda rows: rows["multiply_adds"])
    table = smallest_networks(measured, points=(0.0, 0.01, 0.05)).set_index(["method", "points"])
    assert table.loc[("unpruned", 0.0), ["backbone", "multiply_adds", "accuracy"]].tolist() == ["b", 900, 0.7]
    assert table.loc[("m", 0.0), "multiply_adds"] == 900
    near = table.loc[("m", 0.01)]
    assert near[["found", "seeds", "backbone", "multiply_adds"]].tolist() == [2, 2, "a", 40]
    assert near["accuracy"] == pytest.approx(0.61)
    assert near["difference"] == pytest.approx(-0.09)
    assert near["low"] < -0.09 < near["high"]
    assert table.loc[("other", 0.05), "multiply_adds"] == 900


def test_ingredients_are_pairs_that_differ_in_nothing_else():
    worth = {"px-iterative-abs": 0.4, "dynamic-order": 0.45, "dynamic": 0.5, "taylor": 0.3, "dynamic-training": 0.2}
    worth |= {"px-static": 0.1, "px-iterative": 0.2, "truncation": 0.9, "px-iterative-abs+refit": 0.6}
    worth |= {"early-exit+px-iterative-abs+refit": 0.7, "budget-search": 0.9, "budget-search-filters": 0.8}
    rows = [
        {
            "dataset": "d",
            "backbone": backbone,
            "seed": seed,
            "method": name,
            "multiply_adds": -value,
            "accuracy": value + 0.01 * seed + 0.02 * seed * (name == "dynamic"),
        }
        for backbone in ("b", "a")
        for seed in (0, 1, 2)
        for name, value in worth.items()
    ]
    table = ablation_table(pd.DataFrame(rows))
    assert len(table) == 2 * 2 * 9
    pairs = table[table["measure"] == "accuracy"].set_index(["backbone", "without", "with_ablation"])
    assert set(pairs.loc["a"].index) == {
        ("px-iterative-abs", "dynamic-order"), ("dynamic-order", "dynamic"), ("px-iterative-abs", "taylor"),
        ("dynamic", "dynamic-training"), ("px-iterative-abs", "px-iterative"), ("px-iterative-abs", "dynamic"),
        ("px-iterative-abs", "px-iterative-abs+refit"), ("px-iterative-abs+refit", "early-exit+px-iterative-abs+refit"),
        ("budget-search-filters", "budget-search"),
    }  # fmt: skip
    assert pairs.loc[("a", "budget-search-filters", "budget-search"), ["ablation", "value"]].tolist() == [
        "budget-search",
        "end+block",
    ]
    assert pairs.loc[("a", "px-iterative-abs", "dynamic"), "ablation"] == "controller"
    other = table[table["measure"] == "multiply_adds"].set_index(["backbone", "without", "with_ablation"])
    assert other.loc[("a", "px-iterative-abs", "taylor"), "difference"] == pytest.approx(0.1)
    rate = pairs.loc[("a", "dynamic-order", "dynamic")]
    assert (rate["ablation"], rate["value"]) == ("rate", True)
    assert rate["difference"] == pytest.approx(0.05 + 0.02)
    assert rate["low"] < 0.07 < rate["high"]
    signal = pairs.loc[("a", "dynamic", "dynamic-training")]
    assert (signal["ablation"], signal["value"]) == ("signal", "training")
    assert signal["difference"] == pytest.approx(-0.32)
    assert signal["verdict"] == "worse: the interval lies below 0"
    assert pairs.loc[("a", "px-iterative-abs", "taylor"), "difference"] == pytest.approx(-0.1)


def test_how_much_of_a_collapse_is_the_heads():
    rows = [(name, rate, 0.8) for name in ("m", "m+refit") for rate in (0.0, 0.5)]
    rows += [("m", 0.75, 0.4), ("m+refit", 0.75, 0.7)]
    measured = pd.DataFrame(rows, columns=["method", "rate_requested", "accuracy"])
    measured = pd.concat([measured.assign(seed=seed, dataset="d", backbone="b") for seed in (0, 1)])
    alone = measured.query("method == 'm' and seed == 0").assign(
        seed=2, accuracy=0.0
    )  # a seed that only one was run on
    table = collapse_table(pd.concat([measured, alone]), "m", (0.5, 0.75)).set_index("rate")
    assert table.loc[0.75, ["lost", "lost_refitted", "head_share"]].tolist() == pytest.approx([0.4, 0.1, 0.75])
    assert collapse_table(measured[measured["method"] == "m"], "m").empty  # nothing to compare with
    assert np.isnan(table.loc[0.5, "head_share"])  # nothing is lost there


def test_price_is_what_a_run_spends(networks):
    auc = auc_table(areas_of(networks), networks, ["px-static", "px-iterative"])
    auc["method"] = auc["method"].replace(
        {"budget-search": "dynamic", "px-static": "random", "px-iterative": "early-exit+px-static+refit"}
    )
    steps = [
        ("dynamic", 0, 3),
        ("dynamic", 0, 8),
        ("dynamic", 1, 4),
        ("random", 0, 0),
        ("early-exit+px-static+refit", 0, 0),
    ]
    traces = pd.DataFrame(steps, columns=["method", "seed", "evaluations"]).assign(backbone="small")
    table = cost_table(traces, auc).set_index("method")
    assert list(table.index) == ["random", "dynamic"]
    assert table.loc["dynamic", ["steps", "evaluations", "seeds"]].tolist() == [1.5, 6.0, 2]
    assert table.loc["dynamic", "difference"] == pytest.approx(0.1025)
    assert table.loc["random", ["evaluations", "difference", "low", "high"]].tolist() == [0.0] * 4


def test_class_table(networks):
    table = class_table(areas_of(networks)).set_index(["backbone", "method"])
    assert table.loc[("small", "budget-search"), "a"] == pytest.approx(0.7075)
    assert table.loc[("small", "budget-search"), "b"] == pytest.approx(0.5075)


def test_metrics(networks):
    numbers = metrics(auc_table(areas_of(networks), networks, ["px-static", "px-iterative"]))
    assert list(numbers) == ["small", "large"]
    assert numbers["small"]["px-static"] == pytest.approx({"auc": 0.505, "retention": 0.63125})
    assert numbers["large"]["budget-search"] == pytest.approx({"auc": 0.6575, "retention": 0.6575 / 0.9}, abs=1e-6)


def test_time_spent(tmp_path):
    for stage, rows in {
        "dynamic": [("budget-search", 0, 10.0), ("budget-search", 1, 20.0)],
        "baseline": [("px-static", 0, 1.0), ("px-static", 1, 2.06)],
        "budget-search": [("down", 0, 3.0)],
    }.items():
        (tmp_path / "x").mkdir(exist_ok=True)
        pd.DataFrame(rows, columns=["method", "seed", "seconds"]).to_csv(tmp_path / "x" / f"seconds_{stage}.csv")
    spent = time_spent(tmp_path, ["x"])
    assert spent.set_index("method")["seconds"].to_dict() == {"down": 3.0, "budget-search": 15.0, "px-static": 1.53}


@pytest.mark.parametrize("images", [[20, 20], [8, 40, 160], [30] * 12])
def test_guessing_is_seldom_taken_for_more(images):
    """Against guesses drawn one by one: 5 % of them by design, and what knows a class or two more always."""
    rng, n_classes = np.random.default_rng(0), len(images)
    guesses = [[(rng.integers(n_classes, size=n) == 0).mean() for n in images] for _ in range(2000)]
    taken = np.mean([above_chance(np.array(accuracies), np.array(images)) for accuracies in guesses])
    assert 0.01 < taken < 0.08
    assert above_chance(np.full(n_classes, 1 / n_classes + 0.35), np.array(images))


def test_where_nothing_can_be_told_is_said():
    rows = {"seed": [0, 0, 1], "measured on": ["training", "test", "test"], "average": [0.9, 0.5, 0.8]}
    heads = pd.DataFrame(rows | {"above chance": [True, False, True]})
    note = chance_note({"vgg16": heads, "alexnet": heads[heads["above chance"]]})
    assert note.splitlines()[2:] == ["- vgg16, seed 0: test accuracy 50%"]
    assert chance_note({"alexnet": heads[heads["above chance"]]}) == ""
