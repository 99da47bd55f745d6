"""Does the call keep its word? Compare its estimates with test results, from the rows of benchmarks/promise.py."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from lrp_core.control.selection import smallest_within

OURS, LAYER_BY_LAYER, NEURON_MERGING = "joint-cost+reconstruction", "layer-by-layer", "neuron-merging"
DISTILLED = f"{OURS}+distillation"
CHOSEN = f"smaller-images+{OURS}"  # the call chooses the image size
INTERMEDIATE = f"smaller-images+intermediate-features+{OURS}"  # and fits a head on intermediate features
DEFAULT = "default"  # what the call does with each network
TRAINED = ("resnet20", "resnet56", "squeezenet1_1-trained")  # networks that were trained for their task
POINTS = 2.0  # that the accuracy may fall by, the call's default
FRESH = 5000  # seeds from this one on were measured after the rule for it was fixed
DRAW = ["task", "network", "seed"]


def by_default(network: str) -> str:
    """Return what the call does with a network by default: it chooses the image size; frozen ones get a new head."""
    return CHOSEN if network in TRAINED else INTERMEDIATE


def with_default(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what the call does by default named :data:`DEFAULT`."""
    return rows.assign(method=rows["method"].mask(rows["method"] == rows["network"].map(by_default), DEFAULT))


def choices(rows: pd.DataFrame, method: str | None = None) -> pd.DataFrame:
    """Return what ``max_accuracy_drop`` chooses in each draw of a method, and the results on unseen images.

    Args:
        rows: of benchmarks/promise.py, one a draw, method and size.
        method: of the call; None for its default.

    Returns:
        By draw: the multiply-adds left; by how much accuracy and harmonic mean fell on the test images, in points; the
        estimated fall of the accuracy; whether the stated intervals hold the test's values; and the least
        multiply-adds at which layer by layer has no less an accuracy on the test images (1 if it has it nowhere; NaN if
        it was not measured).
    """
    found = []
    for draw, of_draw in rows.groupby(DRAW, sort=False):
        of_method = of_draw["method"] == (method or by_default(draw[1]))
        ours = of_draw[of_method & of_draw["drop"].notna()]  # the path, without sizes between
        if ours.empty:
            continue
        ours = ours.sort_values("multiply_adds", ascending=False)
        sizes = [SimpleNamespace(estimate=SimpleNamespace(drop=row.drop), row=row) for row in ours.itertuples()]
        row, whole = smallest_within(sizes, POINTS).row, sizes[0].row
        other = of_draw[(of_draw["method"] == LAYER_BY_LAYER)]
        as_good = [1.0, *other["multiply_adds"][other["test_accuracy"] >= row.test_accuracy]]
        found.append(
            dict(zip(DRAW, draw, strict=True))
            | {
                "multiply_adds": row.multiply_adds,
                "loss": 100 * (whole.test_accuracy - row.test_accuracy),
                "harmonic_mean_loss": 100 * (whole.test_harmonic_mean - row.test_harmonic_mean),
                "estimated_loss": row.drop,
                "accuracy_holds": row.accuracy_low <= row.test_accuracy <= row.accuracy_high,
                "harmonic_mean_holds": row.harmonic_mean_low <= row.test_harmonic_mean <= row.harmonic_mean_high,
                "layer_by_layer": min(as_good) if len(other) else np.nan,
                "seconds": row.seconds,
                "passes": row.passes,
            }
        )
    return pd.DataFrame(found)


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Return by how much the default's estimates miss, on average over draws.

    Args:
        rows: of benchmarks/promise.py, one a draw, method and size.

    Returns:
        A row for the unpruned network, all pruned sizes, those with a predicted gain, and the chosen size; columns
        ``accuracy`` and ``drop``: the estimate less the test's value, in points.
    """
    ours = rows[(rows["method"] == rows["network"].map(by_default)) & rows["drop"].notna()]
    whole = ours[ours["multiply_adds"] == 1].set_index(DRAW)["test_accuracy"]
    ours = ours.join(whole.rename("whole"), on=DRAW)
    missed = pd.DataFrame(
        {
            "accuracy": 100 * (ours["accuracy"] - ours["test_accuracy"]),
            "drop": ours["drop"] - 100 * (ours["whole"] - ours["test_accuracy"]),
        }
    )
    chosen = ours.merge(choices(rows)[[*DRAW, "multiply_adds"]].assign(chosen=True), how="left")["chosen"]
    masks = {
        "the unpruned network": ours["multiply_adds"] == 1,
        "all pruned sizes": ours["multiply_adds"] < 1,
        "pruned sizes with a predicted gain": (ours["multiply_adds"] < 1) & (ours["drop"] < 0),
        "the chosen size": chosen.notna().to_numpy(),
    }
    return pd.DataFrame({name: missed[mask].mean() for name, mask in masks.items()}).T


def at_size(rows: pd.DataFrame, multiply_adds: float) -> pd.DataFrame:
    """Return each method's largest network within a fraction of the multiply-adds, by draw: its test accuracy.

    Returns:
        One row per draw, one column per method, and the unpruned network's; NaN where a method has none that uses four
        fifths of the fraction.
    """
    within = rows[rows["multiply_adds"].between(0.8 * multiply_adds, multiply_adds + 0.005)]
    within = within.sort_values("multiply_adds", ascending=False)
    found = within.groupby([*DRAW, "method"], sort=False)["test_accuracy"].first().unstack("method")
    whole = rows[rows["multiply_adds"] == 1].groupby(DRAW, sort=False)["test_accuracy"].first()
    return found.assign(unpruned=whole)
