"""Pruning methods by name: each takes a network at work and yields the steps in which its filters go.

``px-static`` and ``px-iterative`` are the conventional LRP pruning of the literature, ``dynamic`` is the controller.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lrp_core.controller import Settings, Step, control, take
from lrp_core.errors import check_choice
from lrp_core.evaluation import MAX_RATE, harmonic_mean
from lrp_core.pruning import filters_at
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
    size = filters_at(MAX_RATE, network.n_filters)
    removed = take(order, size, network.layer_of, network.active)
    before = task.accuracy(removed[:0])
    task.prune(removed)
    after = task.accuracy(removed[:0])
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
        evaluations=0,
    )


def controlled(task: ScarceTask, settings: Settings) -> Iterator[Step]:
    """Run the controller, which with order and rate off is conventional iterative pruning."""
    layer_of = task.network.layer_of

    def relevance() -> np.ndarray:
        return class_shares(task.relevance(), task.labels, layer_of)

    return control(layer_of, relevance, task.accuracy, task.prune, settings)


def _iterative(task: ScarceTask, batch: float) -> Iterator[Step]:
    return controlled(task, Settings(batch=batch, order=False, rate=False))


@dataclass(frozen=True)
class Baseline:
    """A conventional method: its steps, given the fraction that goes in each, and whether relevance loses its sign."""

    steps: Callable[[ScarceTask, float], Iterator[Step]]
    absolute: bool


# px-iterative: Yeom et al. 2021, re-evaluates relevance at every step and removes the lowest signed share first.
# px-iterative-abs: the same authors' code for ResNets, which sums |relevance| over positions instead.
BASELINES = {
    "px-static": Baseline(lambda task, batch: px_static(task), absolute=False),
    "px-iterative": Baseline(_iterative, absolute=False),
    "px-iterative-abs": Baseline(_iterative, absolute=True),
}


def baseline(name: str) -> Baseline:
    """Return a conventional method by name.

    Raises:
        ValueError: unknown name.
    """
    return BASELINES[check_choice("baseline", name, BASELINES)]
