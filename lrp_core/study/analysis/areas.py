"""From the tidy rows of measured networks to areas under curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lrp_core.control.methods import method
from lrp_core.metrics.curve import pruning_auc
from lrp_core.study.runs.measuring import BUDGETS, at_rates, choose, measured_once

MEASURES = {"accuracy": "AUC over filters", "multiply_adds": "area over multiply-adds"}
TASK = ["dataset", "backbone"]
_RUN = [*TASK, "method", "seed"]


def unpruned(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the whole networks, one row per task, backbone and seed, whatever methods were run."""
    return networks[networks["rate"] == 0].drop_duplicates([*TASK, "seed"])


def on_common_seeds(rows: pd.DataFrame, within: Sequence[str] = ("dataset", "backbone")) -> pd.DataFrame:
    """Return the rows of those seeds that all methods were run on, so that their means can stand side by side.

    Some draws of images are harder than others: means over different seeds differ by the seeds, too.

    Args:
        rows: columns backbone, method, seed, and those of ``within``.
        within: what is compared: everything that has these columns in common.

    Raises:
        ValueError: no seed is common to all methods.
    """
    if rows.empty:
        return rows
    within = list(within)
    runs = rows.assign(run=rows.groupby(["backbone", "method"]).ngroup())
    of_seed = runs.groupby([*within, "seed"])["run"].transform("nunique")
    common = rows[of_seed == runs.groupby(within)["run"].transform("nunique")]
    if len(common[within].drop_duplicates()) < len(rows[within].drop_duplicates()):
        seeds = rows.groupby("method", sort=False)["seed"].unique().map(lambda some: sorted(some.tolist()))
        raise ValueError(f"methods have no seed in common, so their means cannot be compared; seeds: {seeds.to_dict()}")
    return common


def budget_table(networks: pd.DataFrame) -> pd.DataFrame:
    """Return what each run has to offer for so many multiply-adds.

    Of its networks that are small enough it is the one that :func:`lrp_core.study.runs.measuring.choose` takes, without
    test images. A run may have none. All that can be done without a network is to give every image the same class, and
    that is how it is judged: accuracy 1 / n_classes, harmonic mean 0. A network that has collapsed to one class, which
    is how most of them end, is judged alike.

    Args:
        networks: columns dataset, backbone, method, seed, rate, rate_requested, crossfitted, squared_error, accuracy,
            harmonic_mean, accuracy_<class>, multiply_adds, overlap (share of the images that a seed tests).

    Returns:
        One row per run and budget: dataset, backbone, method, seed, budget (fraction of the unpruned network's
        multiply-adds), multiply_adds (of the budget), accuracy and harmonic_mean (on the test images), guess (whether
        there is no network that small), overlap.

    Raises:
        ValueError: networks of which the calibration images say nothing, or an unknown method.
    """
    known = ["crossfitted", "squared_error", "overlap"]
    unknown = networks[networks.reindex(columns=known).isna().any(axis=1)]
    if len(unknown):
        tasks = ", ".join((unknown["backbone"] + " on " + unknown["dataset"]).unique())
        raise ValueError(
            f"curves of {tasks} lack one of {', '.join(known)}: an earlier version wrote them, run them anew"
        )
    rows = []
    for task, group in measured_once(networks).groupby(TASK, sort=False):
        whole, overlap = unpruned(group)["multiply_adds"].iloc[0], group["overlap"].iloc[0]
        n_classes = sum(group[name].notna().any() for name in group if name.startswith("accuracy_"))
        for run, some in group.groupby(["method", "seed"], sort=False):
            refitted = method(run[0]).refit
            for budget in BUDGETS:
                chosen = choose(some, some["multiply_adds"] <= budget * whole * (1 + 1e-9), refitted)
                measured = (1 / n_classes, 0.0) if chosen is None else chosen[["accuracy", "harmonic_mean"]]
                rows.append((*task, *run, budget, budget * whole, *measured, chosen is None, overlap))
    columns = [*_RUN, "budget", "multiply_adds", "accuracy", "harmonic_mean", "guess", "overlap"]
    return pd.DataFrame(rows, columns=columns)


