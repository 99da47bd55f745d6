"""Products: which of the two factors gets the relevance.

A gate controls how much of a signal passes. The signal gets all relevance (signal-take-all, Arras et al., Explaining
and Interpreting LSTMs, in Explainable AI, LNCS 11700, 2019). The product of two signals gives half to each (the uniform
rule for bilinear terms, Achtibat et al., AttnLRP, ICML 2024).

A factor is a gate if it ends in a sigmoid, or if it has one position where the other factor has several. Treating the
second kind as a gate, whatever it ends in, is our reading.
"""

from collections.abc import Sequence

import torch
from torch import nn

from lrp_core.graph.layers import REARRANGED, ChannelScale, Layer

_SIGMOIDS = (nn.Sigmoid, nn.Hardsigmoid)


def sigmoids(layers: list[Layer]) -> set[str]:
    """Return the names of the layers that end in a sigmoid, possibly scaled or rearranged."""
    names: set[str] = set()
    for layer in layers:
        keeps = isinstance(layer.module, (ChannelScale, *REARRANGED)) and names.issuperset(layer.inputs)
        if keeps or isinstance(layer.module, _SIGMOIDS):
            names.add(layer.name)
    return names


def shared(relevance: torch.Tensor, shapes: Sequence[torch.Size], gates: Sequence[bool]) -> list[torch.Tensor | None]:
    """Return the relevance of each factor of a product; None for a gate, which gets none.

    Args:
        relevance: of the product, (N, C, H, W) or (N, C).
        shapes: of the two factors.
        gates: whether each ends in a sigmoid.
    """
    if gates[0] == gates[1]:
        positions = [shape[2:].numel() for shape in shapes]
        gates = [one < other for one, other in zip(positions, reversed(positions), strict=True)]
    if not any(gates):
        relevance = relevance / 2
    return [None if gate else relevance.sum_to_size(shape) for gate, shape in zip(gates, shapes, strict=True)]
