"""Pruning methods by name: what scores filters, when they go, and whether the network is reconstructed.

Conventional LRP pruning, other criteria with the same schedule, and the controller with its parts on and off. Each is
a row of one table, so that two of them differ in nothing else than in what their rows say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from lrp_core.control.calibration import CalibrationTask
from lrp_core.control.controller import Settings, Step, control
from lrp_core.graph.tracing import trace
from lrp_core.importance.by_class import class_shares
from lrp_core.importance.joint import joint_order
from lrp_core.importance.registry import criterion
from lrp_core.metrics.accuracy import MAX_RATE, predict
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.repair.refit import Refit
from lrp_core.repair.ridge_head import OutOfFoldHeads, with_out_of_fold_heads
from lrp_core.utils.errors import check_choice
from lrp_core.utils.sites import AllReduce, reduced, single_site


@dataclass(frozen=True)
class Method:
    """How a network is pruned.

    Attributes:
        criterion: what scores filters (:mod:`lrp_core.importance`).
            With "contribution" they are chosen jointly (:mod:`lrp_core.importance.joint`).
        static: they are ranked once; if not, again after every step.
        taper: of the controller; the largest part of the filters left that a step takes.
        order, rate: of the controller (:class:`lrp_core.control.controller.Settings`); with both off it is the iterative
            schedule of Yeom et al. 2021.
        monitored: the accuracies that the controller watches (:mod:`lrp_core.control.monitored`).
        reconstruct: what stays takes over the part of what is gone (:mod:`lrp_core.repair.reconstruction`).
        refit: the head and its copies are fitted anew to every smaller network (:mod:`lrp_core.repair.refit`).
        early_exit: the backbone ends earlier first, where that costs nothing that can be measured (:mod:`lrp_core.depth`).
        actions: of the controller that goes down a ladder of budgets (:mod:`lrp_core.control.budget_search`); none: another method.
        blocks: how the lever for depth tells which residual block is the next to be skipped.
    """

    criterion: str | None = "lrp-abs"
    static: bool = False
    taper: float = 0.5
    order: bool = False
    rate: bool = False
    monitored: str = "cross-fitted"
    reconstruct: bool = False
    refit: bool = False
    early_exit: bool = False
    actions: tuple[str, ...] = ()
    blocks: str = "branch"


# The literature's. px-static: Hatefi et al. 2024, with the rules of the others or by depth; px-iterative: Yeom et al.
# 2021; px-iterative-abs: the same authors' code for ResNets, which sums |relevance| over positions.
CONVENTIONAL = {
    "px-static": Method("lrp", static=True),
    "px-static-depth": Method("lrp-depth", static=True),
    "px-iterative": Method("lrp"),
    "px-iterative-abs": Method("lrp-abs"),
}
# What else is used to score filters, with the schedule of px-iterative; kcm ranks them once, as published.
CRITERIA = {name: Method(name) for name in ("random", "weight", "activation", "gradient", "taylor", "singe")}
CRITERIA["kcm"] = Method("kcm", static=True)
# The controller on the absolute relevance of px-iterative-abs: whole, in parts, and with other signals.
DYNAMIC = {
    "dynamic": Method(order=True, rate=True),
    "dynamic-order": Method(order=True),
    "dynamic-rate": Method(rate=True),
    "dynamic-training": Method(order=True, rate=True, monitored="training"),
    "dynamic-probability": Method(order=True, rate=True, monitored="probability"),
}
# A joint choice, in steps that become smaller; single choices in such steps, which is the plainest that it may be
# compared with; and the joint choice under the controller.
JOINT = {
    "px-iterative-abs-taper": Method("lrp-abs", taper=0.1),
    "taylor-taper": Method("taylor", taper=0.1),
    "joint": Method("contribution", taper=0.1),
    "dynamic-joint": Method("contribution", taper=0.1, rate=True),
}
# The controller with three levers, without some of them, and with blocks in the order of Pons et al. 2024.
BUDGET_SEARCHES = {
    "budget-search": Method(reconstruct=True, refit=True, actions=("filters", "exit", "block")),
    "budget-search-filters-exit": Method(reconstruct=True, refit=True, actions=("filters", "exit")),
    "budget-search-filters": Method(reconstruct=True, refit=True, actions=("filters",)),
    "budget-search-cka": Method(reconstruct=True, refit=True, actions=("filters", "exit", "block"), blocks="cka"),
}
RECONSTRUCTION, REFIT, EARLY_EXIT = "+reconstruction", "+refit", "early-exit"
_PLAIN = CONVENTIONAL | CRITERIA | DYNAMIC | JOINT
_MENDED = _PLAIN | {name + RECONSTRUCTION: replace(method, reconstruct=True) for name, method in _PLAIN.items()}
_REFITTED = {name + REFIT: replace(method, refit=True) for name, method in _MENDED.items()}
METHODS = {
    **_MENDED,
    **_REFITTED,
    EARLY_EXIT: Method(criterion=None, refit=True, early_exit=True),  # a shorter backbone, and nothing else
    **{f"{EARLY_EXIT}+{name}": replace(method, early_exit=True) for name, method in _REFITTED.items()},
    **BUDGET_SEARCHES,
}


def method(name: str) -> Method:
    """Return a method by name; ``NAME+reconstruction`` is ``NAME`` on networks that are reconstructed at every step.

    Raises:
        ValueError: unknown name.
    """
    return METHODS[check_choice("method", name, METHODS)]


def unpruned(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    fold: torch.Tensor | None,
    how: Method,
    all_reduce: AllReduce = single_site,
) -> PrunedNetwork:
    """Return a network that is ready to lose filters, and mends itself on the calibration images as the method does.

    Args:
        model: made of supported layers; untouched, and expected not to change.
        images: (N, C, H, W), normalised.
        targets: their classes, (N,), in 0..K-1.
        fold: of the images, (N,); read with ``refit`` alone.
        how: the method.
        all_reduce: sums over images, over all places.
    """
    compensations = [Reconstruction(model, images, all_reduce=all_reduce)] if how.reconstruct else []
    compensations += [Refit(trace(model)[-1].name, targets, fold, all_reduce)] if how.refit else []
    return PrunedNetwork(model, images, compensations)


def task(
    model: nn.Module,
    out_of_fold: OutOfFoldHeads | None,
    images: torch.Tensor,
    targets: torch.Tensor,
    how: Method,
    seed: int,
    all_reduce: AllReduce = single_site,
) -> CalibrationTask:
    """Return an unpruned classifier at work on calibration images, as a method wants it.

    Args:
        model: a classifier, images (N, C, H, W) to logits (N, K); untouched.
        out_of_fold: of its last layer, which then has to be a dense one; None for the signal "training" alone.
        images: (N, C, H, W), normalised.
        targets: their classes, (N,), in 0..K-1.
        how: the method.
        seed: of random draws.
        all_reduce: sums over images, over all places.
    """
    n_outputs = predict(model, images[:1]).shape[1]
    fold = out_of_fold and out_of_fold.fold
    network = unpruned(
        model if out_of_fold is None else with_out_of_fold_heads(model, out_of_fold.weight),
        images,
        targets,
        fold,
        how,
        all_reduce,
    )
    score = criterion(how.criterion, n_outputs, seed)
    return CalibrationTask(network, images, targets, n_outputs, fold, score, how.monitored, all_reduce)


def steps(
    task: CalibrationTask, how: Method, settings: Settings = Settings(), until: float = MAX_RATE
) -> Iterator[Step]:
    """Prune a network step by step, and yield a record of each.

    Args:
        task: the network with its calibration images, made for the same method.
        how: the method.
        settings: of the controller; its ``order`` and ``rate`` are the method's.
        until: the fraction of the filters that goes.
    """
    network, labels = task.network, task.labels
    layer_of = network.layer_of
    settings = replace(settings, order=how.order, rate=how.rate, taper=how.taper)
    if how.static:  # one order for all steps: the sum over images of |relevance summed over positions|
        ranking = reduced(np.abs(task.scores()).sum(axis=0), task.all_reduce)[None]
    elif how.criterion == "contribution":
        intact = task.logits()

    def relevance() -> np.ndarray:
        if how.static:
            return ranking
        if how.criterion == "contribution":
            size = 2 * settings.largest_step(network.n_filters, int((~network.active).sum()))  # some are put off
            return joint_order(task.scores(), task.logits() - intact, layer_of, network.active, size, task.all_reduce)[
                None
            ]
        return class_shares(task.scores(), labels, layer_of, task.all_reduce)

    return control(layer_of, relevance, task.accuracy, task.prune, settings, until)
