"""The published setting of a peer: ResNet-56 on CIFAR-10, pruned with 500 images and no training, at given parameters.

El Halabi et al. (Data-Efficient Structured Pruning via Submodular Optimization, NeurIPS 2022, Figure 2) prune the same
file of weights with 512 training images, without labels. Here 50 images a class come from JPEG copies of CIFAR-10's
test images, on which the network is less accurate: compare the accuracy that is kept. The 4,000 test images are others.
Only LRP reads labels. Writes a row a draw, method and size to results/benchmarks/published.csv. What data/published has
is not measured again.

    python benchmarks/published.py --cifar10 DIR --trashnet DIR --weights DIR --seeds 4000 4001 4002 4003 4004
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from torch import nn

from layer_by_layer import layer_by_layer
from lrp_core.control.cost import LayerCost, parameter_costs
from lrp_core.metrics.cost import n_parameters
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.distillation import distil
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.study.analysis.promise import DISTILLED, LAYER_BY_LAYER, NEURON_MERGING, OURS
from lrp_core.study.analysis.real_size import LAYERS_REPAIRED
from neuron_merging import neuron_merging
from promise import measured
from side_by_side import side_by_side
from tasks import TRAINED, Draw, Setup, draw

METHODS = (OURS, LAYER_BY_LAYER, LAYERS_REPAIRED, NEURON_MERGING, "px-static", "weight")
LIMITS = (0.75, 0.5, 0.25)  # of the parameters
ADDED = 0.001  # of them are biases that reconstruction adds to the smaller networks of layer by layer


def counted(network: PrunedNetwork, _image: object) -> list[LayerCost]:
    """Return the parameters of each layer, for alternatives that count multiply-adds by default."""
    return parameter_costs(network)


def networks(method: str, one: Draw) -> Iterator[tuple[str, nn.Module]]:
    """Prune by a method, and yield methods and networks: at each limit one, and of ours a distilled one."""
    if method == NEURON_MERGING:
        yield from ((method, model) for _, model in neuron_merging(one.model, one.images[:1], LIMITS, counted))
        return
    if method in (LAYER_BY_LAYER, LAYERS_REPAIRED):
        repair = Reconstruction(one.model, one.images) if method == LAYERS_REPAIRED else None
        limits = LIMITS if repair is None else [limit - ADDED for limit in LIMITS]
        yield from ((method, model) for _, model in layer_by_layer(one.model, one.images, limits, counted, repair))
        return
    pruned = one.prune(method=method, parameters=0.5, folds=0)
    for limit in LIMITS:
        model = pruned.select(parameters=limit).model
        yield method, model
        if method == OURS:
            distil(model, one.model, one.images, seed=0)
            yield DISTILLED, model


def measured_rows(task: str, network: str, seed: int, method: str, setup: Setup) -> Iterator[dict]:
    """Measure one method on one draw."""
    trained = {network: replace(TRAINED[network], per_class=50, n_test=400)}
    one = draw(task, network, seed, setup, trained=trained)
    key, whole = {"task": task, "network": network, "seed": seed}, n_parameters(one.model)
    whole_too = [("unpruned", one.model)] if method == OURS else []
    for name, model in chain(whole_too, networks(method, one)):  # one by one: distillation changes the one before
        yield key | {"method": name, "parameters": n_parameters(model) / whole, **measured(model, one)}


def parts(seeds: list[int]) -> Iterator[tuple[str, str, int, str]]:
    """Yield draws with methods, seed by seed."""
    yield from (("cifar10", "resnet56", seed, method) for seed in seeds for method in METHODS)


if __name__ == "__main__":
    side_by_side("published", __doc__, parts, measured_rows)
