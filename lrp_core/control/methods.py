"""Pruning methods by name: the criterion that scores filters, the schedule of removal, and the repairs.

There are conventional LRP pruning, other criteria with the same schedule, the controller with its parts on and off, and
the budget search. Each is a row of a table, so two methods differ only in the entries of their rows. Names are composed
(:func:`method`): ``early-exit+taylor+reconstruction`` is ``taylor`` on a backbone that ends earlier, with
reconstruction after every step.
"""

from collections import ChainMap
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch
from torch import nn

from lrp_core.control.calibration import CalibrationTask
from lrp_core.control.controller import Settings, Step, control
from lrp_core.graph.tracing import trace
from lrp_core.importance.by_class import class_shares
from lrp_core.importance.criterion import Criterion
from lrp_core.importance.joint import joint_order
from lrp_core.importance.registry import criterion
from lrp_core.metrics.accuracy import predict
from lrp_core.metrics.curve import MAX_RATE
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import OutOfFoldHeads, with_out_of_fold_heads
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.repair.refit import Refit
from lrp_core.utils.sites import AllReduce, reduced, single_site


@dataclass(frozen=True)
class Method:
    """A pruning method.

    Attributes:
        criterion: scores filters (:mod:`lrp_core.importance`). With "contribution" they are chosen jointly
            (:mod:`lrp_core.importance.joint`); with None no filter is removed.
        static: filters are ranked once; otherwise again after every step.
        taper: of the controller; the largest fraction of the remaining filters that a step removes.
        order, rate: of the controller (:class:`lrp_core.control.controller.Settings`); with both off it is the
            iterative schedule of Yeom et al. 2021.
        monitored: the accuracies that the controller monitors (:mod:`lrp_core.control.monitored`).
        reconstruct: the remaining channels take over the role of pruned ones (:mod:`lrp_core.repair.reconstruction`).
        refit: the head and the out-of-fold heads are refitted for every smaller network
            (:mod:`lrp_core.repair.refit`).
        by_cost: filters are chosen jointly, from one limit of multiply-adds to the next
            (:mod:`lrp_core.control.cost_descent`); only for :func:`lrp_core.prune`.
        distil: the pruned network learns the logits of the unpruned one, on images of the same size
            (:mod:`lrp_core.repair.distillation`); only for :func:`lrp_core.prune`.
        smaller_images: the network first makes its images smaller, where its accuracy stays within one standard error
            of the best (:mod:`lrp_core.control.image_size`); only for :func:`lrp_core.prune`.
        intermediate_features: a new last layer reads features of earlier layers, too
            (:mod:`lrp_core.control.intermediate_features`); only for :func:`lrp_core.prune`.
        early_exit: the backbone is first cut where its accuracy stays within one standard error of the best
            (:mod:`lrp_core.control.early_exit`).
        actions: of the budget search (:mod:`lrp_core.control.budget_search`); empty for other methods.
        blocks: how the budget search ranks residual blocks (:data:`lrp_core.control.budget_search.BLOCK_CHANGES`).
    """

    criterion: str | Criterion | None = "lrp-abs"
    static: bool = False
    taper: float = 0.5
    order: bool = False
    rate: bool = False
    monitored: str = "cross-fitted"
    reconstruct: bool = False
    refit: bool = False
    by_cost: bool = False
    distil: bool = False
    smaller_images: bool = False
    intermediate_features: bool = False
    early_exit: bool = False
    actions: tuple[str, ...] = ()
    blocks: str = "branch"

    def __post_init__(self):
        """Refuse what contradicts itself.

        Raises:
            ValueError: a refitted head gives other logits than those that distillation follows; the budget search,
                which chooses exits and heads itself, after something else that does; or an early exit with a head that
                reads more than the features there.
        """
        if self.actions and (self.smaller_images or self.early_exit or self.intermediate_features):
            raise ValueError("the budget search takes images and networks as they are: give it no prefix")
        if self.intermediate_features and self.early_exit:
            raise ValueError("'intermediate-features+' and 'early-exit+' contradict each other: each fits its own head")
        if self.refit and self.distil:
            raise ValueError("'+refit' and '+distillation' contradict each other: a refitted head gives other logits")


