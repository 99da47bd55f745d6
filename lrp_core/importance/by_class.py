"""Scores of images summed by class, as shares of their layer."""

import numpy as np

from lrp_core.utils.sites import AllReduce, reduced, single_site

CANCELLING = 0.01  # a layer's sum counts as no less than this part of the sum of its absolute values


def class_shares(
    scores: np.ndarray, labels: np.ndarray, layer_of: np.ndarray, all_reduce: AllReduce = single_site
) -> np.ndarray:
    """Sum scores over the images of each class and divide by the layer's sum, so that each layer weighs alike.

    Source: Yeom et al., Pruning by Explaining, 2021, whose code divides signed relevance by its sum over the layer.
    With conserved relevance that sum is the number of images. Where relevance is not conserved it may be negative, and
    to divide by it would turn the order of the layer's filters round; or it may be near 0, and the shares would have no
    bound. Our reading: divide by the absolute value of the sum, but by no less than :data:`CANCELLING` times the sum of
    the absolute values of the layer's filters and classes. So within a layer the order is that of the scores, and no
    share is above 1 / CANCELLING. Where no score is negative neither changes anything.

    Args:
        scores: (N, n_filters); NaN for filters that are removed.
        labels: (N,).
        layer_of: (n_filters,).
        all_reduce: sums over images, over all sites.

    Returns:
        (n_classes, n_filters), NaN for filters that are removed. Summed over classes and the filters of a layer it is
        1; -1 where the layer's sum is negative; less in size where scores cancel; 0 where no filter scores.
    """
    by_class = reduced(np.stack([scores[labels == label].sum(axis=0) for label in range(labels.max() + 1)]), all_reduce)
    by_layer = np.abs(np.bincount(layer_of, weights=np.nan_to_num(by_class.sum(axis=0))))
    sizes = np.bincount(layer_of, weights=np.nan_to_num(np.abs(by_class).sum(axis=0)))
    by_layer = np.maximum(by_layer, CANCELLING * sizes)
    by_layer[by_layer == 0] = 1.0
    return by_class / by_layer[layer_of]
