"""Which filters are removed together: a joint choice, by what they contribute to the logits of all classes.

A sum of absolute relevance tells how much goes through a filter. It does not tell what becomes of the logits when many
filters are removed at once: contributions of opposite signs cancel, those of one sign add up, and what earlier steps
have done may be made good by the next. With c_ikf what filter f contributes to the centred logit k of image i
(:class:`lrp_core.importance.contribution.Contribution`) and d_ik how far that logit has drifted from the unpruned
network's, the set S of filters that are removed next is to make

    sum_ik (d_ik - sum_{f in S} c_ikf)^2 + SPREAD * sum_{f in S} sum_ik c_ikf^2

small. It is minimised greedily, a filter at a time. The first term is the drift after the step, to first order; the
second is against large contributions, of which the first order may not be trusted to cancel. No label is read.

The objective needs sums over images and classes alone: c^2 and d c by filter, then products of two contributions among
the filters that are near to being chosen. So contributions come in chunks, and memory is bounded by that of a chunk and
of these products, however many images and classes there are.

Ours. The nearest in the literature chooses weights, not filters, by a quadratic model of the loss (Yu et al., The
Combinatorial Brain Surgeon: Pruning Weights That Cancel One Another in Neural Networks, ICML 2022).
"""

from collections.abc import Iterable

import numpy as np

from lrp_core.utils.sites import AllReduce, reduced, single_site

SPREAD = 3.0  # chosen on development seeds, that no result uses
_NEAR = 2  # so many times the filters to choose: the best of them one by one


def joint_order(
    contributions: Iterable[tuple[slice, slice, np.ndarray]],
    drift: np.ndarray,
    layer_of: np.ndarray,
    active: np.ndarray,
    size: int,
    all_reduce: AllReduce = single_site,
) -> np.ndarray:
    """Return each filter's rank in the order of removal, (n_filters,), 0 first; infinite where one is removed already.

    ``size`` filters are chosen jointly, or fewer if each layer is to keep one; the others follow, best first.

    Args:
        contributions: to centred logits, in chunks: slices of images and of classes, and (images, classes, n_filters);
            of filters that are removed, anything. They are iterated over twice.
        drift: of the logits, (N, K).
        layer_of: each filter's layer, (n_filters,).
        active: whether each filter is still there, (n_filters,).
        size: how many to choose.
        all_reduce: sums over images, over all sites.
    """
    filters = np.flatnonzero(active)
    drift = drift - drift.mean(axis=1, keepdims=True)
    squares, along_drift = np.zeros(len(filters)), np.zeros(len(filters))
    for images, classes, chunk in contributions:
        c = _rows(chunk, filters)
        squares += np.einsum("rf,rf->f", c, c)
        along_drift += drift[images, classes].ravel() @ c
    # What removing a filter adds to the objective is the difference of these two; the second changes with each choice.
    growth, makes_good = (1 + SPREAD) * reduced(squares, all_reduce), 2 * reduced(along_drift, all_reduce)
    near = np.argsort(growth - makes_good, kind="stable")[: _NEAR * size]
    products = np.zeros((len(near), len(near)))
    for _, _, chunk in contributions:
        c = _rows(chunk, filters[near])
        products += c.T @ c
    products, free = reduced(products, all_reduce), np.ones(len(near), dtype=bool)
    left = np.bincount(layer_of[filters], minlength=layer_of.max() + 1)
    chosen = []
    while len(chosen) < size and free.any():
        best = int(np.where(free, growth[near] - makes_good[near], np.inf).argmin())
        free[best] = False
        layer = layer_of[filters[near[best]]]
        if left[layer] > 1:
            left[layer] -= 1
            chosen.append(near[best])
            makes_good[near] -= 2 * products[best]
    order = np.argsort(growth - makes_good, kind="stable")
    order = np.concatenate([np.array(chosen, dtype=int), order[~np.isin(order, chosen)]])
    ranks = np.full(len(active), np.inf)
    ranks[filters[order]] = np.arange(len(order))
    return ranks


def _rows(chunk: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Return contributions of some filters, a row a logit."""
    return chunk[..., filters].reshape(-1, len(filters))
