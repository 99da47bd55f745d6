"""Scores of images summed by class, as shares of their layer."""

import numpy as np

from lrp_core.utils.sites import AllReduce, reduced, single_site

CANCELLING = 0.01  # a layer's sum counts as at least this fraction of the sum of its absolute values


def class_shares(
    scores: np.ndarray, labels: np.ndarray, layer_of: np.ndarray, all_reduce: AllReduce = single_site
) -> np.ndarray:
    """Sum scores over the images of each class and divide by the layer's sum, so that all layers have the same weight.

    Source: Yeom et al., Pruning by Explaining, 2021, whose code divides signed relevance by its sum over the layer. If
    relevance is conserved, that sum is the number of images. Otherwise it may be negative, so that dividing by it would
    reverse the order of the layer's filters, or near 0, so that the shares would be unbounded. Our reading: divide by
    the absolute value of the sum, but by at least :data:`CANCELLING` times the sum of the absolute values over the
    layer's filters and classes. Then the order within a layer is that of the scores, and no share exceeds
    1 / CANCELLING. If no score is negative, neither changes anything.

    Args:
        scores: (N, n_filters); NaN for filters that are removed.
        labels: (N,).
        layer_of: (n_filters,).
        all_reduce: sums over images, over all sites.

    Returns:
        (n_classes, n_filters), NaN for filters that are removed. The sum over classes and the filters of a layer is 1;
        -1 if the layer's sum is negative; smaller in size if scores cancel; 0 if all scores are 0.
    """
    by_class = reduced(np.stack([scores[labels == label].sum(axis=0) for label in range(labels.max() + 1)]), all_reduce)
    by_layer = np.abs(np.bincount(layer_of, weights=np.nan_to_num(by_class.sum(axis=0))))
    sizes = np.bincount(layer_of, weights=np.nan_to_num(np.abs(by_class).sum(axis=0)))
    by_layer = np.maximum(by_layer, CANCELLING * sizes)
    by_layer[by_layer == 0] = 1.0
    return by_class / by_layer[layer_of]