def area_table(networks: pd.DataFrame, budgets: pd.DataFrame) -> pd.DataFrame:
    """Return the areas of each run, one row per run.

    Methods that choose among networks (:func:`lrp_core.study.runs.measuring.chooses`) have no area over filters: what
    they chose at 0 % would have lost far more than 0 % of them.

    Args:
        networks: as for :func:`budget_table`.
        budgets: what :func:`budget_table` returns of them.

    Returns:
        Columns dataset, backbone, method, seed; accuracy, harmonic_mean, accuracy_<class>, the areas under these over
        the fraction of filters removed, 0 to 95 % (that under ``accuracy`` is the class-averaged AUC, the mean of the
        classes' areas; NaN for methods that choose); multiply_adds, the area under the accuracy over the logarithm of
        the multiply-adds, 100 to 1 %. All are divided by the length of their axis: they are mean accuracies. And
        overlap, as there.
    """
    measures = ["accuracy", "harmonic_mean", *(name for name in networks if name.startswith("accuracy_"))]
    over_filters = [
        dict(zip(_RUN, key, strict=True)) | {name: pruning_auc(rows["rate_requested"], rows[name]) for name in measures}
        for key, rows in at_rates(networks).groupby(_RUN, sort=False)
    ]
    by_run = budgets.groupby(_RUN, sort=False)["accuracy"]
    over_multiply_adds = by_run.agg(lambda values: np.trapezoid(values) / (len(values) - 1)).rename("multiply_adds")
    table = over_multiply_adds.reset_index().merge(
        pd.DataFrame(over_filters, columns=[*_RUN, *measures]), how="left", on=_RUN
    )
    table = table.merge(networks.groupby(TASK)["overlap"].first().reset_index(), on=TASK)
    return table[[*_RUN, *measures, "multiply_adds", "overlap"]]


def class_table(areas: pd.DataFrame) -> pd.DataFrame:
    """Return the AUC by backbone, method and class, in the order of the methods' class-averaged AUC.

    Args:
        areas: as returned by :func:`area_table`; methods without an area over filters are left out.

    Returns:
        Columns backbone, method, seeds, and one a class; means over the seeds that all these methods were run on.
    """
    columns = [name for name in areas if name.startswith("accuracy_")]
    groups = on_common_seeds(areas[areas["accuracy"].notna()]).groupby(["backbone", "method"], sort=False)
    means = groups[["accuracy", *columns]].mean().reset_index()
    means.insert(2, "seeds", groups["seed"].nunique().to_numpy())
    means = means.sort_values(["backbone", "accuracy"], ascending=False, kind="stable")
    means = means.drop(columns="accuracy").dropna(axis="columns", how="all")  # classes of other tasks
    return means.rename(columns=lambda name: name.removeprefix("accuracy_"))


def metrics(areas: pd.DataFrame, auc: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return the numbers for ``dvc metrics``, by backbone and method.

    Args:
        areas: as returned by :func:`area_table`.
        auc: as returned by :func:`lrp_core.study.analysis.comparisons.auc_table`.

    Returns:
        Of each method area_over_multiply_adds, and auc and retention where it has them; means over the seeds that all
        methods in the table were run on.
    """
    areas = on_common_seeds(areas)
    numbers = areas.groupby(["backbone", "method"], sort=False)[["multiply_adds"]].mean()
    numbers = numbers.rename(columns={"multiply_adds": "area_over_multiply_adds"})
    numbers = numbers.join(auc.set_index(["backbone", "method"])[["auc", "retention"]]).round(6)
    return {
        backbone: {name: row.dropna().to_dict() for name, row in numbers.loc[backbone].iterrows()}
        for backbone in areas["backbone"].unique()
    }
