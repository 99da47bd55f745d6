"""Costs of methods, and the smallest networks that they find."""

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from lrp_core.study.analysis.areas import on_common_seeds, unpruned
from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.study.runs.experiment import STAGES
from lrp_core.study.runs.measuring import chooses, measured_once


def smallest_network(networks: pd.DataFrame, max_accuracy_drop: float) -> pd.Series:
    """Return the network with the fewest multiply-adds whose cross-fitted accuracy is near the unpruned network's.

    Args:
        networks: of one run (:func:`lrp_core.study.runs.finished.networks_of`).
        max_accuracy_drop: by how much the accuracy may be lower, as a fraction; 0.02 is two points.
    """
    (whole, *_) = networks["crossfitted"][networks["rate"] == 0]
    near = networks[networks["crossfitted"] >= whole - max_accuracy_drop - 1e-12]
    return near.sort_values(["multiply_adds", "crossfitted"], ascending=[True, False]).iloc[0]


def smallest_networks(
    networks: pd.DataFrame, max_accuracy_drop: Collection[float] = (0.01, 0.02, 0.05)
) -> pd.DataFrame:
    """Return the smallest network that each method finds within so many points of the best unpruned one.

    The cross-fitted accuracy on the calibration images chooses the best unpruned network, and the pruned networks
    within the points of it. The test images evaluate the choice. All rows of a data set use the seeds that every method
    was run on, with every backbone: so pass only the methods that are to be compared.

    Args:
        networks: as for :func:`lrp_core.study.analysis.areas.budget_table`, with parameters.
        max_accuracy_drop: by how much the accuracy may be lower, as fractions.

    Returns:
        One row per dataset, method and allowed drop: dataset, method, max_accuracy_drop, found (number of seeds with
        such a network), seeds, backbone (the most frequent), multiply_adds and parameters (medians over the seeds where
        one was found), accuracy (mean over these, on the test images), difference from the best unpruned network's on
        the same seeds, low, high (its 95 % interval). Method "unpruned" is the best unpruned network itself.
    """
    rows = []
    for dataset, group in on_common_seeds(measured_once(networks), ["dataset"]).groupby("dataset", sort=False):
        whole = unpruned(group)
        best = whole[whole["backbone"] == whole.groupby("backbone", sort=False)["crossfitted"].mean().idxmax()]
        rows.append(_found("unpruned", 0.0, best.assign(whole=best["accuracy"]), len(best)) | {"dataset": dataset})
        reference = best.set_index("seed")[["crossfitted", "accuracy"]]
        reference = reference.rename(columns={"crossfitted": "whole_crossfitted", "accuracy": "whole"})
        for name, some in group.join(reference, on="seed").groupby("method", sort=False):
            for drop in max_accuracy_drop:
                near = some[some["crossfitted"] >= some["whole_crossfitted"] - drop - 1e-9]
                near = near.sort_values(["multiply_adds", "crossfitted"], ascending=[True, False])
                found = near.drop_duplicates("seed")
                rows.append(_found(name, drop, found, some["seed"].nunique()) | {"dataset": dataset})
    table = pd.DataFrame(rows)
    return table[["dataset", *(name for name in table if name != "dataset")]]


def _found(method: str, max_accuracy_drop: float, found: pd.DataFrame, seeds: int) -> dict:
    row = {"method": method, "max_accuracy_drop": max_accuracy_drop, "found": len(found), "seeds": seeds}
    if found.empty:
        return row
    row |= {"backbone": found["backbone"].mode()[0], **found[["multiply_adds", "parameters"]].median()}
    difference = found["accuracy"] - found["whole"]
    row |= {"accuracy": found["accuracy"].mean(), "difference": difference.mean()}
    if len(found) > 1:
        row["low"], row["high"], _ = paired_interval(difference, found["overlap"].iloc[0])
    return row


def cost_table(traces: pd.DataFrame, auc: pd.DataFrame) -> pd.DataFrame:
    """Return what each method that is read at a rate spends on a run, beside what it gains.

    Args:
        traces: of all methods, one row per step: dataset, backbone, method, seed, evaluations (measured so far).
        auc: as returned by :func:`lrp_core.study.analysis.comparisons.auc_table`, of the same methods.

    Returns:
        One row per backbone and method: backbone, method, steps and evaluations (means over the seeds of the AUC),
        seeds, auc, gain, difference, low, high; the gains are over the best baseline, whose own are 0.
    """
    each, gains = ["backbone", "method"], ["gain", "difference", "low", "high"]
    read = traces[~traces["method"].isin([name for name in traces["method"].unique() if chooses(name)])]
    by_run = on_common_seeds(read).groupby([*each, "seed"], sort=False)["evaluations"]
    runs = by_run.agg(steps="size", evaluations="max").reset_index()
    spent = runs.groupby(each, sort=False).agg({"steps": "mean", "evaluations": "mean", "seed": "size"}).reset_index()
    spent = spent.rename(columns={"seed": "seeds"})
    table = spent.merge(auc[[*each, "auc", *gains]], on=each).fillna(dict.fromkeys(gains, 0.0))
    return table.sort_values(["backbone", "evaluations", "auc"], kind="stable", ignore_index=True)


def time_spent(workspace: Path, backbones: Iterable[str]) -> pd.DataFrame:
    """Return the seconds that finding the orders of a run took, means over the seeds that all methods were run on.

    Args:
        workspace: its folder (:attr:`lrp_core.study.data.workspace.Workspace.path`).
        backbones: that were pruned there.

    Returns:
        Columns backbone, method, seconds.
    """
    parts = [
        pd.read_csv(workspace / "runs" / backbone / stage / "seconds.csv").assign(backbone=backbone)
        for backbone in backbones
        for stage in reversed(STAGES)
    ]
    seconds = on_common_seeds(pd.concat(parts, ignore_index=True), ["backbone"])
    return seconds.groupby(["backbone", "method"], sort=False)["seconds"].mean().reset_index()
