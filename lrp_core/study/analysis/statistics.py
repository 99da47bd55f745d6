"""Tests against chance: differences paired by seed, several tests at once, and accuracies."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

_ROUNDING = 1e-12  # of differences between means of a few hundred images


def paired_interval(differences: Sequence[float], overlap: float) -> tuple[float, float, float]:
    """Return the 95 % interval of the mean of paired differences by Student's t, and the p-value of a mean of 0.

    Seeds draw their images from one pool, so their differences are correlated, and their mean varies more than
    independent ones would. With the correlation rho, the variance of the mean of k differences is estimated by
    (1/k + rho / (1 - rho)) times their sample variance. Source: Nadeau and Bengio, Inference for the Generalization
    Error, Machine Learning 52, 2003, sec. 3, who take the share of the pool that a draw's test images are for rho.

    Args:
        differences: one per seed. Those below 1e-12 are rounding errors and count as 0.
        overlap: rho, the share of the images that a seed tests (:func:`lrp_core.study.data.splits.overlap`), in
            [0, 1); 0 for independent draws.

    Returns:
        Its low end, its high end, and p (two-sided). If all differences are equal, the interval is one point; p is then
        1 if they are 0, and 0 otherwise.

    Raises:
        ValueError: fewer than two differences, or an overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must lie in [0, 1), a share of all images; got {overlap}")
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 2:
        raise ValueError(f"an interval needs two or more paired differences, got {len(differences)}; run more seeds")
    differences = np.where(np.abs(differences) < _ROUNDING, 0.0, differences)
    if np.ptp(differences) < _ROUNDING:  # equal: there is no deviation to divide by
        return float(differences[0]), float(differences[0]), float(differences[0] == 0)
    degrees, mean = len(differences) - 1, float(differences.mean())
    error = float(differences.std(ddof=1)) * (1 / len(differences) + overlap / (1 - overlap)) ** 0.5
    half = float(student.ppf(0.975, degrees)) * error
    return mean - half, mean + half, float(2 * student.sf(abs(mean) / error, degrees))


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p-values corrected for several tests, so that each can be compared with 5 % (Holm 1979).

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on; none is below the one before, none
    above 1. Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics,
    1979.
    """
    p = np.asarray(p, dtype=float)
    rank = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[rank] = np.maximum.accumulate(p[rank] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def above_chance(accuracies: np.ndarray, images: np.ndarray) -> bool:
    """Return whether the mean class accuracy is higher than that of random guesses in 95 % of all cases.

    The test is one-sided and assumes that the mean accuracy of the guesses is normally distributed.

    Args:
        accuracies: of each class, (n_classes,).
        images: how many each was measured on, (n_classes,).
    """
    chance = 1 / len(accuracies)
    deviation = np.sqrt(np.sum(chance * (1 - chance) / images)) / len(accuracies)
    return bool(np.mean(accuracies) > chance + norm.isf(0.05) * deviation)
