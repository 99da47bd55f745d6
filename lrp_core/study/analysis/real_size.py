"""Methods side by side on real networks: from the rows of benchmarks/real_size.py to accuracies and differences."""

import pandas as pd

from lrp_core.metrics.curve import MAX_RATE, pruning_auc
from lrp_core.study.analysis.promise import CHOSEN, DEFAULT, LAYER_BY_LAYER, NEURON_MERGING, OURS
from lrp_core.study.analysis.statistics import paired_interval

LRP, ONE_SHOT, CONTROLLED = "px-iterative-abs", "px-static", "dynamic"
CHOICE_ALONE = "joint-cost"  # ours without its repair
LRP_REPAIRED, CONTROLLED_REPAIRED, LAYERS_REPAIRED = (
    f"{method}+reconstruction" for method in (LRP, CONTROLLED, LAYER_BY_LAYER)
)
SMALLER = "smaller-images"  # of fewer pixels
SMALLER_HALF = f"{SMALLER}-0.5+{OURS}"  # ours on images that leave half of the multiply-adds
SMALLER_INTERMEDIATE = f"{SMALLER}+intermediate-features"  # with a head on these, too, and nothing pruned
LAYERS_PREPARED = f"{SMALLER_INTERMEDIATE}+{LAYERS_REPAIRED}"  # on the images and with the head of the default
NAMES = {  # as tables and figures call them
    DEFAULT: "ours",
    OURS: "ours, images as given",
    CHOSEN: "ours, image size chosen",
    SMALLER: "smaller images",
    SMALLER_INTERMEDIATE: "smaller images, new head",
    SMALLER_HALF: "smaller images (50%), then ours",
    CHOICE_ALONE: "ours, images as given, no reconstruction",
    LAYER_BY_LAYER: "layer by layer",
    LAYERS_REPAIRED: "layer by layer, reconstruction",
    LAYERS_PREPARED: "layer by layer, with all else of ours",
    NEURON_MERGING: "Neuron Merging",
    ONE_SHOT: "one-shot LRP",
    LRP: "iterative LRP",
    CONTROLLED: "iterative LRP, controller",
    LRP_REPAIRED: "iterative LRP, reconstruction",
    CONTROLLED_REPAIRED: "iterative LRP, controller, reconstruction",
    "joint": "joint selection",
    "dynamic-joint": "joint selection, controller",
    "weight": "L1, global",
    "taylor": "Taylor, global",
}
CONTROLLERS = {LRP: CONTROLLED, "joint": "dynamic-joint"}  # methods, and the same with the controller
WITH_REPAIR = {LRP_REPAIRED: CONTROLLED_REPAIRED}  # the same at real size only
PAIR = ["task", "network"]


def accuracies(
    rows: pd.DataFrame, limit: float, measure: str = "test_accuracy", size: str = "multiply_adds"
) -> pd.DataFrame:
    """Return what each method's network within a limit does on the test images.

    Args:
        rows: of benchmarks/real_size.py or benchmarks/published.py. A column limit, if any, says which limit of the
            multiply-adds was asked for.
        limit: of the multiply-adds, as a fraction; 1 for the unpruned network.
        measure: a column of the rows.
        size: another column that is limited.

    Returns:
        A row a draw (task, network, seed), a column a method; NaN where a method does not get so small, or only much
        smaller and not when asked for this limit.
    """
    asked = rows["limit"] == limit if "limit" in rows and size == "multiply_adds" else False
    within = rows[(rows[size] <= limit * 1.0001) & (asked | (rows[size] > 0.8 * limit))]
    largest = within.sort_values(size, ascending=False).groupby([*PAIR, "seed", "method"], sort=False).head(1)
    return largest.set_index([*PAIR, "seed", "method"])[measure].unstack("method").sort_index()


def draws(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many draws were measured: a row a task and network, a column a method; 0 for none."""
    return rows.groupby([*PAIR, "method"])["seed"].nunique().unstack("method", fill_value=0)


def means(rows: pd.DataFrame, multiply_adds: float, measure: str = "test_accuracy") -> pd.DataFrame:
    """Return means over draws.

    Args:
        rows: of benchmarks/real_size.py.
        multiply_adds: the limit, as a fraction; 1 for the unpruned network.
        measure: a column of the rows.

    Returns:
        A row a task and network, a column a method; NaN where a method was not measured, or does not get so small in
        each of its draws.
    """
    found, measured = accuracies(rows, multiply_adds, measure).groupby(PAIR), draws(rows)
    return found.mean().reindex_like(measured).where(found.count().reindex_like(measured) == measured)


def areas(rows: pd.DataFrame, measure: str = "test_accuracy") -> pd.DataFrame:
    """Return the area under each method's curve against the pruning rate (:func:`lrp_core.metrics.curve.pruning_auc`).

    Args:
        rows: of benchmarks/real_size.py.
        measure: a column of the rows.

    Returns:
        A row a draw (task, network, seed), a column a method: those that were measured up to the rate of 0.95.
    """
    rows = rows.assign(pruning_ratio=rows["pruning_ratio"].where(rows["multiply_adds"] < 1, 0.0))
    rows = rows.dropna(subset="pruning_ratio").sort_values("pruning_ratio")
    found = {}
    for key, curve in rows.groupby([*PAIR, "seed", "method"]):
        curve = curve.drop_duplicates("pruning_ratio")
        if curve["pruning_ratio"].iloc[-1] >= MAX_RATE:
            found[key] = pruning_auc(curve["pruning_ratio"], curve[measure])
    index = pd.MultiIndex.from_tuples(found, names=[*PAIR, "seed", "method"])
    return pd.Series(found.values(), index, dtype=float).unstack("method").sort_index()


def differences(found: pd.DataFrame, overlap: pd.Series, method: str, other: str) -> pd.DataFrame:
    """Return by how much a method exceeds another, for each task and network with two draws of both or more.

    Args:
        found: a row a draw, a column a method, as :func:`accuracies` and :func:`areas` return it.
        overlap: of draws (:func:`overlaps`), by task and network.
        method: the one.
        other: the other.

    Returns:
        A row a task and network: mean, low and high (95 %, corrected for draws from one pool), p, draws, and other, the
        other method's mean.
    """
    table = []
    both = found.reindex(columns=[method, other]).dropna()
    for pair, of_pair in both.groupby(PAIR):
        difference = of_pair[method] - of_pair[other]
        if len(difference) > 1:
            low, high, p = paired_interval(difference, overlap[pair])
            statistics = {"mean": difference.mean(), "low": low, "high": high, "p": p, "draws": len(difference)}
            table.append(dict(zip(PAIR, pair, strict=True)) | statistics | {"other": of_pair[other].mean()})
    columns = [*PAIR, "mean", "low", "high", "p", "draws", "other"]
    return pd.DataFrame(table, columns=columns).set_index(PAIR)


def overlaps(rows: pd.DataFrame) -> pd.Series:
    """Return the share of the images that a draw tests, by task and network."""
    return rows.groupby(PAIR)["overlap"].first()
