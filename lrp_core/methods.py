"""Pruning methods by name: each takes a network at work and yields the steps in which its filters go.

``px-static`` and ``px-iterative`` are the conventional LRP pruning of the literature, ``dynamic`` is the controller.
"""

from collections.abc import Callable, Iterator

import numpy as np

from lrp_core.controller import Settings, Step, control, take
from lrp_core.errors import check_choice
from lrp_core.evaluation import MAX_RATE, harmonic_mean
from lrp_core.tasks import ScarceTask


def class_shares(relevance: np.ndarray, labels: np.ndarray, layer_of: np.ndarray) -> np.ndarray:
    """Sum relevance over the images of each class and divide by the layer's sum, so that each layer weighs alike.

    Args:
        relevance: (N, n_filters); NaN for filters that are gone.
        labels: (N,).
        layer_of: (n_filters,).

    Returns:
        (n_classes, n_filters); summed over classes and the filters of a layer it is 1.
    """
    by_class = np.stack([relevance[labels == label].sum(axis=0) for label in range(labels.max() + 1)])
    by_layer = np.bincount(layer_of, weights=np.nan_to_num(by_class.sum(axis=0)))
    return by_class / by_layer[layer_of]


def px_static(task: ScarceTask) -> Iterator[Step]:
    """Rank all filters once, by the sum over images of |relevance summed over positions| (Hatefi et al. 2024).

    Their rules vary with depth; here they are epsilon and z+, as everywhere in this project.
    """
    network = task.network
    order = np.argsort(np.abs(task.relevance()).sum(axis=0), kind="stable")
    size = int(np.ceil(round(MAX_RATE * network.n_filters, 6)))
    removed = take(order, size, network.layer_of, network.active)
    before = task.accuracy(removed[:0])
    after = task.accuracy(removed)
    task.prune(removed)
    yield Step(
        step=0,
        level=0,
        bound=0.0,
        requested=size,
        removed=removed,
        deferred=0,
        rate=len(removed) / network.n_filters,
        before=harmonic_mean(before),
        after=harmonic_mean(after),
        accuracies=after,
        evaluations=2,
    )


def controlled(task: ScarceTask, settings: Settings, absolute: bool) -> Iterator[Step]:
    """Run the controller on signed relevance, or on its absolute value at each position."""
    network = task.network

    def relevance() -> np.ndarray:
        return class_shares(task.relevance(absolute), task.labels, network.layer_of)

    return control(network.layer_of, relevance, task.accuracy, task.prune, settings)


def _iterative(absolute: bool) -> Callable[[ScarceTask, float], Iterator[Step]]:
    return lambda task, batch: controlled(task, Settings(batch=batch, order=False, rate=False), absolute)


BASELINES: dict[str, Callable[[ScarceTask, float], Iterator[Step]]] = {
    "px-static": lambda task, batch: px_static(task),
    "px-iterative": _iterative(absolute=False),
    "px-iterative-abs": _iterative(absolute=True),
}


def baseline(name: str, batch: float) -> Callable[[ScarceTask], Iterator[Step]]:
    """Return a conventional method that removes ``batch`` (a fraction of all filters) a step.

    ``px-iterative`` (Yeom et al. 2021) re-evaluates relevance at every step and removes the lowest signed share first;
    ``px-iterative-abs`` (the same authors' code for ResNets) sums |relevance| over positions instead.

    Raises:
        ValueError: unknown name.
    """
    method = BASELINES[check_choice("baseline", name, BASELINES)]
    return lambda task: method(task, batch)
