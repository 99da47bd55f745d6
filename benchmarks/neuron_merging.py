"""Neuron merging, an alternative that needs no image: a removed filter lives on in the one that resembles it most.

After Kim et al., Neuron Merging: Compensating for Pruned Neurons, NeurIPS 2020, written from the paper. Every layer
keeps the same share of its filters, those with the largest l1 norm. A removed filter n is taken for s times a kept one
m, where s is the ratio of their l2 norms. Behind batch normalisations, x -> g x + c by channel, it is then S times what
m gives there, and a rest:

    S = s g_n / g_m,    B = c_n - S c_m

For S > 0 a ReLU hands the factor on, so that the next layer can do without n: its weights for m gain S times those for
n. B is neglected. So m is the one with the least of lambda (1 - cosine similarity) + (1 - lambda) |B| / S, or, without
batch normalisation, with the largest cosine similarity.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from layer_by_layer import ChannelSet, Costs, channel_sets, kept_at
from torch import nn

from lrp_core.control.cost import layer_costs
from lrp_core.graph.batchnorm import affine
from lrp_core.graph.layers import POOLING, Concat, Layer
from lrp_core.pruning.dependency import Coupling
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.surgery import replace_tensor

BALANCE = 0.85  # the paper's lambda
THRESHOLD = 0.1  # a filter whose best cosine similarity is below is dropped, not merged


class Merging:
    """Adds to what the next layers read of kept filters what they read of removed ones.

    A :class:`lrp_core.pruning.network.Compensation`; it looks at no values.
    """

    def __init__(self, network: PrunedNetwork, sets: list[ChannelSet]):
        """Take an unpruned network."""
        self._layers = {layer.name: layer.module for layer in network.layers(network.model)}
        self._sets = sets

    def compensation(
        self, coupling: Coupling, kept_groups: np.ndarray
    ) -> Callable[[Layer, list[dict[str, torch.Tensor]]], None]:
        """Return what merges weights of the layers when they are about to be run."""
        merged: dict[str, list[tuple[int, int, float]]] = {}
        for channels in self._sets:
            for name, behind in channels.behind.items():
                if _passes_factors(behind):
                    pairs = self._pairs(name, behind[0].module, coupling.filters[name], kept_groups)
                    for reader in channels.readers:
                        merged.setdefault(reader, []).extend(pairs)
        kept_groups = np.append(kept_groups, True)  # group -1

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in merged:
                original, read = self._layers[layer.name].weight, coupling.channels[layer.name]
                weight = original.detach().clone()
                for removed, kept, scale in merged[layer.name]:
                    weight[:, read == kept] += scale * original.detach()[:, read == removed]
                if layer.name in coupling.filters:
                    weight = weight[kept_groups[coupling.filters[layer.name]]]
                replace_tensor(layer.module, "weight", weight[:, kept_groups[read]], original)

        return visit

    def _pairs(
        self, name: str, norm: nn.Module, groups: np.ndarray, kept_groups: np.ndarray
    ) -> list[tuple[int, int, float]]:
        """Return, by group that a convolution loses, the kept one to merge it with, and the scale S."""
        convolution, balance = self._layers[name], 1.0
        rows = convolution.weight.detach().cpu().flatten(1)
        gain, shift = torch.ones(len(rows)), torch.zeros(len(rows))
        if isinstance(norm, nn.BatchNorm2d):
            (gain, shift), balance = (part.cpu() for part in affine(norm)), BALANCE
        if convolution.bias is not None:
            shift = shift + gain * convolution.bias.detach().cpu()
        kept = torch.from_numpy(kept_groups[groups])
        norms = rows.norm(dim=1) + 1e-12
        cosine = (rows @ rows.T / norms / norms[:, None])[~kept][:, kept]  # (removed, kept)
        scale = (norms * gain)[~kept, None] / (norms * gain)[kept]
        rest = (shift[~kept, None] - scale * shift[kept]).abs() / scale
        distance = torch.where(scale > 0, balance * (1 - cosine) + (1 - balance) * rest, torch.inf)
        best = distance.argmin(dim=1)
        return [
            (removed, groups[kept][k], float(scale[i, k]))
            for i, (removed, k) in enumerate(zip(groups[~kept], best.tolist(), strict=True))
            if scale[i, k] > 0 and cosine[i, k] >= THRESHOLD
        ]


def _passes_factors(behind: tuple[Layer, ...]) -> bool:
    """Tell whether positive factors pass all that is between: at most one normalisation, first, then ReLU alone."""
    first, *others = (layer.module for layer in behind)
    passing = (nn.ReLU, *POOLING, Concat, nn.Flatten)
    return isinstance(first, (nn.BatchNorm2d, *passing)) and all(isinstance(other, passing) for other in others)


def neuron_merging(
    model: nn.Module, example: torch.Tensor, fractions: Iterable[float], costs: Costs = layer_costs
) -> Iterator[tuple[float, nn.Module]]:
    """Yield smaller networks, each with the fraction of the cost that it needs.

    Args:
        model: made of supported layers; untouched.
        example: one input (1, C, H, W), for its size alone.
        fractions: at most so much of the cost, descending; the first that is out of reach ends it.
        costs: what is counted; multiply-adds by default.
    """
    network = PrunedNetwork(model, example)
    sets = channel_sets(network.layers(network.model))
    order = {}
    for name in (name for channels in sets for name in channels.behind):
        norms = network.model.get_submodule(name).weight.detach().abs().sum(dim=(1, 2, 3))
        order[name] = network.coupling.filters[name][norms.argsort(descending=True).cpu().numpy()]
    merging = PrunedNetwork(model, example, [Merging(network, sets)])
    for fraction, kept in kept_at(fractions, network, order, example, costs):
        yield fraction, merging.without(np.flatnonzero(~kept))
