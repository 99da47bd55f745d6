"""Choose a size if accuracy may fall by a given number of points on unseen images."""

from collections.abc import Sequence

import numpy as np

from lrp_core.control.path import PathRow


def smallest_within(rows: Sequence[PathRow], points: float) -> PathRow:
    """Return the smallest size whose estimated drop, smoothed along the path, is within the points.

    Estimates of single sizes are noisy: on few images a drop of 4 points may appear between two drops of 0. A smaller
    network of the same path is not expected to be better. So the drops are replaced by the nearest sequence that never
    decreases as the network shrinks: isotonic regression (Barlow et al., Statistical Inference under Order
    Restrictions, 1972). Development draws chose this (docs/results.md).

    Drops count from the unpruned network, or from the first sizes if these are more accurate: what a new last layer
    gains is kept, and not spent on pruning.

    Args:
        rows: of a path with estimates, the unpruned network first.
        points: of 100.
    """
    from sklearn.isotonic import isotonic_regression  # here, because it imports pandas if installed

    if len(rows) == 1:
        return rows[0]
    drops = isotonic_regression(np.array([row.estimate.drop for row in rows[1:]]))
    return rows[(drops <= points + min(0, drops[0]) + 1e-9).sum()]  # 1e-9: rounding