# From the literature. px-static: Hatefi et al. 2024, with the rules of the others or by depth; px-iterative: Yeom et
# al. 2021; px-iterative-abs: the same authors' code for ResNets, which sums |relevance| over positions.
CONVENTIONAL = {
    "px-static": Method("lrp", static=True),
    "px-static-depth": Method("lrp-depth", static=True),
    "px-iterative": Method("lrp"),
    "px-iterative-abs": Method("lrp-abs"),
}
# Other criteria, with the schedule of px-iterative; kcm ranks filters once, as published.
CRITERIA = {name: Method(name) for name in ("random", "weight", "activation", "gradient", "taylor", "singe")}
CRITERIA["kcm"] = Method("kcm", static=True)
# The controller on the absolute relevance of px-iterative-abs: whole, in parts, and monitoring other accuracies.
DYNAMIC = {
    "dynamic": Method(order=True, rate=True),
    "dynamic-order": Method(order=True),
    "dynamic-rate": Method(rate=True),
    "dynamic-training": Method(order=True, rate=True, monitored="training"),
    "dynamic-probability": Method(order=True, rate=True, monitored="probability"),
}
# Joint selection, in steps that become smaller; its simplest alternative, one-by-one selection in the same steps; and
# joint selection under the controller.
JOINT = {
    "px-iterative-abs-taper": Method("lrp-abs", taper=0.1),
    "taylor-taper": Method("taylor", taper=0.1),
    "joint": Method("contribution", taper=0.1),
    "dynamic-joint": Method("contribution", taper=0.1, rate=True),
}
# Joint selection by harm per multiply-add, in steps of equal ratios of multiply-adds.
BY_COST = {"joint-cost": Method("contribution", by_cost=True, monitored="training")}
# The budget search with all actions, without some of them, and with blocks ranked as by Pons et al. 2024.
BUDGET_SEARCHES = {
    "budget-search": Method(reconstruct=True, refit=True, actions=("filters", "exit", "block")),
    "budget-search-filters-exit": Method(reconstruct=True, refit=True, actions=("filters", "exit")),
    "budget-search-filters": Method(reconstruct=True, refit=True, actions=("filters",)),
    "budget-search-cka": Method(reconstruct=True, refit=True, actions=("filters", "exit", "block"), blocks="cka"),
}
EARLY_EXIT = "early-exit"
FOLDS = 5  # of the out-of-fold heads that evaluate for a controller
PLAIN = CONVENTIONAL | CRITERIA | DYNAMIC | JOINT | BY_COST  # may have prefixes and suffixes
COMPLETE = {EARLY_EXIT: Method(criterion=None, refit=True, early_exit=True)} | BUDGET_SEARCHES  # may not
# Prefixes that may stand before a plain name with "+", in this order, and what they change.
PREFIXES = {
    "smaller-images": {"smaller_images": True},
    "intermediate-features": {"intermediate_features": True},
    EARLY_EXIT: {"early_exit": True},
}
# Suffixes that may follow a plain name after "+", in this order, and what they change.
SUFFIXES = {
    "reconstruction": {"reconstruct": True},
    "refit": {"refit": True},
    "distillation": {"distil": True},
}


def method(name: str | Method | Criterion) -> Method:
    """Return a method by name: ``NAME``, or with prefixes and suffixes, as ``early-exit+NAME+reconstruction+refit``.

    Args:
        name: a method, which is returned as it is; a criterion, which gets the schedule of px-iterative and
            reconstruction; one of :data:`COMPLETE`; or a name in :data:`PLAIN`, optionally with any of
            :data:`PREFIXES` before it and any of :data:`SUFFIXES` after it, in their order.

    Raises:
        ValueError: unknown name; the message lists all names, prefixes and suffixes.
    """
    if isinstance(name, Method):
        return name
    if callable(name):
        return Method(name, reconstruct=True)
    if not isinstance(name, str):
        raise ValueError(f"a method is a name, a Method or a criterion (a function); got {name!r}")
    if name in COMPLETE:
        return COMPLETE[name]
    parts = name.split("+")
    before = [*takewhile(PREFIXES.__contains__, parts)]
    plain, *after = parts[len(before) :] or [""]
    in_order = before == [part for part in PREFIXES if part in before] and after == [p for p in SUFFIXES if p in after]
    if plain not in PLAIN or not in_order:
        prefixes = ", ".join(repr(f"{prefix}+") for prefix in PREFIXES)
        suffixes = ", ".join(repr(f"+{suffix}") for suffix in SUFFIXES)
        raise ValueError(
            f"unknown method {name!r}; choose one of: {', '.join(sorted(PLAIN))} (each may have {prefixes} before it "
            f"and {suffixes} after it, in this order), {', '.join(sorted(COMPLETE))}"
        )
    changes = [*(PREFIXES[prefix] for prefix in before), *(SUFFIXES[suffix] for suffix in after)]
    return replace(PLAIN[plain], **ChainMap(*changes))


