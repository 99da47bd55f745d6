"""Pruning at real size: frozen networks at 224 px (VGG16: 96 px), and networks that were trained for CIFAR-10.

Every method prunes the same classifier (benchmarks/tasks.py) on the same images, and is measured on the same test
images, which come from other blocks. All networks are pruned by ours with images as given
(``joint-cost+reconstruction``), layer by layer (benchmarks/layer_by_layer.py) as published and with our reconstruction,
and by LRP in one shot. All but the slowest are also pruned so without reconstruction, by Neuron Merging
(benchmarks/neuron_merging.py), L1, Taylor, iterative LRP with and without reconstruction, and joint selection, the last
three with and without the controller; the slowest by iterative LRP with and without it.

The plainest alternative prunes nothing: the same network reads images of fewer pixels (:meth:`tasks.Draw.at`), for
which the head of a frozen backbone is fitted anew. It is measured alone; with ours on top, from images that leave half
of the multiply-adds; and with a size that the call chooses (``smaller-images+``), told whether the head was fitted to
the calibration images. Frozen networks are also measured with a head that reads intermediate features, alone on each
image size, the given one first, pruned by ours (``smaller-images+intermediate-features+``), and pruned layer by layer
with our reconstruction from where ours starts. The call does the second by default with frozen networks, and without
the head with trained ones. Its images become smaller for small budgets, so one call gives the rows down to 35 % of the
multiply-adds, one those down to 12.5 %, and one the others. The rest has one call a draw.

The accuracy that the call predicts stands beside the test accuracy: of the default, and of images as given. Writes one
row per draw, method and size to results/benchmarks/real_size.csv. Rows in data/real_size are not measured again; the
last parts take hours, and the committed rows lack some of them. `make tables` makes the tables and the figures.

Other draws (seeds 900 to 999) chose settings. These chose one thing, with those of benchmarks/promise.py: what the call
does by default. The ResNets have the methods of MAIN on seeds 4005 to 4009, too. Run benchmarks/fine_tune.py first: it
trains one of the networks.

    python benchmarks/real_size.py --cifar10 DIR --trashnet DIR --weights DIR --seeds 4000 4001 4002 4003 4004
"""

import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from layer_by_layer import layer_by_layer
from lrp_core.api import FOLDS
from lrp_core.control.intermediate_features import fit_on_intermediate
from lrp_core.control.methods import FOLDS as FOLDS_OF_HEADS
from lrp_core.control.methods import method as method_of
from lrp_core.control.preparation import prepare
from lrp_core.metrics.cost import multiply_adds
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.study.analysis.promise import CHOSEN, INTERMEDIATE
from lrp_core.study.analysis.real_size import (
    CHOICE_ALONE,
    CONTROLLED,
    CONTROLLERS,
    LAYER_BY_LAYER,
    LAYERS_PREPARED,
    LAYERS_REPAIRED,
    LRP,
    NEURON_MERGING,
    ONE_SHOT,
    OURS,
    SMALLER,
    SMALLER_HALF,
    SMALLER_INTERMEDIATE,
    WITH_REPAIR,
)
from neuron_merging import neuron_merging
from promise import measured, predicted
from side_by_side import side_by_side
from tasks import FINE_TUNED, FROZEN, IMAGENET, REAL_SIZE, TRAINED, VGG, VGG_SIZE, Draw, Setup, draw

PAIRS = (
    *(("cifar10", network) for network in (*TRAINED, FINE_TUNED)),
    *((task, network) for network in IMAGENET for task in REAL_SIZE),
    *((task, VGG) for task in VGG_SIZE),
)
LIMITS = (0.71, 0.5, 0.35, 0.25, 0.175, 0.125, 0.1, 0.07, 0.05)  # of the multiply-adds
CALLS = ((0.5, LIMITS[:3]), (0.25, LIMITS[3:6]), (0.1, LIMITS[6:]))  # budgets, and the sizes from the path of each
RATES = tuple(i / 20 for i in range(1, 20))  # of the filters: for the area under accuracy against pruning rate
NEW_HEAD = (INTERMEDIATE, SMALLER_INTERMEDIATE, LAYERS_PREPARED)  # for frozen networks
MAIN = (OURS, LAYER_BY_LAYER, LAYERS_REPAIRED, ONE_SHOT, SMALLER, SMALLER_HALF, CHOSEN)
QUICK = (CHOICE_ALONE, NEURON_MERGING, "weight")
# Relevance anew in every step, also with reconstruction, and joint selection; what the controller adds; and Taylor.
MORE = (*chain.from_iterable((CONTROLLERS | WITH_REPAIR).items()), "taylor")
HALF = 0.5  # of the multiply-adds: what smaller images leave before ours prunes
SLOW = ("efficientnet-lite0", VGG)
# Ours, told what its test gets wrong: that the head of the network of benchmarks/fine_tune.py was not fitted to
# the calibration images. Only estimates differ.
HEAD_KNOWN = f"{OURS} head_fitted=False"


