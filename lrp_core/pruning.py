"""Removal of filters: the pruned network is a smaller network, not a masked one."""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from lrp_core.graph import INPUT, WEIGHTED, Layer, run, trace


def remove_filters(model: nn.Module, filters: Mapping[str, Iterable[int]], example_input: torch.Tensor) -> nn.Module:
    """Return a copy of the network without some filters; whatever reads their channels shrinks with them.

    Args:
        model: made of supported layers; untouched.
        filters: by name of a convolution, the indices of its output channels to remove.
        example_input: one input (1, C, H, W); its size tells how many positions a flattened channel has.

    Raises:
        ValueError: an unknown layer, an index out of range, a layer that would lose its last filter, or an
            unsupported layer.
    """
    layers = trace(model)
    kept = _kept(layers, filters)
    readable = _channels_read(layers, kept, example_input)
    weighted = [layer.module for layer in layers if isinstance(layer.module, WEIGHTED)]
    shared = {id(parameter): parameter for module in weighted for parameter in module.parameters()}
    smaller = copy.deepcopy(model, shared)  # their kept parts are copied below, so nothing stays shared
    for layer in layers:
        if isinstance(layer.module, WEIGHTED):
            _shrink(smaller.get_submodule(layer.name), kept.get(layer.name), readable[layer.name])
    return smaller


def _kept(layers: list[Layer], filters: Mapping[str, Iterable[int]]) -> dict[str, torch.Tensor]:
    """By convolution, a boolean (C,): the filter stays."""
    kept = {
        layer.name: torch.ones(layer.module.out_channels, dtype=torch.bool)
        for layer in layers
        if isinstance(layer.module, nn.Conv2d)
    }
    for name, indices in filters.items():
        if name not in kept:
            raise ValueError(f"{name!r} is no convolution of this network; it has: {', '.join(kept)}")
        for index in indices:
            if not 0 <= index < len(kept[name]):
                raise ValueError(f"layer {name!r} has filters 0..{len(kept[name]) - 1}, not {index}")
            kept[name][index] = False
        if not kept[name].any():
            raise ValueError(f"layer {name!r} would lose all of its {len(kept[name])} filters; leave at least one")
    return kept


def _channels_read(layers: list[Layer], kept: dict[str, torch.Tensor], example_input: torch.Tensor) -> dict:
    """By layer with weights, a boolean (C_in,): that input channel (or flattened position of one) stays."""
    shapes = {}
    with torch.no_grad():
        run(
            layers, {INPUT: example_input}, lambda layer, live: shapes.update({layer.name: live[layer.inputs[0]].shape})
        )
    stays = {INPUT: torch.ones(example_input.shape[1], dtype=torch.bool)}
    read = {}
    for layer in layers:
        arriving = stays[layer.inputs[0]]
        if isinstance(layer.module, nn.Flatten):
            arriving = arriving.repeat_interleave(shapes[layer.name][2:].numel())
        elif isinstance(layer.module, WEIGHTED):
            read[layer.name] = arriving
            arriving = kept.get(layer.name, torch.ones(layer.module.weight.shape[0], dtype=torch.bool))
        stays[layer.name] = arriving
    return read


def _shrink(layer: nn.Module, outputs: torch.Tensor | None, inputs: torch.Tensor) -> None:
    """Keep these outputs (None: all) and inputs of a layer, in place."""
    outputs = torch.ones(layer.weight.shape[0], dtype=torch.bool) if outputs is None else outputs
    frozen = not layer.weight.requires_grad
    channels_last = layer.weight.dim() == 4 and layer.weight.is_contiguous(memory_format=torch.channels_last)
    weight = layer.weight.detach()[outputs][:, inputs]
    weight = weight.contiguous(memory_format=torch.channels_last) if channels_last else weight
    layer.weight = nn.Parameter(weight, requires_grad=not frozen)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[outputs], requires_grad=not frozen)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    else:
        layer.out_features, layer.in_features = layer.weight.shape


def filters_at(rate: float, n_filters: int) -> int:
    """Return how many filters are gone at a pruning rate: the least number that reaches it."""
    return int(np.ceil(round(rate * n_filters, 6)))  # 0.95 * 20 is 19, not a hair more


class PrunedNetwork:
    """A network that loses filters step by step, its filters numbered 0..n_filters-1 through all layers.

    Attributes:
        model: the network as it is now.
        layer_names: the convolutions, from input to output.
        layer_of: by filter number, the index of its layer in ``layer_names``, (n_filters,).
        active: by filter number, whether it is still there, (n_filters,).
    """

    def __init__(self, model: nn.Module, example_input: torch.Tensor):
        convolutions = [layer for layer in trace(model) if isinstance(layer.module, nn.Conv2d)]
        sizes = [layer.module.out_channels for layer in convolutions]
        self.model = model
        self.example_input = example_input
        self.layer_names = [layer.name for layer in convolutions]
        self.layer_of = np.repeat(np.arange(len(sizes)), sizes)
        self.active = np.ones(sum(sizes), dtype=bool)

    @property
    def n_filters(self) -> int:
        """The number of filters before any was removed."""
        return len(self.active)

    def without(self, filters: np.ndarray) -> nn.Module:
        """Return the present network without these filters (by number); the present one stays."""
        here = np.cumsum(self.active) - 1  # position among the active filters
        indices = {}
        for index, name in enumerate(self.layer_names):
            mine = filters[self.layer_of[filters] == index]
            if not self.active[mine].all():
                raise ValueError(f"filters {mine[~self.active[mine]].tolist()} of {name!r} are removed already")
            first = np.flatnonzero(self.active & (self.layer_of == index))[0]
            if len(mine):
                indices[name] = (here[mine] - here[first]).tolist()
        return remove_filters(self.model, indices, self.example_input)

    def remove(self, filters: np.ndarray) -> None:
        """Take these filters (by number) out for good."""
        self.model = self.without(filters)
        self.active[filters] = False

    def flat(self, by_layer: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Lay values (..., C_layer) of each layer out by filter number, (..., n_filters), float64; NaN where gone."""
        values = torch.cat([by_layer[name] for name in self.layer_names], dim=-1).double().cpu().numpy()
        result = np.full((*values.shape[:-1], self.n_filters), np.nan)
        result[..., self.active] = values
        return result

    def kept_by_layer(self) -> dict[str, int]:
        """By convolution, how many filters are left."""
        counts = np.bincount(self.layer_of[self.active], minlength=len(self.layer_names))
        return dict(zip(self.layer_names, counts.tolist(), strict=True))
