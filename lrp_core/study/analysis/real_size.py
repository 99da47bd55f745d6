"""Methods side by side on real networks: from the rows of benchmarks/real_size.py to accuracies and differences."""

import pandas as pd

from lrp_core.study.analysis.promise import DEFAULT, LAYER_BY_LAYER, NEURON_MERGING
from lrp_core.study.analysis.statistics import paired_interval

LRP, ONE_SHOT, CONTROLLED = "px-iterative-abs", "px-static", "dynamic"
NAMES = {  # as tables and figures call them
    DEFAULT: "ours",
    LAYER_BY_LAYER: "layer by layer",
    NEURON_MERGING: "Neuron Merging",
    ONE_SHOT: "one-shot LRP",
    LRP: "iterative LRP",
    CONTROLLED: "iterative LRP, controller",
    f"{LRP}+reconstruction": "iterative LRP, reconstruction",
    f"{CONTROLLED}+reconstruction": "iterative LRP, controller, reconstruction",
    "joint": "joint selection",
    "dynamic-joint": "joint selection, controller",
    "weight": "L1, global",
    "taylor": "Taylor, global",
}
PAIR = ["task", "network"]


def accuracies(rows: pd.DataFrame, multiply_adds: float, measure: str = "test_accuracy") -> pd.DataFrame:
    """Return what each method's network within a fraction of the multiply-adds does on the test images.

    Args:
        rows: of benchmarks/real_size.py.
        multiply_adds: the limit, as a fraction; 1 for the unpruned network.
        measure: a column of the rows.

    Returns:
        A row a draw (task, network, seed), a column a method; NaN where a method does not get so small.
    """
    within = rows[rows["multiply_adds"] <= multiply_adds * 1.0001].sort_values("multiply_adds", ascending=False)
    largest = within.groupby([*PAIR, "seed", "method"], sort=False).head(1)
    reached = largest[largest["multiply_adds"] > 0.8 * multiply_adds]
    return reached.set_index([*PAIR, "seed", "method"])[measure].unstack("method").sort_index()


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


def differences(
    rows: pd.DataFrame, multiply_adds: float, method: str, other: str, measure: str = "test_accuracy"
) -> pd.DataFrame:
    """Return by how much a method exceeds another, for each task and network with two draws of both or more.

    Args:
        rows: of benchmarks/real_size.py.
        multiply_adds: the limit, as a fraction.
        method: the one.
        other: the other.
        measure: a column of the rows.

    Returns:
        A row a task and network: mean, low and high (95 %, corrected for draws from one pool), p, draws, and other, the
        other method's mean.
    """
    found = []
    both = accuracies(rows, multiply_adds, measure).reindex(columns=[method, other]).dropna()
    overlap = rows.groupby(PAIR)["overlap"].first()
    for pair, of_pair in both.groupby(PAIR):
        difference = of_pair[method] - of_pair[other]
        if len(difference) > 1:
            low, high, p = paired_interval(difference, overlap[pair])
            statistics = {"mean": difference.mean(), "low": low, "high": high, "p": p, "draws": len(difference)}
            found.append(dict(zip(PAIR, pair, strict=True)) | statistics | {"other": of_pair[other].mean()})
    columns = [*PAIR, "mean", "low", "high", "p", "draws", "other"]
    return pd.DataFrame(found, columns=columns).set_index(PAIR)
