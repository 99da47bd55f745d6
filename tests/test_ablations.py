"""Pairs of methods that differ in nothing else, by hand."""

import numpy as np
import pandas as pd
import pytest

from lrp_core.study.analysis.ablations import ablation_table


@pytest.fixture(scope="module")
def table():
    """Of two networks on three seeds; methods that choose have no area over filters."""
    worth = {"px-iterative-abs": 0.4, "dynamic-order": 0.45, "dynamic": 0.5, "taylor": 0.3, "dynamic-training": 0.2}
    worth |= {"px-static": 0.1, "px-iterative": 0.2, "early-exit": 0.9, "px-iterative-abs+refit": 0.6}
    worth |= {"early-exit+px-iterative-abs+refit": 0.7, "budget-search": 0.9, "budget-search-filters": 0.8}
    rows = []
    for backbone in ("b", "a"):
        for seed in (0, 1, 2):
            for name, value in worth.items():
                accuracy = value + 0.01 * seed + 0.02 * seed * (name == "dynamic")
                accuracy = np.nan if name.startswith(("early-exit", "budget-search")) else accuracy
                row = {"dataset": "d", "backbone": backbone, "seed": seed, "method": name, "overlap": 0.0}
                rows.append(row | {"multiply_adds": -value, "accuracy": accuracy})
    return ablation_table(pd.DataFrame(rows))


def test_they_are_these(table):
    over_filters = {
        ("px-iterative-abs", "dynamic-order"), ("dynamic-order", "dynamic"), ("px-iterative-abs", "taylor"),
        ("dynamic", "dynamic-training"), ("px-iterative-abs", "px-iterative"), ("px-iterative-abs", "dynamic"),
        ("px-iterative-abs", "px-iterative-abs+refit"),
    }  # fmt: skip
    choosing = {
        ("px-iterative-abs+refit", "early-exit+px-iterative-abs+refit"), ("budget-search-filters", "budget-search"),
    }  # fmt: skip
    pairs = table.groupby(["backbone", "measure"])[["without", "with_ablation"]].apply(
        lambda rows: set(rows.itertuples(index=False, name=None))
    )
    for backbone in ("a", "b"):
        assert pairs[backbone, "accuracy"] == over_filters
        assert pairs[backbone, "multiply_adds"] == over_filters | choosing
    assert len(table) == 2 * (7 + 9)


def test_what_they_are_called_and_worth(table):
    keys = ["measure", "backbone", "without", "with_ablation"]
    rows = table.set_index(keys).sort_index()
    over_filters, over_multiply_adds = rows.loc["accuracy"].loc["a"], rows.loc["multiply_adds"].loc["a"]
    search = over_multiply_adds.loc[("budget-search-filters", "budget-search"), ["ablation", "value"]]
    assert search.tolist() == ["actions", "exit+block"]
    early = over_multiply_adds.loc[("px-iterative-abs+refit", "early-exit+px-iterative-abs+refit")]
    assert (early["ablation"], early["value"]) == ("early_exit", True)
    assert over_filters.loc[("px-iterative-abs", "dynamic"), "ablation"] == "controller"
    assert over_multiply_adds.loc[("px-iterative-abs", "taylor"), "difference"] == pytest.approx(0.1)
    rate = over_filters.loc[("dynamic-order", "dynamic")]
    assert (rate["ablation"], rate["value"]) == ("rate", True)
    assert rate["difference"] == pytest.approx(0.05 + 0.02)
    assert rate["low"] < 0.07 < rate["high"]
    monitored = over_filters.loc[("dynamic", "dynamic-training")]
    assert (monitored["ablation"], monitored["value"]) == ("monitored", "training")
    assert monitored["difference"] == pytest.approx(-0.32)
    assert monitored["verdict"] == "worse: the interval lies below 0"
    assert over_filters.loc[("px-iterative-abs", "taylor"), "difference"] == pytest.approx(-0.1)
