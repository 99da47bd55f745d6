"""The cost of a network as a function of its remaining filters, without building the smaller network."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lrp_core.graph.layers import WEIGHTED
from lrp_core.graph.tracing import trace
from lrp_core.metrics.cost import multiply_adds_by_layer
from lrp_core.pruning.network import PrunedNetwork


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer, in multiply-adds or in parameters.

    Attributes:
        whole: before any filter is removed.
        proportional_to: arrays of groups of channels (:class:`lrp_core.pruning.dependency.Coupling`); the cost is
            proportional to the remaining fraction of each. Group -1 always remains.
    """

    whole: int
    proportional_to: tuple[np.ndarray, ...]


def layer_costs(network: PrunedNetwork, image: torch.Tensor, heads: int = 1) -> list[LayerCost]:
    """Return the cost of each convolution and dense layer of a network.

    Args:
        network: must not have lost filters yet.
        image: (1, C, H, W).
        heads: number of heads in its last layer. Only one counts: out-of-fold heads only evaluate, and are removed in
            the end.
    """
    costs, last = [], trace(network.model)[-1].name
    for name, cost in multiply_adds_by_layer(network.model, image).items():
        module, reads = network.model.get_submodule(name), network.coupling.channels[name]
        if isinstance(module, nn.Linear):
            costs.append(LayerCost(cost // heads if name == last else cost, (reads,)))
        elif module.groups == module.in_channels > 1:  # depthwise: each filter reads its own channel
            costs.append(LayerCost(cost, (network.coupling.filters[name],)))
        else:
            costs.append(LayerCost(cost, (reads, network.coupling.filters[name])))
    return costs


def parameter_costs(network: PrunedNetwork, adds_biases: bool = True) -> list[LayerCost]:
    """Return the number of parameters of each layer of a network that has not lost filters yet.

    Args:
        network: the network.
        adds_biases: whether convolutions without a bias get one, as by reconstruction.
    """
    costs = []
    for name, reads in network.coupling.channels.items():
        module, made = network.model.get_submodule(name), network.coupling.filters.get(name)
        if not isinstance(module, WEIGHTED):
            parts = [part.numel() for part in module.parameters(recurse=False)]
            costs += [LayerCost(part, (reads,) if part == len(reads) else ()) for part in parts]
        elif made is None:
            costs.append(LayerCost(module.weight.numel(), (reads,)))
            costs += [] if module.bias is None else [LayerCost(len(module.bias), ())]
        else:
            depthwise = module.groups == module.in_channels > 1
            costs.append(LayerCost(module.weight.numel(), (made,) if depthwise else (reads, made)))
            if module.bias is not None or (adds_biases and module.groups == 1):
                costs.append(LayerCost(module.out_channels, (made,)))
    return costs


def savings(costs: list[LayerCost], kept: np.ndarray) -> np.ndarray:
    """Return the saving of each filter alone, (n_groups,), float64, to first order; ``kept`` (n_groups,), boolean.

    If a layer reads and outputs the same filters, as in ``x + conv(x)``, the overlap of both savings counts twice.
    """
    every, saved = np.append(kept, True), np.zeros(len(kept))
    for layer in costs:
        shares = [every[groups].mean() for groups in layer.proportional_to]
        for i, groups in enumerate(layer.proportional_to):
            others = np.prod(shares[:i] + shares[i + 1 :])
            counts = np.bincount(groups[groups >= 0], minlength=len(kept)) / len(groups)
            saved += layer.whole * others * counts
    return saved


def cost_kept(costs: list[LayerCost], kept: np.ndarray) -> int:
    """Return the cost of a network with some of its filters; ``kept`` (n_groups,), boolean."""
    kept, total = np.append(kept, True), 0  # group -1
    for layer in costs:
        cost = layer.whole
        for groups in layer.proportional_to:
            cost = cost * int(kept[groups].sum()) // len(groups)
        total += cost
    return total
