"""Tables by hand."""

import numpy as np
import pandas as pd
import pytest

from lrp_core.study.statistics import above_chance
from lrp_core.study.tables import (
    areas,
    auc_table,
    chance_note,
    claim,
    class_table,
    drop_table,
    ingredient_table,
    metrics,
    summary,
    time_spent,
)


@pytest.fixture
def curves():
    """Two backbones, three methods, two seeds; straight lines, so that areas are means of their ends."""
    rows = []
    for backbone, offset in (("small", 0.0), ("large", 0.1)):
        for method, end in (("old", 0.2), ("older", 0.1), ("new", 0.4)):
            for seed in (0, 1):
                for rate in (0.0, 0.95):
                    accuracy = (
                        0.8 + offset if rate == 0 else end + 0.02 * seed + (0.01 * seed if method == "new" else 0)
                    )
                    rows.append(
                        {"dataset": "d", "backbone": backbone, "method": method, "seed": seed, "rate": rate}
                        | {"accuracy": accuracy, "harmonic_mean": accuracy / 2}
                        | {"accuracy_a": accuracy + 0.1, "accuracy_b": accuracy - 0.1}
                    )
    return pd.DataFrame(rows)


def test_auc_table_compares_with_the_best_baseline_of_each_backbone(curves):
    table = auc_table(areas(curves), curves, ["old", "older"]).set_index(["backbone", "method"])
    assert list(table.index) == [(name, method) for name in ("small", "large") for method in ("new", "old", "older")]
    new, old = table.loc["small", "new"], table.loc["small", "old"]
    assert old["verdict"] == "the best baseline"
    assert old["auc"] == pytest.approx((0.5 + 0.51) / 2)
    assert new["auc"] == pytest.approx((0.6 + 0.615) / 2)
    assert new["difference"] == pytest.approx(0.1025)
    assert new["gain"] == pytest.approx(0.1025 / 0.505)
    assert new["retention"] == pytest.approx(0.6075 / 0.8)
    assert new["auc_harmonic_mean"] == pytest.approx(0.6075 / 2)
    assert new["verdict"] == "better: the interval lies above 0"
    assert table.loc[("small", "older"), "verdict"] == "worse: the interval lies below 0"
    assert table.loc[("large", "new"), "retention"] == pytest.approx(0.6575 / 0.9)


def test_ingredients_are_pairs_that_differ_in_nothing_else():
    worth = {"px-iterative-abs": 0.4, "dynamic-order": 0.45, "dynamic": 0.5, "taylor": 0.3, "dynamic-training": 0.2}
    worth |= {"px-static": 0.1, "px-iterative": 0.2}
    rows = [
        {
            "backbone": backbone,
            "seed": seed,
            "method": name,
            "accuracy": value + 0.01 * seed + 0.02 * seed * (name == "dynamic"),
        }
        for backbone in ("b", "a")
        for seed in (0, 1, 2)
        for name, value in worth.items()
    ]
    table = ingredient_table(pd.DataFrame(rows))
    assert table["backbone"].tolist() == ["b"] * 5 + ["a"] * 5
    pairs = table.set_index(["backbone", "without", "with_ingredient"])
    assert set(pairs.loc["a"].index) == {
        ("px-iterative-abs", "dynamic-order"), ("dynamic-order", "dynamic"), ("px-iterative-abs", "taylor"),
        ("dynamic", "dynamic-training"), ("px-iterative-abs", "px-iterative"),
    }  # fmt: skip
    rate = pairs.loc[("a", "dynamic-order", "dynamic")]
    assert (rate["ingredient"], rate["value"]) == ("rate", True)
    assert rate["difference"] == pytest.approx(0.05 + 0.02)
    assert rate["low"] < 0.07 < rate["high"]
    signal = pairs.loc[("a", "dynamic", "dynamic-training")]
    assert (signal["ingredient"], signal["value"]) == ("signal", "training")
    assert signal["difference"] == pytest.approx(-0.32)
    assert signal["verdict"] == "worse: the interval lies below 0"
    assert pairs.loc[("a", "px-iterative-abs", "taylor"), "difference"] == pytest.approx(-0.1)


def test_class_table(curves):
    table = class_table(areas(curves)).set_index(["backbone", "method"])
    assert table.loc[("small", "new"), "a"] == pytest.approx(0.7075)
    assert table.loc[("small", "new"), "b"] == pytest.approx(0.5075)


def test_drop_table_by_hand():
    rows = [
        {"backbone": "x", "method": "m", "seed": seed, "rate_requested": rate, "accuracy": accuracy + shift}
        | {"parameters": 100 - 100 * rate, "multiply_adds": 1000 - 500 * rate}
        # mean over seeds: 0.8, 0.795, 0.77, 0.79 (back above, too late), 0.7
        for seed, shift in ((0, 0.01), (1, -0.01))
        for rate, accuracy in ((0.0, 0.8), (0.1, 0.795), (0.2, 0.77), (0.3, 0.79), (0.4, 0.7))
    ]
    table = drop_table(pd.DataFrame(rows)).set_index("points")
    assert table["rate"].to_dict() == {0.01: 0.1, 0.02: 0.1, 0.05: 0.3}
    assert table.loc[0.05, "parameters"] == pytest.approx(0.7)
    assert table.loc[0.05, "multiply_adds"] == pytest.approx(0.85)


def test_the_claim_in_words(curves):
    words = claim(auc_table(areas(curves), curves, ["old", "older"]), "new", curves)
    assert words.startswith(
        "On d, over 2 seeds:\n\n- **small**: `new` has an AUC of 0.608 and keeps 75.9% of the unpruned"
    )
    assert (
        "Against `old` (0.505), the best conventional LRP method here, that is +20.3%; the paired difference" in words
    )
    assert words.count("- **") == 2


def test_metrics(curves):
    numbers = metrics(auc_table(areas(curves), curves, ["old", "older"]))
    assert list(numbers) == ["small", "large"]
    assert numbers["small"]["old"] == pytest.approx({"auc": 0.505, "retention": 0.63125})
    assert numbers["large"]["new"] == pytest.approx({"auc": 0.6575, "retention": 0.6575 / 0.9}, abs=1e-6)


def test_time_spent_and_summary(tmp_path):
    for stage, rows in {
        "dynamic": [("new", 0, 10.0), ("new", 1, 20.0)],
        "baseline": [("old", 0, 1.0), ("old", 1, 2.06)],
    }.items():
        (tmp_path / "x").mkdir(exist_ok=True)
        pd.DataFrame(rows, columns=["method", "seed", "seconds"]).to_csv(tmp_path / "x" / f"seconds_{stage}.csv")
    spent = time_spent(tmp_path, ["x"])
    assert spent.set_index("method")["seconds"].to_dict() == {"new": 15.0, "old": 1.53}
    drops = pd.DataFrame(
        [("x", name, points, rate) for name, rate in (("new", 0.5), ("old", 0.1)) for points in (0.01, 0.05)],
        columns=["backbone", "method", "points", "rate"],
    )
    auc = pd.DataFrame({"backbone": "x", "method": ["new", "old"], "auc": [0.6, 0.5], "retention": [0.9, 0.8], "z": 0})
    table = summary(auc, drops, spent)
    assert list(table.columns) == ["auc", "retention", "rate at -1", "rate at -5", "seconds"]
    assert table.loc[("x", "new")].tolist() == [0.6, 0.9, 0.5, 0.5, 15.0]
    assert table.loc[("x", "old")].tolist() == [0.5, 0.8, 0.1, 0.1, 1.5]


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
