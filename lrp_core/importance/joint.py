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

from bisect import bisect_left
from collections.abc import Callable, Iterable

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


def joint_choice(
    contributions: np.ndarray,
    drift: np.ndarray,
    savings: np.ndarray,
    excess: Callable[[np.ndarray], int],
    layer_of: np.ndarray,
    active: np.ndarray,
    all_reduce: AllReduce = single_site,
) -> np.ndarray:
    """Return the filters that are removed together so that a cost falls to a limit, in the order of their choice.

    The objective is that of :func:`joint_order`. What a filter adds to it is divided by what its removal saves, so that
    of two filters that do the same harm the one goes that costs more.

    Args:
        contributions: to combinations of centred logits, (rows, n_filters), a row an image and combination; of filters
            that are removed, anything.
        drift: of the same combinations, (rows,).
        savings: of the cost by filter, if it goes alone, (n_filters,).
        excess: how far the cost lies above the limit without the given filters; 0 or less within it.
        layer_of: each filter's layer, (n_filters,).
        active: whether each filter is still there, (n_filters,).
        all_reduce: sums over images, over all sites.

    Returns:
        Filter numbers. If the limit cannot be kept with a filter left in each layer, all that can be removed.
    """
    filters = np.flatnonzero(active)
    c = contributions[:, filters]
    growth = (1 + SPREAD) * reduced(np.einsum("rf,rf->f", c, c, dtype=float), all_reduce)
    change = growth - 2 * reduced((drift @ c).astype(float), all_reduce)
    # Several times what would do by itself: the best of them one by one are chosen from.
    saved, too_much = np.maximum(savings[filters], 1.0), excess(np.array([], dtype=int))
    order = np.argsort(_per_saving(change, saved), kind="stable")
    enough = int(np.searchsorted(np.cumsum(saved[order]), _NEAR * too_much)) + 1
    near = order[: max(enough, _NEAR * len(np.unique(layer_of)))]
    products = reduced((c[:, near].T @ c[:, near]).astype(float), all_reduce)
    change, saved, near = change[near], saved[near], filters[near]
    left = np.bincount(layer_of[filters], minlength=layer_of.max() + 1)
    free, chosen = left[layer_of[near]] > 1, []
    while too_much > 0 and free.any():
        gained = 0.0  # no more than this is saved: savings of filters that meet in a layer overlap
        while gained < too_much and free.any():
            best = int(np.where(free, _per_saving(change, saved), np.inf).argmin())
            free[best], layer = False, layer_of[near[best]]
            left[layer] -= 1
            if left[layer] == 1:
                free[layer_of[near] == layer] = False
            chosen.append(near[best])
            gained += saved[best]
            change += 2 * products[best]
        too_much = excess(np.array(chosen))
    if too_much > 0 and len(near) < len(filters):  # the near ones did not do: what they leave is chosen from next
        rest = active.copy()
        rest[chosen] = False
        drift = drift - contributions[:, chosen].sum(axis=1)
        more = joint_choice(
            contributions,
            drift,
            savings,
            lambda others: excess(np.append(chosen, others).astype(int)),
            layer_of,
            rest,
            all_reduce,
        )
        return np.append(chosen, more).astype(int)
    within = bisect_left(range(len(chosen)), 0, key=lambda size: -excess(np.array(chosen[:size], dtype=int)))
    return np.array(chosen[:within], dtype=int)


def _per_saving(change: np.ndarray, saved: np.ndarray) -> np.ndarray:
    """Return the harm per saving; what does good does more of it where more is saved."""
    return np.where(change > 0, change / saved, change * saved)


def _rows(chunk: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Return contributions of some filters, a row a logit."""
    return chunk[..., filters].reshape(-1, len(filters))
