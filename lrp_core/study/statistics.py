"""Is it more than chance? Intervals for differences that are paired by seed, and accuracies against guessing."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, norm


def paired_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval (BCa, Efron 1987) of the mean of paired differences.

    Raises:
        ValueError: fewer than two differences.
    """
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 2:
        raise ValueError(f"an interval needs two or more paired differences, got {len(differences)}; run more seeds")
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    interval = bootstrap((differences,), np.mean, rng=np.random.default_rng(seed)).confidence_interval
    return float(interval.low), float(interval.high)


def above_chance(accuracies: np.ndarray, images: np.ndarray, level: float = 0.05) -> bool:
    """Tell whether class accuracies are higher on average than guessing makes them; one-sided, normal approximation.

    Args:
        accuracies: of each class, (n_classes,).
        images: that each was measured on, (n_classes,).
        level: how often guessing is taken for more than that.
    """
    chance = 1 / len(accuracies)
    deviation = np.sqrt(np.sum(chance * (1 - chance) / images)) / len(accuracies)
    return bool(np.mean(accuracies) > chance + norm.isf(level) * deviation)
