"""Scores of images summed by class."""

import numpy as np

from lrp_core.utils.sites import AllReduce, reduced, single_site


def class_shares(
    scores: np.ndarray, labels: np.ndarray, layer_of: np.ndarray, all_reduce: AllReduce = single_site
) -> np.ndarray:
    """Sum scores over the images of each class and divide by the layer's sum, so that each layer weighs alike.

    Args:
        scores: (N, n_filters); NaN for filters that are gone.
        labels: (N,).
        layer_of: (n_filters,).
        all_reduce: sums over images, over all places.

    Returns:
        (n_classes, n_filters); summed over classes and the filters of a layer it is 1, or 0 where no filter of the
        layer scores.
    """
    by_class = reduced(np.stack([scores[labels == label].sum(axis=0) for label in range(labels.max() + 1)]), all_reduce)
    by_layer = np.bincount(layer_of, weights=np.nan_to_num(by_class.sum(axis=0)))
    by_layer[by_layer == 0] = 1.0
    return by_class / by_layer[layer_of]
