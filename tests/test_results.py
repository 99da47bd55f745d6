"""The committed results are sane, and hang together."""

import numpy as np
import pandas as pd
import pytest

from lrp_core.methods import method
from lrp_core.study.paths import ROOT

RUNS = ["results", "results/full"]


@pytest.fixture(scope="module", params=RUNS)
def folder(request):
    return ROOT / request.param


@pytest.fixture(scope="module")
def curves(folder):
    return pd.read_csv(folder / "curves.csv")


def test_all_methods_start_from_the_same_network(curves):
    first = curves[curves["rate"] == 0].groupby(["backbone", "seed"])["accuracy"]
    assert (first.nunique() == 1).all()
    assert (first.size() == curves.groupby(["backbone", "seed"])["method"].nunique()).all()


def test_achieved_rates_reach_those_asked_for_and_networks_shrink(curves):
    assert curves["rate"].between(curves["rate_requested"] - 1e-9, curves["rate_requested"] + 0.01).all()
    for _, run in curves.groupby(["backbone", "method", "seed"]):
        assert run["rate"].iloc[-1] >= 0.95
        for size in ("parameters", "multiply_adds"):
            assert run[size].is_monotonic_decreasing


def test_accuracies_lie_between_chance_and_the_whole_network(curves):
    classes = [name for name in curves if name.startswith("accuracy_")]
    assert np.allclose(curves[classes].mean(axis=1), curves["accuracy"], atol=1e-9)
    assert (curves["harmonic_mean"] <= curves["accuracy"] + 1e-9).all()
    means = curves.groupby(["backbone", "method"])["accuracy"].mean()
    whole = curves[curves["rate"] == 0].groupby("backbone")["accuracy"].mean()
    for (backbone, _), accuracy in means.items():
        assert 1 / len(classes) - 0.05 < accuracy < whole[backbone] + 0.05


def test_no_accepted_step_breaks_its_bound(folder, curves):
    for backbone in curves["backbone"].unique():
        trace = pd.read_csv(folder / backbone / "trace_dynamic.csv")
        watched = trace[trace["method"].map(lambda name: method(name).rate)]
        assert (watched["after"] >= watched["bound"] - 1e-12).all()
        assert trace.groupby(["method", "seed"])["rate"].max().min() >= 0.95


def test_the_class_averaged_auc_is_the_mean_of_the_classes(folder):
    keys = ["backbone", "method"]
    by_class = pd.read_csv(folder / "tables" / "auc_by_class.csv").set_index(keys).mean(axis=1)
    auc = pd.read_csv(folder / "tables" / "auc.csv").set_index(keys)["auc"]
    assert np.allclose(by_class[auc.index], auc, atol=1e-9)


def test_heads_are_far_above_chance(folder, curves):
    for backbone in curves["backbone"].unique():
        heads = pd.read_csv(folder / backbone / "tables" / "head_accuracy.csv")
        assert heads.query("`measured on` == 'test'")["average"].min() > 1.2 / 4
