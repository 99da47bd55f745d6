"""Estimates from held-out images: accuracies with intervals, and how much they fell.

An image is held out if it was not used to make the network that it evaluates. Class accuracies are smoothed by an extra
half image on each side. So the harmonic mean is not 0 because of one class with few images, and no interval is empty
(Agresti and Coull, Approximate is better than exact for interval estimation of binomial proportions, 1998). Intervals
use the delta method with Student's t. Images of one group count as one observation.

The networks of k folds were made from fewer images than the final network. To account for this, the variance is
multiplied by 1 + 1 / (k - 1): one plus the ratio of evaluating to pruning images (Nadeau and Bengio, Inference for the
Generalization Error, Machine Learning 2003, who correct repeated splits this way). For folds this is a rule of thumb,
checked on draws (docs/results.md).
"""

from dataclasses import dataclass

import numpy as np

from lrp_core.metrics.accuracy import harmonic_mean
from lrp_core.utils.sites import AllReduce, reduced, single_site

CONFIDENCE = 0.9


@dataclass(frozen=True)
class Estimate:
    """Estimate of a network from held-out images, with 90 % intervals.

    Attributes:
        images: the number of held-out images.
        observations: the number of independent ones: images of one group and class count as one.
        accuracy, accuracy_interval: averaged over classes, in 0..1.
        harmonic_mean, harmonic_mean_interval: of the class accuracies, in 0..1.
        drop, drop_interval: accuracy of the unpruned network minus that of this one, in points of 100.
    """

    images: int
    observations: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    harmonic_mean: float
    harmonic_mean_interval: tuple[float, float]
    drop: float
    drop_interval: tuple[float, float]

    def __str__(self) -> str:
        """Return three readable lines, in points."""
        lines = (
            ("accuracy", 100 * self.accuracy, 100 * np.array(self.accuracy_interval)),
            ("harmonic mean of the classes", 100 * self.harmonic_mean, 100 * np.array(self.harmonic_mean_interval)),
            ("drop of the accuracy", self.drop, self.drop_interval),
        )
        return "\n".join(f"  {name:<30}{value:.1f} ({low:.1f} to {high:.1f})" for name, value, (low, high) in lines)


def estimate(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    all_reduce: AllReduce = single_site,
    n_folds: int | None = None,
) -> Estimate:
    """Return the estimate from held-out images.

    Args:
        before: whether the unpruned network is right on each image, (N,), boolean.
        after: whether the pruned network is right, (N,), boolean.
        labels: the images' classes, (N,), in 0..K-1, each class present.
        groups: of the images, (N,); images of one group are not independent of each other.
        all_reduce: sums over images, over all sites; each group is at one site.
        n_folds: the number of folds; None if all images evaluated the same network.
    """
    from scipy.special import stdtrit  # here, for it takes long to import

    n_classes = int(labels.max()) + 1
    counts = reduced(np.bincount(labels, minlength=n_classes).astype(float), all_reduce) + 1
    # Images of one group and class are one observation; the mean of each class takes one degree of freedom.
    observations = reduced(np.array([float(len(np.unique([groups, labels], axis=1).T))]), all_reduce)[0]
    freedom = max(1.0, observations - n_classes)
    width = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * np.sqrt(observations / freedom)
    width *= np.sqrt(1 + 1 / (n_folds - 1)) if n_folds else 1
    accuracies = {
        when: (reduced(np.bincount(labels, right, n_classes), all_reduce) + 0.5) / counts
        for when, right in (("before", before), ("after", after))
    }
    right = {"before": before, "after": after}
    # Derivatives of accuracy and harmonic mean with respect to the accuracy of each class.
    average = dict.fromkeys(right, np.full(n_classes, 1 / n_classes))
    harmonic = {when: harmonic_mean(of) ** 2 / (n_classes * of**2) for when, of in accuracies.items()}

    def error(slopes: dict[str, np.ndarray], parts: dict[str, float]) -> float:
        """Return the standard error of a sum of parts, each with a derivative by class."""
        influence = sum(
            sign * slopes[when][labels] * (right[when] - accuracies[when][labels]) / counts[labels]
            for when, sign in parts.items()
        )
        by_group = np.bincount(np.unique(groups, return_inverse=True)[1], influence)
        variance = reduced(np.array([np.square(by_group).sum()]), all_reduce)[0]
        for values in ((0, 0), (0, 1), (1, 0), (1, 1)):  # the extra image of each class, a quarter each
            one = dict(zip(("before", "after"), values, strict=True))
            more = sum(sign * slopes[when] * (one[when] - accuracies[when]) / counts for when, sign in parts.items())
            variance += np.square(more).sum() / 4
        return float(np.sqrt(variance))

    def interval(value: float, half: float, low: float, high: float) -> tuple[float, float]:
        return (float(max(low, value - width * half)), float(min(high, value + width * half)))

    accuracy, mean = float(accuracies["after"].mean()), harmonic_mean(accuracies["after"])
    drop = 100 * (float(accuracies["before"].mean()) - accuracy)
    drop_error = 100 * error(average, {"before": 1, "after": -1})
    return Estimate(
        images=int(reduced(np.array([float(len(labels))]), all_reduce)[0]),
        observations=int(observations),
        accuracy=accuracy,
        accuracy_interval=interval(accuracy, error(average, {"after": 1}), 0, 1),
        harmonic_mean=mean,
        harmonic_mean_interval=interval(mean, error(harmonic, {"after": 1}), 0, 1),
        drop=drop,
        drop_interval=interval(drop, drop_error, -100, 100),
    )


def certifiable(images: int) -> float:
    """Return the smallest drop, in points, that so many images can exclude, if no prediction changes.

    The confidence is 90 %, one-sided (Clopper and Pearson, The use of confidence or fiducial limits, 1934).
    """
    return 100 * (1 - (1 - CONFIDENCE) ** (1 / images))
