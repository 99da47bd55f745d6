"""From the tidy rows of measured networks to areas under curves."""

import numpy as np
import pandas as pd

from lrp_core.control import methods
from lrp_core.metrics.accuracy import pruning_auc
from lrp_core.study.runs.measuring import BUDGETS, choose

MEASURES = {"accuracy": "AUC over filters", "multiply_adds": "area over multiply-adds"}
_TASK, _RUN = ["dataset", "backbone"], ["dataset", "backbone", "method", "seed"]


def unpruned(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the whole networks, a row a task, backbone and seed, whatever methods were run."""
    return networks[networks["rate"] == 0].drop_duplicates([*_TASK, "seed"])


def budget_table(networks: pd.DataFrame) -> pd.DataFrame:
    """Return what each run has to offer for so many multiply-adds.

    Of its networks that are small enough it is the one that :func:`lrp_core.study.runs.measuring.choose` takes, without test
    images. Where none is small enough one can only guess.

    Args:
        networks: columns dataset, backbone, method (of :data:`lrp_core.control.methods.METHODS`), seed, rate, crossfitted,
            squared_error, accuracy, accuracy_<class>, multiply_adds.

    Returns:
        A row a run and budget: dataset, backbone, method, seed, budget (fraction of the unpruned network's
        multiply-adds), multiply_adds (of the budget), accuracy (on the test images), guess (none is small enough).

    Raises:
        ValueError: networks of which the calibration images say nothing, or an unknown method.
    """
    unknown = networks[networks[["crossfitted", "squared_error"]].isna().any(axis=1)]
    if len(unknown):
        tasks = ", ".join((unknown["backbone"] + " on " + unknown["dataset"]).unique())
        raise ValueError(
            f"curves of {tasks} lack crossfitted or squared_error: an earlier version wrote them, run them anew"
        )
    rows = []
    for task, group in networks.groupby(_TASK, sort=False):
        whole = unpruned(group)["multiply_adds"].iloc[0]
        chance = 1 / sum(group[name].notna().any() for name in group if name.startswith("accuracy_"))
        for run, some in group.groupby(["method", "seed"], sort=False):
            refitted = methods.method(run[0]).refit
            for budget in BUDGETS:
                chosen = choose(some, some["multiply_adds"] <= budget * whole * (1 + 1e-9), refitted)
                accuracy = chance if chosen is None else chosen["accuracy"]
                rows.append((*task, *run, budget, budget * whole, accuracy, chosen is None))
    return pd.DataFrame(rows, columns=[*_RUN, "budget", "multiply_adds", "accuracy", "guess"])


def area_table(networks: pd.DataFrame, budgets: pd.DataFrame) -> pd.DataFrame:
    """Return the areas of each run, a row a run.

    Args:
        networks: as for :func:`by_budget`, with rate_requested and harmonic_mean.
        budgets: what :func:`by_budget` returns of them.

    Returns:
        Columns dataset, backbone, method, seed; accuracy, harmonic_mean, accuracy_<class>, the areas under these over
        the fraction of filters removed, 0 to 95 % (that under ``accuracy`` is the class-averaged AUC, the mean of the
        classes' areas); multiply_adds, the area under the accuracy over the logarithm of the multiply-adds, 100 to 1 %
        (:func:`by_budget`). All are divided by the length of their axis: they are mean accuracies.
    """
    measures = ["accuracy", "harmonic_mean", *(name for name in networks if name.startswith("accuracy_"))]
    grid = networks[networks["rate_requested"].notna()]
    rows = [
        dict(zip(_RUN, key, strict=True)) | {name: pruning_auc(rows["rate_requested"], rows[name]) for name in measures}
        for key, rows in grid.groupby(_RUN, sort=False)
    ]
    by_run = budgets.groupby(_RUN, sort=False)["accuracy"]
    over_multiply_adds = by_run.agg(lambda values: np.trapezoid(values) / (len(values) - 1)).rename("multiply_adds")
    return pd.DataFrame(rows).merge(over_multiply_adds.reset_index(), on=_RUN)


def class_table(area_table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean area by backbone, method and class, in the order of the methods' class-averaged areas."""
    columns = [name for name in area_table if name.startswith("accuracy_")]
    means = area_table.groupby(["backbone", "method"], sort=False)[["accuracy", *columns]].mean().reset_index()
    means = means.sort_values(["backbone", "accuracy"], ascending=False, kind="stable")
    return means.drop(columns="accuracy").rename(columns=lambda name: name.removeprefix("accuracy_"))


def metrics(auc: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return AUC and retention by backbone and method, for ``dvc metrics``."""
    rows = auc.round(6).set_index(["backbone", "method"])[["auc", "retention"]]
    return {backbone: rows.loc[backbone].to_dict("index") for backbone in auc["backbone"].unique()}
