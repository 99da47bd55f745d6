"""What methods cost, and the smallest networks that they find."""

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from lrp_core.control.methods import METHODS
from lrp_core.study.analysis.areas import unpruned
from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.study.runs.measuring import without_guesses


def smallest_network(networks: pd.DataFrame, max_accuracy_drop: float) -> pd.Series:
    """Return the network with the fewest multiply-adds whose cross-fitted accuracy is near the unpruned one's.

    Args:
        networks: of one run (:meth:`lrp_core.study.runs.runner.Experiment.measured`).
        max_accuracy_drop: how far the accuracy may fall, as a fraction; 0.02 is two points.
    """
    (unpruned, *_) = networks["crossfitted"][networks["rate"] == 0]
    near = without_guesses(networks[networks["crossfitted"] >= unpruned - max_accuracy_drop - 1e-12])
    return near.sort_values(["multiply_adds", "crossfitted"], ascending=[True, False]).iloc[0]


def smallest_networks(
    networks: pd.DataFrame, max_accuracy_drop: Collection[float] = (0.01, 0.02, 0.05)
) -> pd.DataFrame:
    """Return the smallest network that each method finds within so many points of the best unpruned one.

    Which unpruned network is the best, and which pruned one is within the points of it, the cross-fitted accuracy on
    the calibration images says; the test images judge what came of it.

    Args:
        networks: as for :func:`by_budget`, with parameters.
        max_accuracy_drop: of accuracy, as fractions.

    Returns:
        One row a dataset, method and number of points: dataset, method, points, found (seeds with such a network),
        seeds, backbone (the most frequent), multiply_adds and parameters (medians), accuracy (mean, on the test
        images), difference from the best unpruned network's, low, high (its 95 % interval). Method "unpruned" is the
        best unpruned network itself.
    """
    rows = []
    for dataset, group in networks.groupby("dataset", sort=False):
        whole = unpruned(group)
        best = whole[whole["backbone"] == whole.groupby("backbone", sort=False)["crossfitted"].mean().idxmax()]
        rows.append(_found("unpruned", 0.0, best.assign(whole=best["accuracy"]), len(best)) | {"dataset": dataset})
        reference = best.set_index("seed")[["crossfitted", "accuracy"]].rename(columns=lambda name: f"whole_{name}")
        for method, some in group.groupby("method", sort=False):
            some = some.join(reference, on="seed", how="inner").rename(columns={"whole_accuracy": "whole"})
            some = without_guesses(some)
            for fall in max_accuracy_drop:
                near = some[some["crossfitted"] >= some["whole_crossfitted"] - fall - 1e-9]
                near = near.sort_values(["multiply_adds", "crossfitted"], ascending=[True, False])
                found = near.drop_duplicates("seed")
                rows.append(_found(method, fall, found, some["seed"].nunique()) | {"dataset": dataset})
    table = pd.DataFrame(rows)
    return table[["dataset", *(name for name in table if name != "dataset")]]


def _found(method: str, max_accuracy_drop: float, found: pd.DataFrame, seeds: int) -> dict:
    row = {"method": method, "points": max_accuracy_drop, "found": len(found), "seeds": seeds}
    if found.empty:
        return row
    row |= {"backbone": found["backbone"].mode()[0], **found[["multiply_adds", "parameters"]].median()}
    difference = found["accuracy"] - found["whole"]
    row |= {"accuracy": found["accuracy"].mean(), "difference": difference.mean()}
    if len(found) > 1:
        row["low"], row["high"], _ = paired_interval(difference)
    return row


def cost_table(traces: pd.DataFrame, auc: pd.DataFrame) -> pd.DataFrame:
    """Return what each method spends on a run, beside what it gains; methods that cut the backbone first are left out.

    Args:
        traces: of all methods, a row a step: backbone, method, seed, evaluations (tries measured so far).
        auc: as :func:`auc_table` returns it.

    Returns:
        One row a backbone and method: backbone, method, steps and evaluations (means over seeds), seeds, auc, gain,
        difference, low, high; the gains are over the best baseline, whose own are 0.
    """
    each, gains = ["backbone", "method"], ["gain", "difference", "low", "high"]
    runs = traces.groupby([*each, "seed"], sort=False)["evaluations"].agg(steps="size", evaluations="max").reset_index()
    spent = runs.groupby(each, sort=False).agg({"steps": "mean", "evaluations": "mean", "seed": "size"}).reset_index()
    spent = spent[[not METHODS[name].early_exit for name in spent["method"]]].rename(columns={"seed": "seeds"})
    table = spent.merge(auc[[*each, "auc", *gains]], on=each).fillna(dict.fromkeys(gains, 0.0))
    return table.sort_values(["backbone", "evaluations", "auc"], kind="stable", ignore_index=True)


def time_spent(workspace: Path, backbones: Iterable[str]) -> pd.DataFrame:
    """Return the seconds that finding an order took, mean over seeds: columns backbone, method, seconds."""
    parts = [
        pd.read_csv(workspace / backbone / f"seconds_{stage}.csv").assign(backbone=backbone)
        for backbone in backbones
        for stage in ("levers", "dynamic", "baseline")
    ]
    return pd.concat(parts).groupby(["backbone", "method"], sort=False)["seconds"].mean().reset_index()
