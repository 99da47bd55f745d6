"""The committed results are sane, and hang together."""

import numpy as np
import pandas as pd
import pytest

from lrp_core.control.methods import method
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.measuring import choose

RUNS = ["results", "results/full", "results/cifar10", "results/vgg16"]


@pytest.fixture(scope="module", params=RUNS)
def folder(request):
    return ROOT / request.param


@pytest.fixture(scope="module")
def networks(folder):
    return pd.read_csv(folder / "curves.csv")


@pytest.fixture(scope="module")
def curves(networks):
    return networks[networks["rate_requested"].notna()]


def test_all_methods_start_from_the_same_network(networks):
    """A head that is fitted anew to the whole network is the one that was there, but for last digits."""
    first = networks[networks["rate"] == 0].groupby(["backbone", "seed"])["accuracy"]
    assert (first.max() - first.min() < 0.02).all()
    whole = networks[networks["rate"] == 0].groupby(["backbone", "seed"])["method"].nunique()
    assert (whole == networks.groupby(["backbone", "seed"])["method"].nunique()).all()


def test_achieved_rates_reach_those_asked_for_and_networks_shrink(curves):
    assert (curves["rate"] >= curves["rate_requested"] - 1e-9).all()
    for (_, name, _), run in curves.groupby(["backbone", "method", "seed"]):
        assert len(run) == 20
        if not (method(name).early_exit or method(name).actions):
            assert (run["rate"] <= run["rate_requested"] + 0.01).all()
            for size in ("parameters", "multiply_adds"):
                assert run[size].is_monotonic_decreasing


def test_a_method_that_chooses_takes_the_least_error_of_all_that_have_lost_as_much(networks, curves):
    runs = ["backbone", "method", "seed"]
    measured = networks.set_index(runs).sort_index()
    for key, run in curves.groupby(runs):
        if method(key[1]).early_exit or method(key[1]).actions:
            offered = measured.loc[key]
            for row in run.itertuples():
                least = offered["squared_error"][offered["rate"] >= row.rate_requested - 1e-9].min()
                assert row.squared_error == pytest.approx(least)


def test_networks_that_are_spoilt_are_those_of_the_curves(folder, networks):
    """Made again, on clean images, they are exactly as accurate as they were."""
    corrupted = pd.read_csv(folder / "robustness.csv").query("images == 'clean'")
    runs, compared = networks.set_index(["backbone", "method", "seed"]).sort_index(), 0
    for row in corrupted[corrupted["method"] != "unpruned"].itertuples():
        run = runs.loc[(row.backbone, row.method, row.seed)]
        whole = run["multiply_adds"][run["rate"] == 0].iloc[0]
        offered = choose(run, run["multiply_adds"] <= row.budget * whole, method(row.method).refit)
        assert row.accuracy == pytest.approx(offered["accuracy"], abs=1e-9)
        compared += 1
    assert compared >= 50


def test_accuracies_are_those_of_their_classes(curves):
    classes = [name for name in curves if name.startswith("accuracy_")]
    assert np.allclose(curves[classes].mean(axis=1), curves["accuracy"], atol=1e-9)
    assert (curves["harmonic_mean"] <= curves["accuracy"] + 1e-9).all()


def test_no_accepted_step_breaks_its_bound(folder, curves):
    for backbone in curves["backbone"].unique():
        trace = pd.read_csv(folder / backbone / "trace_dynamic.csv")
        watched = trace[trace["method"].map(lambda name: method(name).rate)]
        assert (watched["after"] >= watched["bound"] - 1e-12).all()
        assert trace.groupby(["method", "seed"])["rate"].max().min() >= 0.95


def test_the_claim_rests_on_ten_seeds_and_two_tasks():
    table = pd.read_csv(ROOT / "results" / "full" / "tables" / "comparisons.csv")
    others = table[table["other"].isin(["px-iterative-abs+refit", "truncation"]) & (table["backbone"] != "vgg16")]
    assert set(others["dataset"]) == {"elpv", "cifar10"}
    assert (others["seeds"] >= 10).all()


def test_the_joint_choice_is_ahead_with_the_head_as_it_was():
    """On each network and task by 15 % or more of the best conventional AUC, its interval above 0."""
    for folder in ("full", "cifar10", "vgg16"):
        table = pd.read_csv(ROOT / "results" / folder / "tables" / "auc.csv").query("method == 'joint'")
        assert (table["gain"] >= 0.15).all()
        assert (table["low"] > 0).all()
        assert (table["seeds"] >= (5 if folder == "vgg16" else 10)).all()


def test_the_class_averaged_auc_is_the_mean_of_the_classes(folder):
    keys = ["backbone", "method"]
    by_class = pd.read_csv(folder / "tables" / "auc_by_class.csv").set_index(keys).mean(axis=1)
    auc = pd.read_csv(folder / "tables" / "auc.csv").set_index(keys)["auc"]
    assert np.allclose(by_class[auc.index], auc, atol=1e-9)


def test_heads_are_far_above_chance(folder, curves):
    for backbone in curves["backbone"].unique():
        heads = pd.read_csv(folder / backbone / "tables" / "head_accuracy.csv")
        n_classes = sum(name.startswith("accuracy_") for name in curves)
        assert heads.query("`measured on` == 'test'")["average"].min() > 1.2 / n_classes
