"""Joint selection: choose the filters to remove together, by their contributions to the logits of all classes.

A sum of absolute relevance says how much passes through a filter. It does not say how the logits change when many
filters are removed at once: contributions of opposite signs cancel, those of equal signs add up, and a step can undo
the drift of earlier ones. Let c_ikf be the contribution of filter f to the centred logit k of image i
(:class:`lrp_core.importance.contribution.Contribution`), and d_ik how far that logit has drifted from the unpruned
network's. The next set S of filters to remove should minimise

    sum_ik (d_ik - sum_{f in S} c_ikf)^2 + SPREAD * sum_{f in S} sum_ik c_ikf^2

The minimisation is greedy, one filter at a time. The first term is the drift after the step, to first order. The second
penalises large contributions, because a first-order estimate cannot be trusted to make them cancel. No labels are used.

The objective needs only sums over images and classes: c^2 and d c for each filter, then products of two contributions
among the best candidates. So contributions are processed in chunks. Memory is bounded by one chunk and these products,
however many images and classes there are.

Ours. The closest published method chooses weights, not filters, by a quadratic model of the loss (Yu et al., The
Combinatorial Brain Surgeon: Pruning Weights That Cancel One Another in Neural Networks, ICML 2022).
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable

import numpy as np

from lrp_core.utils.sites import AllReduce, reduced, single_site

SPREAD = 3.0  # chosen on development seeds, which no result uses
_NEAR = 2  # candidates per filter to choose: the best ones, scored one by one


def joint_order(
    contributions: Iterable[tuple[slice, slice, np.ndarray]],
    drift: np.ndarray,
    layer_of: np.ndarray,
    active: np.ndarray,
    size: int,
    all_reduce: AllReduce = single_site,
) -> np.ndarray:
    """Return each filter's rank in the order of removal, (n_filters,), 0 first; infinite for removed filters.

    ``size`` filters are chosen jointly, or fewer so that each layer keeps one; the others follow, best first.

    Args:
        contributions: to centred logits, in chunks: slices of images and of classes, and (images, classes, n_filters);
            values of removed filters are ignored. They are iterated over twice.
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
    # Removing a filter changes the objective by the difference of these two; the second changes with each choice.
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
    """Return the filters to remove together so that a cost falls to a limit, in the order of their choice.

    The objective is that of :func:`joint_order`. The increase that a filter causes is divided by the cost that its
    removal saves. So of two equally harmful filters, the more expensive one is removed.

    Args:
        contributions: to combinations of centred logits, (rows, n_filters), one row per image and combination; values
            of removed filters are ignored.
        drift: of the same combinations, (rows,).
        savings: cost saved by removing each filter alone, (n_filters,).
        excess: how far the cost exceeds the limit without the given filters; 0 or less within the limit.
        layer_of: each filter's layer, (n_filters,).
        active: whether each filter is still there, (n_filters,).
        all_reduce: sums over images, over all sites.

    Returns:
        Filter numbers; if the limit cannot be met with one filter left in each layer, all that can be removed.
    """
    filters = np.flatnonzero(active)
    c = contributions[:, filters]
    growth = (1 + SPREAD) * reduced(np.einsum("rf,rf->f", c, c, dtype=float), all_reduce)
    change = growth - 2 * reduced((drift @ c).astype(float), all_reduce)
    # Candidates: the best filters scored one by one, several times as many as would meet the limit.
    saved, too_much = np.maximum(savings[filters], 1.0), excess(np.array([], dtype=int))
    order = np.argsort(_per_saving(change, saved), kind="stable")
    enough = int(np.searchsorted(np.cumsum(saved[order]), _NEAR * too_much)) + 1
    near = order[: max(enough, _NEAR * len(np.unique(layer_of)))]
    products = reduced((c[:, near].T @ c[:, near]).astype(float), all_reduce)
    change, saved, near = change[near], saved[near], filters[near]
    left = np.bincount(layer_of[filters], minlength=layer_of.max() + 1)
    free, chosen = left[layer_of[near]] > 1, []
    while too_much > 0 and free.any():
        gained = 0.0  # an upper bound of what is saved: savings of filters that meet in a layer overlap
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
    if too_much > 0 and len(near) < len(filters):  # the candidates did not suffice: choose from the rest next
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
    """Return the harm per saving; for a filter whose removal lowers the objective, benefit times saving."""
    return np.where(change > 0, change / saved, change * saved)


def _rows(chunk: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Return contributions of some filters, one row per logit."""
    return chunk[..., filters].reshape(-1, len(filters))