def alternative(method: str, one: Draw) -> Iterator[tuple[float, nn.Module]]:
    """Prune by a method that the call does not have, and yield sizes and networks."""
    if method == NEURON_MERGING:
        return neuron_merging(one.model, one.images[:1], LIMITS)
    repair = Reconstruction(one.model, one.images) if method == LAYERS_REPAIRED else None
    return layer_by_layer(one.model, one.images, LIMITS, repair=repair)


def smaller(one: Draw, limit: float) -> tuple[float, Draw] | None:
    """Return the draw with the largest images whose multiply-adds are within a limit, and their share; None if none."""
    side, image = one.images.shape[-1], one.images[:1]
    whole = multiply_adds(one.model, image)

    def share(px: int) -> float:
        return multiply_adds(one.model, image[:, :, :px, :px]) / whole

    sides = range(min(32, side // 3), side)  # below 32 px nothing is left after the poolings of VGG16
    within = bisect_right(sides, 1.0001 * limit, key=share)  # a head costs as much for half of the side
    if not within:
        return None
    px = sides[within - 1]
    return share(px), one.at(px)


def folds_of_heads(one: Draw) -> torch.Tensor:
    """Return the folds with which the call fits heads, (N,)."""
    groups = torch.arange(len(one.labels)) if one.groups is None else one.groups
    return draw_folds(one.labels, groups.numpy(), FOLDS_OF_HEADS, seed=0)


def reading_intermediate(one: Draw) -> nn.Module:
    """Return the classifier with a head that is fitted to intermediate features, too."""
    return fit_on_intermediate(one.model, one.images, one.labels, folds_of_heads(one))[1]


def rows_of_layers_prepared(one: Draw) -> Iterator[dict]:
    """Yield a row for each budget of :data:`CALLS`, pruned layer by layer from the network that ours prunes."""
    image, how = one.images[:1], method_of(INTERMEDIATE)
    whole = multiply_adds(one.model, image)
    for budget, _ in CALLS:
        start = prepare(one.model, one.images, one.labels, folds_of_heads(one), how, True, budget).model
        share = multiply_adds(start, image) / whole
        pruned = [(1.0, start)]
        if share > budget:
            pruned = layer_by_layer(start, one.images, [budget / share], repair=Reconstruction(start, one.images))
        for left, model in pruned:
            yield {"limit": budget, "multiply_adds": share * left, **measured(model, one)}


def rows_of_smaller_images(method: str, one: Draw) -> Iterator[dict]:
    """Yield a row for each size that smaller images reach, alone or pruned by ours."""
    if method == SMALLER_INTERMEDIATE:
        yield {"multiply_adds": 1.0, **measured(reading_intermediate(one), one)}
    if method in (SMALLER, SMALLER_INTERMEDIATE):
        for limit in LIMITS:
            if (reached := smaller(one, limit)) is not None:
                share, found = reached
                model = found.model if method == SMALLER else reading_intermediate(found)
                yield {"limit": limit, "multiply_adds": share, "parameters": 1.0, **measured(model, found)}
        return
    began = time.perf_counter()
    share, found = smaller(one, HALF)
    pruned = found.prune(folds=0, multiply_adds=LIMITS[-1] / share)
    key = {"seconds": time.perf_counter() - began}
    yield key | {"limit": HALF, "multiply_adds": share, "parameters": 1.0, **measured(found.model, found)}
    for limit in (limit for limit in LIMITS if limit < share):
        network = pruned.select(multiply_adds=limit / share)
        yield key | {
            "limit": limit,
            "multiply_adds": share * network.after.multiply_adds / network.before.multiply_adds,
            "parameters": network.after.parameters / network.before.parameters,
            **measured(network.model, found),
        }


@dataclass(frozen=True)
class Call:
    """A call of :func:`lrp_core.prune`.

    Attributes:
        budget: what it prunes for.
        sizes: that are selected from its path.
        folds: that predict the accuracy; 0 for none.
    """

    budget: dict[str, float]
    sizes: list[dict[str, float]]
    folds: int


def calls(method: str, network: str) -> list[Call]:
    """Return the calls for a method; accuracy is predicted for the default, and on images as given if that is quick."""
    rates = [{"pruning_ratio": rate} for rate in RATES] if method in MORE else []
    if method == INTERMEDIATE:  # the size of its images depends on the budget
        return [
            Call({"multiply_adds": call}, [{"multiply_adds": limit} for limit in limits], FOLDS)
            for call, limits in CALLS
        ]
    predicts = network not in FROZEN if method == CHOSEN else method in (OURS, HEAD_KNOWN) and network not in SLOW
    sizes = [*({"multiply_adds": limit} for limit in LIMITS), *rates]
    return [Call(rates[-1] if rates else {"multiply_adds": HALF}, sizes, FOLDS if predicts else 0)]


def rows(method: str, network: str, one: Draw) -> Iterator[dict]:
    """Prune by a method, and yield a row for each size that it reaches; with folds, estimates of the accuracy, too."""
    began = time.perf_counter()
    if method in (LAYER_BY_LAYER, LAYERS_REPAIRED, NEURON_MERGING):
        networks = list(alternative(method, one))
        seconds = time.perf_counter() - began
        for share, model in networks:
            yield {"multiply_adds": share, "seconds": seconds, **measured(model, one)}
        return
    told = {"head_fitted": one.head_fitted} if method in (HEAD_KNOWN, CHOSEN, INTERMEDIATE) else {}
    how = OURS if method == HEAD_KNOWN else method
    for call in calls(method, network):
        began = time.perf_counter()
        pruned = one.prune(method=how, folds=call.folds, **told, **call.budget)
        seconds, whole, end = time.perf_counter() - began, pruned.before, pruned.path[-1].multiply_adds
        for asked in (size for size in call.sizes if size.get("multiply_adds", end) >= end):
            smaller = pruned.select(**asked)
            yield {
                "limit": asked.get("multiply_adds"),
                "multiply_adds": smaller.after.multiply_adds / whole.multiply_adds,
                "parameters": smaller.after.parameters / whole.parameters,
                "pruning_ratio": smaller.pruning_ratio,
                "seconds": seconds,
                **predicted(smaller),
                **measured(smaller.model, one),
            }


def measured_rows(task: str, network: str, seed: int, method: str, setup: Setup) -> Iterator[dict]:
    """Measure one method on one draw."""
    one = draw(task, network, seed, setup, VGG_SIZE if network == VGG else REAL_SIZE)
    key = {
        "task": task,
        "network": network,
        "seed": seed,
        "method": method,
        "overlap": one.overlap,
        "device": setup.computed_on,
    }
    if method != SMALLER_INTERMEDIATE:  # its head changes the unpruned network, too
        yield key | {"multiply_adds": 1.0, **measured(one.model, one)}
    if method in (SMALLER, SMALLER_HALF, SMALLER_INTERMEDIATE):
        yield from (key | row for row in rows_of_smaller_images(method, one))
        return
    if method == LAYERS_PREPARED:
        yield from (key | row for row in rows_of_layers_prepared(one))
        return
    yield from (key | row for row in rows(method, network, one))


def parts(seeds: list[int]) -> Iterator[tuple[str, str, int, str]]:
    """Yield draws with methods, those that every network has first."""
    for methods in (MAIN, QUICK, MORE):
        for seed in seeds:
            for task, network in PAIRS:
                if methods is MAIN or network not in SLOW:
                    yield from ((task, network, seed, method) for method in methods)
                if methods is MAIN and network in FROZEN:
                    yield from ((task, network, seed, method) for method in NEW_HEAD)
            if methods is MAIN:
                yield "cifar10", FINE_TUNED, seed, HEAD_KNOWN
    for seed in seeds:
        slow = ((task, network) for task, network in PAIRS if network in SLOW)
        yield from ((task, network, seed, method) for task, network in slow for method in (LRP, CONTROLLED))


if __name__ == "__main__":
    side_by_side("real_size", __doc__, parts, measured_rows)
