"""The split into calibration images, test images, and images whose labels are not read."""

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold

from lrp_core.study.data.datasets import Dataset

UNLABELLED = -1  # in the place of a label


def split_dataset(
    dataset: Dataset, seed: int, n_calibration: int, n_test: int, block: int, n_unlabelled: int = 0
) -> pd.DataFrame:
    """Draw calibration and test images from different blocks of neighbouring images.

    Neighbouring images may show the same thing (cells of one solar module, frames of one film). So blocks of ``block``
    consecutive positions go to one side as a whole, with the classes balanced over the two sides.

    Args:
        dataset: the labelled images.
        seed: draws blocks and images; another seed gives another split.
        n_calibration: exact number of calibration images per class.
        n_test: largest number of test images per class; a class with fewer on the test side uses all of them.
        block: consecutive positions that stay together.
        n_unlabelled: largest number of other images from the calibration side, of any class.

    Returns:
        One row per drawn image, sorted by index: index (into ``dataset``), label, block, split ("calibration",
        "test" or "unlabelled"). The label of an unlabelled image is -1.

    Raises:
        ValueError: classes have too few images on the calibration side, or none on the test side (all are named); a
            count is below 1.
    """
    for name, value in (("n_calibration", n_calibration), ("n_test", n_test), ("block", block)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if n_unlabelled < 0:
        raise ValueError(f"n_unlabelled must be 0 or more, got {n_unlabelled}")
    labels = dataset.labels.numpy()
    blocks = dataset.positions.numpy() // block
    if len(np.unique(blocks)) < 2:
        raise ValueError(f"blocks of {block} images leave fewer than two blocks to split; choose a smaller block")
    halves = StratifiedGroupKFold(n_splits=2, shuffle=True, random_state=seed)
    calibration_side, test_side = next(halves.split(labels, labels, blocks))
    rng = np.random.default_rng(seed)
    sides = {"calibration": calibration_side, "test": test_side}
    counts = {side: np.bincount(labels[indices], minlength=len(dataset.class_names)) for side, indices in sides.items()}
    if (short := np.flatnonzero((counts["calibration"] < n_calibration) | (counts["test"] < 1))).size:
        found = "; ".join(
            f"{dataset.class_names[c]!r}: {counts['calibration'][c]} and {counts['test'][c]}" for c in short
        )
        most = counts["calibration"].min()
        advice = f"set calibration_per_class in params.yaml to {most} or less, or label more" if most else "label more"
        raise ValueError(
            f"too few images for {n_calibration} calibration and 1 or more test images a class. On the calibration"
            f" and on the test side, with seed {seed}, there are of {found}: {advice}"
        )
    drawn = []
    for label in range(len(dataset.class_names)):
        for side, n in (("calibration", n_calibration), ("test", min(n_test, counts["test"][label]))):
            indices = sides[side][labels[sides[side]] == label]
            chosen = rng.choice(indices, size=n, replace=False)
            drawn.append(pd.DataFrame({"index": chosen, "label": label, "block": blocks[chosen], "split": side}))
    rest = np.setdiff1d(calibration_side, np.concatenate([rows["index"] for rows in drawn]))
    chosen = rng.choice(rest, size=min(n_unlabelled, len(rest)), replace=False)
    if len(chosen):
        drawn.append(
            pd.DataFrame({"index": chosen, "label": UNLABELLED, "block": blocks[chosen], "split": "unlabelled"})
        )
    return pd.concat(drawn).sort_values("index", ignore_index=True)


def overlap(labels: torch.Tensor, tested: torch.Tensor, draws: int = 1) -> float:
    """Return the share of a class's images that a draw tests, averaged over classes.

    Draws from one pool share test images, which correlates their results: two random halves of a class share half of
    their images on average. Class-averaged accuracies of two draws are correlated by this mean, if classes vary alike
    (:func:`lrp_core.study.analysis.statistics.paired_interval`).

    Args:
        labels: of all images, (N,), in 0..K-1.
        tested: labels of the test images of all draws, (M,).
        draws: how many there are.
    """
    counts = labels.bincount().double()
    return float((tested.bincount(minlength=len(counts)) / (draws * counts)).mean())
