"""Methods side by side on real networks: from the rows of benchmarks/real_size.py to accuracies and differences."""

import pandas as pd

from lrp_core.study.analysis.promise import DEFAULT, LAYER_BY_LAYER, NEURON_MERGING
from lrp_core.study.analysis.statistics import paired_interval

LRP, CONTROLLED = "px-iterative-abs", "dynamic"
NAMES = {  # as tables and figures call them
    DEFAULT: "ours",
    LAYER_BY_LAYER: "layer by layer",
    NEURON_MERGING: "Neuron Merging",
    LRP: "iterative LRP",
    CONTROLLED: "iterative LRP, controller",
    f"{LRP}+reconstruction": "iterative LRP, reconstruction",
    f"{CONTROLLED}+reconstruction": "iterative LRP, controller, reconstruction",
    "joint": "joint selection",
    "dynamic-joint": "joint selection, controller",
    "weight": "L1, global",
    "taylor": "Taylor, global",
}


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
    largest = within.groupby(["task", "network", "seed", "method"], sort=False).first()
    reached = largest[largest["multiply_adds"] > 0.8 * multiply_adds]
    return reached[measure].unstack("method").sort_index()


def differences(rows: pd.DataFrame, multiply_adds: float, method: str, other: str) -> pd.DataFrame:
    """Return by how much a method exceeds another, for each task and network.

    Args:
        rows: of benchmarks/real_size.py.
        multiply_adds: the limit, as a fraction.
        method: the one.
        other: the other.

    Returns:
        A row a task and network: mean, low and high (95 %, corrected for draws from one pool), p, draws.
    """
    found = {}
    both = accuracies(rows, multiply_adds)[[method, other]].dropna()
    overlap = rows.groupby(["task", "network"])["overlap"].first()
    for pair, of_pair in both.groupby(["task", "network"]):
        difference = of_pair[method] - of_pair[other]
        if len(difference) > 1:
            low, high, p = paired_interval(difference, overlap[pair])
            found[pair] = {"mean": difference.mean(), "low": low, "high": high, "p": p, "draws": len(difference)}
    return pd.DataFrame(found).T.rename_axis(["task", "network"])
