"""The committed results are sane, and hang together; how large a gain is they may say as it comes out."""

import numpy as np
import pandas as pd
import pytest

from lrp_core.control.methods import method
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.measuring import at_rates, choose, chooses, measured_once

FOLDER = ROOT / "results" / "default"


@pytest.fixture(scope="module")
def networks():
    return pd.read_csv(FOLDER / "tables" / "curves.csv", low_memory=False)


@pytest.fixture(scope="module")
def curves(networks):
    return at_rates(networks)


def test_all_methods_start_from_the_same_network(networks):
    """A head that is fitted anew to the whole network is the one that was there, but for last digits."""
    whole = networks[networks["rate"] == 0].groupby(["backbone", "seed"])
    assert (whole["accuracy"].max() - whole["accuracy"].min() < 0.02).all()
    assert (whole["method"].nunique() == networks.groupby(["backbone", "seed"])["method"].nunique()).all()


def test_achieved_rates_are_those_asked_for_and_networks_shrink(curves):
    assert (curves["rate"] >= curves["rate_requested"] - 1e-9).all()
    assert (curves["rate"] <= curves["rate_requested"] + 0.01).all()
    for _, run in curves.groupby(["backbone", "method", "seed"]):
        assert len(run) == 20
        for size in ("parameters", "multiply_adds"):
            assert run[size].is_monotonic_decreasing


def test_corrupted_networks_are_those_of_the_curves(networks):
    """Made again, on clean images, they are exactly as accurate as they were."""
    clean = pd.read_csv(FOLDER / "tables" / "robustness.csv").query("images == 'clean' and method != 'unpruned'")
    runs = measured_once(networks).set_index(["backbone", "method", "seed"]).sort_index()
    for row in clean.itertuples():
        run = runs.loc[(row.backbone, row.method, row.seed)]
        whole = run["multiply_adds"][run["rate"] == 0].iloc[0]
        chosen = choose(run, run["multiply_adds"] <= row.budget * whole * (1 + 1e-9), method(row.method).refit)
        assert row.accuracy == pytest.approx(chosen["accuracy"], abs=1e-9)
    assert len(clean)


def test_accuracies_are_those_of_their_classes(networks):
    measured = measured_once(networks)
    classes = [name for name in measured if name.startswith("accuracy_")]
    assert np.allclose(measured[classes].mean(axis=1), measured["accuracy"], atol=1e-9)
    assert (measured["harmonic_mean"] <= measured["accuracy"] + 1e-9).all()


def test_no_accepted_step_breaks_its_bound(curves):
    for backbone in curves["backbone"].unique():
        trace = pd.read_csv(FOLDER / "runs" / backbone / "dynamic" / "trace.csv")
        watched = trace[trace["method"].map(lambda name: method(name).rate)]
        assert (watched["after"] >= watched["bound"] - 1e-12).all()
        assert trace.groupby(["method", "seed"])["rate"].max().min() >= 0.95


def test_means_side_by_side_are_of_the_same_seeds_and_of_the_same_kind():
    auc = pd.read_csv(FOLDER / "tables" / "auc.csv")
    assert auc["seeds"].notna().all()
    assert (auc.groupby("backbone")["seeds"].nunique() == 1).all()
    assert not any(map(chooses, auc["method"]))
    compared = pd.read_csv(FOLDER / "tables" / "comparisons.csv")
    assert (compared.groupby(["dataset", "backbone", "measure"])["seeds"].nunique() == 1).all()


def test_the_class_averaged_auc_is_the_mean_of_the_classes():
    keys = ["backbone", "method"]
    by_class = pd.read_csv(FOLDER / "tables" / "auc_by_class.csv").set_index(keys)
    mean = by_class.drop(columns="seeds", errors="ignore").mean(axis=1)
    auc = pd.read_csv(FOLDER / "tables" / "auc.csv").set_index(keys)["auc"]
    assert np.allclose(mean[auc.index], auc, atol=1e-9)


def test_heads_are_far_above_chance(curves):
    for backbone in curves["backbone"].unique():
        heads = pd.read_csv(FOLDER / "runs" / backbone / "heads" / "accuracy.csv")
        n_classes = sum(name.startswith("accuracy_") and curves[name].notna().any() for name in curves)
        assert heads.query("`measured on` == 'test'")["average"].min() > 1.2 / n_classes
