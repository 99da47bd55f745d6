"""The pruning curve (accuracy against pruning rate): its grid, and the area under it."""

from collections.abc import Sequence

import numpy as np

MAX_RATE = 0.95  # curves end here: with fewer filters every network is at chance


def filters_at(rate: float, n_filters: int) -> int:
    """Return how many filters are pruned at a pruning rate: the smallest number that reaches it."""
    return int(np.ceil(round(rate * n_filters, 6)))  # 0.95 * 20 is 19, not a hair more


def pruning_auc(rates: Sequence[float], accuracies: Sequence[float]) -> float:
    """Return the area under accuracy against pruning rate from 0 to 0.95, divided by 0.95: an average accuracy.

    The area is computed by trapezoids. A point beyond 0.95 serves to interpolate the end of the curve.

    Args:
        rates: achieved pruning rates, increasing, from 0 to 0.95 or beyond.
        accuracies: the accuracy at each rate.

    Raises:
        ValueError: the rates do not increase, do not start at 0 or end before 0.95.
    """
    rates, accuracies = np.asarray(rates, dtype=float), np.asarray(accuracies, dtype=float)
    if rates.shape != accuracies.shape or rates.ndim != 1:
        raise ValueError(f"expected as many rates as accuracies, got {rates.shape} and {accuracies.shape}")
    if len(rates) < 2 or rates[0] != 0 or not (np.diff(rates) > 0).all() or not MAX_RATE - 1e-9 <= rates[-1] <= 1:
        raise ValueError(f"rates must increase from 0 to {MAX_RATE} or beyond (at most 1), got {rates.tolist()}")
    inside = rates < MAX_RATE - 1e-9
    end = np.interp(MAX_RATE, rates, accuracies)
    return float(np.trapezoid(np.append(accuracies[inside], end), np.append(rates[inside], MAX_RATE)) / MAX_RATE)
