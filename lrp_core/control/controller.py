"""The controller: pruning rate and order steered by the harmonic mean of the class accuracies.

This is our reading of the idea in Yasui, Matsuki and Sato (arXiv 2511.10861), of which we had only the abstract. The
paper re-evaluates relevance as pruning proceeds, and lets rate and order follow the harmonic mean A of the class
accuracies. The rules below are ours.

1. Order. Filters are removed by the class-weighted relevance sum_c w_c R_cf, lowest first. w_c is proportional to
   dA/da_c, and so to 1/a_c^2: filters that serve weak classes are removed last.
2. Rate. The next ``batch`` filters in that order are removed together if A stays above the bound of the current level.
   If not, the batch is split by layer. Parts that break the bound alone are deferred. Of the others, as many as meet
   the bound together are removed, best first, and the rest is deferred.
3. Levels. If too little of a batch could be removed, or only deferred filters are left, the bound is relaxed to the
   next level. Deferred filters become candidates again, except parts that would break the new bound too, as measured
   before.

The controller is pure logic. It sees a network through three functions, and never the test images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lrp_core.metrics.accuracy import harmonic_mean
from lrp_core.metrics.curve import MAX_RATE, filters_at

NO_FILTERS = np.array([], dtype=np.int64)
LEVELS = (0.95, 0.85, 0.7, 0.5, 0.3)


@dataclass(frozen=True)
class Settings:
    """Settings of the controller.

    Attributes:
        batch: filters proposed at once, as a fraction of all filters at the start.
        taper: the largest batch, as a fraction of the remaining filters.
        least: a level ends when less than this fraction of a batch could be removed.
        levels: bounds, as fractions of the unpruned network's A, descending; after the last one every filter may be
            removed.
        order: weight classes by 1/a_c^2; otherwise all classes have the same weight.
        rate: check each batch and split it if it breaks the bound; otherwise every batch is removed. With ``order`` and
            ``rate`` both off the controller is ``px-iterative`` (Yeom et al. 2021).
        accuracy_floor: lower bound of a class accuracy in the weights, so that a class at 0 does not get all weight.
    """

    batch: float = 0.05
    taper: float = 0.5
    least: float = 0.25
    levels: tuple[float, ...] = LEVELS
    order: bool = True
    rate: bool = True
    accuracy_floor: float = 0.05

    def __post_init__(self):
        """Raise an error for impossible settings."""
        for name in ("batch", "taper"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {value}")
        if not 0 <= self.least <= 1:
            raise ValueError(f"least must lie in [0, 1], got {self.least}")
        if list(self.levels) != sorted(set(self.levels), reverse=True) or not all(
            0 < level <= 1 for level in self.levels
        ):
            raise ValueError(f"levels must descend within (0, 1], got {self.levels}")
        if not 0 < self.accuracy_floor < 1:
            raise ValueError(f"accuracy_floor must lie in (0, 1), got {self.accuracy_floor}")

    def largest_step(self, n_filters: int, n_pruned: int) -> int:
        """Return how many filters are proposed at once when ``n_pruned`` are already removed."""
        return min(filters_at(self.batch, n_filters), filters_at(self.taper, n_filters - n_pruned))


@dataclass(frozen=True)
class Step:
    """Record of one step of pruning.

    Attributes:
        step: 0, 1, ...
        level: index of the level; ``len(levels)`` once every filter may be removed.
        bound: the smallest harmonic mean that this level accepts.
        requested: filters proposed.
        removed: the filters that were removed, by number, lowest score first.
        deferred: how many filters are deferred until the level relaxes.
        rate: achieved fraction of filters removed, after the step.
        before, after: harmonic mean of the class accuracies before and after the step.
        accuracies: class accuracies after the step, (n_classes,).
        evaluations: number of evaluations so far. Each measures the accuracy without some filters, by at most one
            forward pass over the calibration images. The accuracy of the current network comes with its relevance and
            is not counted.
    """

    step: int
    level: int
    bound: float
    requested: int
    removed: np.ndarray
    deferred: int
    rate: float
    before: float
    after: float
    accuracies: np.ndarray
    evaluations: int


def first_removable(order: np.ndarray, size: int, layer_of: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Return the first ``size`` filters of ``order`` that can be removed without a layer losing its last one.

    Args:
        order: filter numbers in the order of removal.
        size: how many to return, at most.
        layer_of: each filter's layer, (n_filters,).
        active: whether each filter is still there, (n_filters,).
    """
    left = np.bincount(layer_of[active], minlength=layer_of.max() + 1)
    chosen = []
    for filter_ in order:
        if len(chosen) == size:
            break
        if left[layer_of[filter_]] > 1:
            left[layer_of[filter_]] -= 1
            chosen.append(filter_)
    return np.array(chosen, dtype=np.int64)


