"""Is it more than chance? Differences that are paired by seed, several of them, and accuracies against guessing."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, ttest_1samp


def paired_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return the 95 % interval of the mean of paired differences by Student's t, and the p-value of a mean of 0.

    Returns:
        Its low end, its high end, and p (two-sided).

    Raises:
        ValueError: fewer than two differences.
    """
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 2:
        raise ValueError(f"an interval needs two or more paired differences, got {len(differences)}; run more seeds")
    if np.ptp(differences) < 1e-12:  # of which no deviation can be told
        return float(differences[0]), float(differences[0]), float(differences[0] == 0)
    test = ttest_1samp(differences, 0)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p-values that may each be compared with 5 %, though there are several.

    Holm, A simple sequentially rejective multiple test procedure, 1979: the smallest of m times m, the next times
    m - 1, and so on, none below the one before, none above 1.
    """
    p = np.asarray(p, dtype=float)
    rank = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[rank] = np.maximum.accumulate(p[rank] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def above_chance(accuracies: np.ndarray, images: np.ndarray) -> bool:
    """Tell whether class accuracies are higher on average than guessing makes them in 95 % of all cases.

    One-sided, normal approximation.

    Args:
        accuracies: of each class, (n_classes,).
        images: that each was measured on, (n_classes,).
    """
    chance = 1 / len(accuracies)
    deviation = np.sqrt(np.sum(chance * (1 - chance) / images)) / len(accuracies)
    return bool(np.mean(accuracies) > chance + norm.isf(0.05) * deviation)