def unpruned(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    fold: torch.Tensor | None,
    how: Method,
    all_reduce: AllReduce = single_site,
    ignored: Collection[str] = (),
) -> PrunedNetwork:
    """Return an unpruned network that is ready to lose filters, with the compensations of the method.

    Args:
        model: made of supported layers; not changed here, and must not change later.
        images: calibration images, (N, C, H, W), normalised.
        targets: their classes, (N,), in 0..K-1.
        fold: of the images, (N,); used only with ``refit``.
        how: the method.
        all_reduce: sums over images, over all sites.
        ignored: convolutions that keep all of their filters.
    """
    compensations = [Reconstruction(model, images, all_reduce=all_reduce)] if how.reconstruct else []
    compensations += [Refit(trace(model)[-1].name, targets, fold, all_reduce)] if how.refit else []
    return PrunedNetwork(model, images, compensations, ignored)


def task(
    model: nn.Module,
    out_of_fold: OutOfFoldHeads | None,
    images: torch.Tensor,
    targets: torch.Tensor,
    how: Method,
    seed: int,
    all_reduce: AllReduce = single_site,
    ignored: Collection[str] = (),
) -> CalibrationTask:
    """Return the calibration task of an unpruned classifier for a method.

    Args:
        model: a classifier, from images (N, C, H, W) to logits (N, K); not changed.
        out_of_fold: heads to add to its last layer, which must then be dense; None if the monitored accuracy is
            "training".
        images: (N, C, H, W), normalised.
        targets: their classes, (N,), in 0..K-1.
        how: the method.
        seed: of random draws.
        all_reduce: sums over images, over all sites.
        ignored: convolutions that keep all of their filters.
    """
    n_outputs = predict(model, images[:1]).shape[1]
    fold = out_of_fold and out_of_fold.fold
    network = unpruned(
        model if out_of_fold is None else with_out_of_fold_heads(model, out_of_fold.weight, out_of_fold.bias),
        images,
        targets,
        fold,
        how,
        all_reduce,
        ignored,
    )
    score = how.criterion if callable(how.criterion) else criterion(how.criterion, n_outputs, seed)
    return CalibrationTask(network, images, targets, n_outputs, fold, score, how.monitored, all_reduce)


def steps(
    task: CalibrationTask, how: Method, settings: Settings = Settings(), until: float = MAX_RATE
) -> Iterator[Step]:
    """Prune a network step by step, and yield a record of each step.

    Args:
        task: the network with its calibration images, made for the same method.
        how: the method.
        settings: of the controller; its ``order`` and ``rate`` are the method's.
        until: the fraction of the filters that is removed.
    """
    network, labels = task.network, task.labels
    layer_of = network.layer_of
    settings = replace(settings, order=how.order, rate=how.rate, taper=how.taper)
    if how.static:  # one order for all steps: the sum over images of |relevance summed over positions|
        ranking = reduced(np.abs(task.scores()).sum(axis=0), task.all_reduce)[None]
    elif how.criterion == "contribution":
        task.contributions()  # so that the same pass gives the logits
        intact = task.logits()

    def relevance() -> np.ndarray:
        if how.static:
            return ranking
        if how.criterion == "contribution":
            size = 2 * settings.largest_step(network.n_filters, int((~network.active).sum()))  # some are deferred
            contributions, drift = task.contributions(), task.logits() - intact
            return joint_order(contributions, drift, layer_of, network.active, size, task.all_reduce)[None]
        return class_shares(task.scores(), labels, layer_of, task.all_reduce)

    return control(layer_of, relevance, task.accuracy, task.prune, settings, until)
