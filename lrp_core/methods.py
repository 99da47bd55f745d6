"""Pruning methods by name: what scores filters, when they go, and whether the network is reconstructed.

Conventional LRP pruning, other criteria with the same schedule, and the controller with its parts on and off. Each is
a row of one table, so that two of them differ in nothing else than in what their rows say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lrp_core.controller import Settings, Step, control, take
from lrp_core.errors import check_choice
from lrp_core.evaluation import MAX_RATE, harmonic_mean
from lrp_core.pruning import filters_at
from lrp_core.tasks import ScarceTask


@dataclass(frozen=True)
class Method:
    """How a network is pruned.

    Attributes:
        criterion: what scores filters (:mod:`lrp_core.criteria`).
        static: they are ranked once; if not, again after every step.
        order, rate: of the controller (:class:`lrp_core.controller.Settings`); with both off it is the iterative
            schedule of Yeom et al. 2021.
        signal: the accuracies that the controller watches (:class:`lrp_core.tasks.ScarceTask`).
        reconstruct: what stays takes over the part of what is gone (:mod:`lrp_core.reconstruction`).
    """

    criterion: str = "lrp-abs"
    static: bool = False
    order: bool = False
    rate: bool = False
    signal: str = "cross-fitted"
    reconstruct: bool = False


# The literature's. px-static: Hatefi et al. 2024, with the rules of the others or by depth; px-iterative: Yeom et al.
# 2021; px-iterative-abs: the same authors' code for ResNets, which sums |relevance| over positions.
CONVENTIONAL = {
    "px-static": Method("lrp", static=True),
    "px-static-depth": Method("lrp-depth", static=True),
    "px-iterative": Method("lrp"),
    "px-iterative-abs": Method("lrp-abs"),
}
# What else is used to score filters, with the schedule of px-iterative.
CRITERIA = {name: Method(name) for name in ("random", "weight", "activation", "gradient", "taylor", "singe")}
# The controller on the absolute relevance of px-iterative-abs: whole, in parts, and with other signals.
DYNAMIC = {
    "dynamic": Method(order=True, rate=True),
    "dynamic-order": Method(order=True),
    "dynamic-rate": Method(rate=True),
    "dynamic-training": Method(order=True, rate=True, signal="training"),
    "dynamic-probability": Method(order=True, rate=True, signal="probability"),
}
RECONSTRUCTION = "+reconstruction"
_PLAIN = CONVENTIONAL | CRITERIA | DYNAMIC
METHODS = _PLAIN | {name + RECONSTRUCTION: replace(method, reconstruct=True) for name, method in _PLAIN.items()}


def method(name: str) -> Method:
    """Return a method by name; ``NAME+reconstruction`` is ``NAME`` on networks that are reconstructed at every step.

    Raises:
        ValueError: unknown name.
    """
    return METHODS[check_choice("method", name, METHODS)]


def prune(task: ScarceTask, method: Method, settings: Settings) -> Iterator[Step]:
    """Prune a network to 95 %, step by step.

    Args:
        task: the network with its scarce images; scores and reconstructs as the method says.
        method: how.
        settings: of the controller; its ``order`` and ``rate`` are the method's.
    """
    if method.static:
        return px_static(task)
    layer_of = task.network.layer_of

    def shares() -> np.ndarray:
        return class_shares(task.scores(), task.labels, layer_of)

    settings = replace(settings, order=method.order, rate=method.rate)
    return control(layer_of, shares, task.accuracy, task.prune, settings)


def class_shares(scores: np.ndarray, labels: np.ndarray, layer_of: np.ndarray) -> np.ndarray:
    """Sum scores over the images of each class and divide by the layer's sum, so that each layer weighs alike.

    Args:
        scores: (N, n_filters); NaN for filters that are gone.
        labels: (N,).
        layer_of: (n_filters,).

    Returns:
        (n_classes, n_filters); summed over classes and the filters of a layer it is 1, or 0 where no filter of the
        layer scores.
    """
    by_class = np.stack([scores[labels == label].sum(axis=0) for label in range(labels.max() + 1)])
    by_layer = np.bincount(layer_of, weights=np.nan_to_num(by_class.sum(axis=0)))
    by_layer[by_layer == 0] = 1.0
    return by_class / by_layer[layer_of]


def px_static(task: ScarceTask) -> Iterator[Step]:
    """Rank all filters once, by the sum over images of |relevance summed over positions| (Hatefi et al. 2024).

    Their rules vary with depth; here they are epsilon and z+, as everywhere in this project.
    """
    network = task.network
    order = np.argsort(np.abs(task.scores()).sum(axis=0), kind="stable")
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