def greatest_rate(layer_of: np.ndarray) -> float:
    """Return the fraction of all filters that can be removed if each layer keeps one; ``layer_of`` (n_filters,)."""
    return 1 - len(np.unique(layer_of)) / len(layer_of)


def class_weights(accuracies: np.ndarray, floor: float) -> np.ndarray:
    """Return weights proportional to dA/da_c of the harmonic mean A, that is to 1/a_c^2, with mean 1, (n_classes,)."""
    weights = 1 / np.maximum(accuracies, floor) ** 2
    return weights / weights.mean()


def control(
    layer_of: np.ndarray,
    relevance: Callable[[], np.ndarray],
    accuracy: Callable[[np.ndarray], np.ndarray],
    prune: Callable[[np.ndarray], None],
    settings: Settings = Settings(),
    until: float = MAX_RATE,
) -> Iterator[Step]:
    """Prune a network until a fraction of its filters is removed, and yield a record of each step.

    Args:
        layer_of: each filter's layer, (n_filters,).
        relevance: returns the current relevance by class, (n_classes, n_filters); values of removed filters are
            ignored. Without ``order`` it is only summed over classes, and may have any number of rows.
        accuracy: returns the class accuracies, (n_classes,), of the current network without the given filters; cheap
            for no filters.
        prune: permanently removes the given filters.
        settings: see :class:`Settings`.
        until: the fraction of the filters to remove.

    Raises:
        ValueError: this fraction cannot be removed with one filter left in each layer.
    """
    n_filters = len(layer_of)
    target = filters_at(until, n_filters)
    if target > filters_at(most := greatest_rate(layer_of), n_filters):
        raise ValueError(
            f"{n_filters} filters in {len(np.unique(layer_of))} layers cannot lose {until:.1%} and leave one in each "
            f"layer; the most that can be removed is {most:.1%}"
        )
    active = np.ones(n_filters, dtype=bool)
    left = np.full(n_filters, np.inf)  # by deferred filter, the A measured without its part
    evaluations = 0

    def harmonic_without(filters: np.ndarray) -> float:
        nonlocal evaluations
        evaluations += 1
        return harmonic_mean(accuracy(filters))

    shares, now = relevance(), accuracy(NO_FILTERS)
    bounds = [level * harmonic_mean(now) for level in settings.levels] if settings.rate else []
    level = step = 0
    while (n_pruned := int((~active).sum())) < target:
        weights = class_weights(now, settings.accuracy_floor) if settings.order else np.ones(len(shares))
        score = weights @ shares
        while True:
            bound = bounds[level] if level < len(bounds) else 0.0
            candidates = np.flatnonzero(active & (left >= bound))
            order = candidates[np.argsort(score[candidates], kind="stable")]
            size = min(settings.largest_step(n_filters, n_pruned), target - n_pruned)
            batch = first_removable(order, size, layer_of, active)
            if len(batch):
                break
            level += 1
        removable, without = _removable_part(batch, layer_of[batch], harmonic_without, bound)
        removed, deferred = batch[removable], batch[~removable]
        before = now
        if len(removed):
            prune(removed)
            active[removed] = False
            shares, now = relevance(), accuracy(NO_FILTERS)
        left[deferred] = np.minimum(without[~removable], np.nextafter(bound, 0))  # not again at this level
        yield Step(
            step=step,
            level=level,
            bound=bound,
            requested=len(batch),
            removed=removed,
            deferred=len(deferred),
            rate=(n_pruned + len(removed)) / n_filters,
            before=harmonic_mean(before),
            after=harmonic_mean(now),
            accuracies=now,
            evaluations=evaluations,
        )
        step += 1
        if len(removed) < settings.least * len(batch):
            level += 1


def _removable_part(
    batch: np.ndarray, layers: np.ndarray, harmonic_without: Callable[[np.ndarray], float], bound: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find the part of a batch that meets the bound: the whole batch, the part of some layers, or nothing.

    Returns:
        For each filter of the batch, whether it is removed, and the A measured without only its part.
    """
    if not bound:
        return np.ones(len(batch), dtype=bool), np.zeros(len(batch))
    whole = harmonic_without(batch)
    names, part_of = np.unique(layers, return_inverse=True)
    if whole >= bound or len(names) == 1:
        return np.full(len(batch), whole >= bound), np.full(len(batch), whole)
    alone = np.array([harmonic_without(batch[part_of == part]) for part in range(len(names))])
    good = [part for part in np.argsort(alone, kind="stable")[::-1] if alone[part] >= bound]
    # Bisection finds the most parts, best first, that meet the bound together.
    few, many = min(1, len(good)), len(good)
    while few < many:
        middle = (few + many + 1) // 2
        if harmonic_without(batch[np.isin(part_of, good[:middle])]) >= bound:
            few = middle
        else:
            many = middle - 1
    return np.isin(part_of, good[:few]), alone[part_of]
