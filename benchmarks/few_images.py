"""How many labelled images does pruning need? Networks pruned with 5, 10, 20 and 50 images of each class.

The draws are those of benchmarks/real_size.py but for the number of images. A frozen network's head is fitted to the
same images, so the unpruned network gets better with more of them, too. Ours, on the given images and with a size that
the call chooses, stands beside layer by layer, as published and with our reconstruction. With a chosen size, which is
the default of trained networks, the call also predicts the accuracy. Writes a row a draw, number, method and size to
results/benchmarks/few_images.csv. What data/few_images has is not measured again; the committed rows lack what takes
longest: TrashNet, and chosen sizes of ResNet-56 with 20 and 50 images.

    python benchmarks/few_images.py --cifar10 DIR --trashnet DIR --weights DIR --seeds 4000 4001 4002 4003 4004
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from layer_by_layer import layer_by_layer
from lrp_core.api import FOLDS
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.study.analysis.promise import CHOSEN, LAYER_BY_LAYER, OURS
from lrp_core.study.analysis.real_size import LAYERS_REPAIRED
from promise import measured, predicted
from side_by_side import side_by_side
from tasks import REAL_SIZE, TRAINED, Draw, Setup, draw

PAIRS = (*(("cifar10", network) for network in TRAINED), ("trashnet", "squeezenet1_1"))
PER_CLASS = (5, 10, 20, 50)
LIMITS = (0.5, 0.25)  # of the multiply-adds


def by_call(one: Draw, method: str, folds: int) -> Iterator[tuple[str, float, nn.Module, dict[str, float]]]:
    """Prune by a method of the call, and yield it with sizes, networks and what is predicted of them."""
    pruned = one.prune(method, head_fitted=one.head_fitted, multiply_adds=LIMITS[-1], folds=folds)
    for limit in LIMITS:
        smaller = pruned.select(multiply_adds=limit)
        yield method, limit, smaller.model, predicted(smaller)


def networks(one: Draw) -> Iterator[tuple[str, float, nn.Module, dict[str, float]]]:
    """Yield methods, sizes, networks and what is predicted of them."""
    yield "unpruned", 1.0, one.model, {}
    yield from by_call(one, OURS, 0)
    yield from by_call(one, CHOSEN, FOLDS)
    for method in (LAYER_BY_LAYER, LAYERS_REPAIRED):
        repair = Reconstruction(one.model, one.images) if method == LAYERS_REPAIRED else None
        found = layer_by_layer(one.model, one.images, LIMITS, repair=repair)
        yield from ((method, limit, model, {}) for limit, (_, model) in zip(LIMITS, found, strict=True))


def measured_rows(task: str, network: str, seed: int, per_class: str, setup: Setup) -> Iterator[dict]:
    """Measure one draw with so many images of each class."""
    trained = {name: replace(how, per_class=int(per_class)) for name, how in TRAINED.items()}
    frozen = {name: replace(how, per_class=int(per_class)) for name, how in REAL_SIZE.items()}
    one = draw(task, network, seed, setup, frozen, trained)
    key = {"task": task, "network": network, "seed": seed, "images": int(per_class), "overlap": one.overlap}
    for method, limit, model, estimate in networks(one):
        row = key | {"device": setup.computed_on, "method": method, "multiply_adds": limit}
        yield row | measured(model, one) | estimate


def parts(seeds: list[int]) -> Iterator[tuple[str, str, int, int]]:
    """Yield draws with numbers of images, seed by seed."""
    yield from ((*pair, seed, number) for seed in seeds for pair in PAIRS for number in PER_CLASS)


if __name__ == "__main__":
    side_by_side("few_images", __doc__, parts, measured_rows)
