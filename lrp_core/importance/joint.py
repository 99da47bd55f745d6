"""Which filters go together: a joint choice, by what they contribute to the logits of all classes.

A sum of absolute relevance tells how much goes through a filter. It does not tell what becomes of the logits when many
filters go at once: contributions of opposite signs cancel, those of one sign add up, and what earlier steps have done
may be made good by the next. With c_ikf what filter f contributes to logit k of image i
(:class:`lrp_core.importance.contribution.Contribution`) and d_ik how far that logit has drifted from the unpruned network's, the
filters S that go next are to make

    sum_ik (d_ik - sum_{f in S} c_ikf)^2 + SPREAD * sum_{f in S} sum_ik c_ikf^2

small. It is minimised greedily, a filter at a time. The first term is the drift after the step, to first order; the
second is against large contributions, of which the first order may not be trusted to cancel. No label is read.

Ours. The nearest in the literature chooses weights, not filters, by a quadratic model of the loss (Yu et al., The
Combinatorial Brain Surgeon: Pruning Weights That Cancel One Another in Neural Networks, ICML 2022).
"""

import numpy as np

from lrp_core.utils.sites import AllReduce, reduced, single_site

SPREAD = 3.0  # chosen on development seeds, that no result uses
_CANDIDATES = 2  # so many times the filters to choose: the best of them one by one


def joint_order(
    contributions: np.ndarray,
    drift: np.ndarray,
    layer_of: np.ndarray,
    active: np.ndarray,
    size: int,
    all_reduce: AllReduce = single_site,
) -> np.ndarray:
    """Return each filter's place in the order in which they go, (n_filters,), 0 first; infinite where one is gone.

    ``size`` filters are chosen jointly, or fewer if each layer is to keep one; the others follow, best first.

    Args:
        contributions: (N, K, n_filters); of filters that are gone, anything.
        drift: of the logits, (N, K).
        layer_of: each filter's layer, (n_filters,).
        active: whether each filter is still there, (n_filters,).
        size: how many to choose.
        all_reduce: sums over images, over all places.
    """
    filters = np.flatnonzero(active)
    # What all logits of an image share changes no class's probability.
    c = (contributions - contributions.mean(axis=1, keepdims=True))[..., filters].reshape(-1, len(filters))
    d = (drift - drift.mean(axis=1, keepdims=True)).ravel()
    growth, makes_good = (
        (1 + SPREAD) * reduced((c**2).sum(axis=0), all_reduce),
        2 * reduced(d @ c, all_reduce),
    )  # of the objective
    near = np.argsort(growth - makes_good, kind="stable")[: _CANDIDATES * size]
    products, free = reduced(c[:, near].T @ c[:, near], all_reduce), np.ones(len(near), dtype=bool)
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
