"""Coupled filters: those that can only be removed together.

Filters whose channels meet are coupled: partners in a residual sum, a depthwise filter and the channel that it reads,
the channels of a grouped convolution that have the same index within their groups. A set of coupled filters is
called a group; in a chain of convolutions each group is one filter.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT, WEIGHTED, Concat, Layer, PadChannels, Sum
from lrp_core.graph.tracing import trace
from lrp_core.utils.devices import device_of


@dataclass(frozen=True)
class Coupling:
    """Which filters are coupled. Each channel has the number of its group, -1 if it cannot be removed.

    Attributes:
        n_groups: number of groups.
        filters: by convolution, the groups of its output channels, (C_out,).
        channels: by layer with a weight or a batch normalisation, the groups of the channels that it reads, (C_in,);
            for a dense layer, of its inputs.
        padded: by layer that adds channels of zeros, the groups of those before and of those behind its input.
    """

    n_groups: int
    filters: dict[str, np.ndarray]
    channels: dict[str, np.ndarray]
    padded: dict[str, tuple[np.ndarray, np.ndarray]]


class _Groups:
    """Union-find over channels; channel 0 stands for all that cannot be removed."""

    def __init__(self):
        self._parent = [0]

    def new(self, n: int) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + n))
        return np.arange(first, first + n)

    def root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = channel = self._parent[self._parent[channel]]
        return channel

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        for a, b in zip(one, other, strict=True):
            a, b = sorted((self.root(a), self.root(b)))
            self._parent[b] = a


def couple(model: nn.Module, example_input: torch.Tensor, ignored: Collection[str] = ()) -> Coupling:
    """Find out which filters are coupled.

    Groups are numbered by their first filter, from the input to the output.

    Args:
        model: made of supported layers.
        example_input: one input (1, C, H, W); its size tells how many positions a flattened channel has.
        ignored: convolutions that keep all of their filters.
    """
    layers = trace(model)
    positions: dict[str, int] = {}
    with torch.no_grad():
        run(
            layers,
            {INPUT: example_input.to(device_of(model))},
            lambda layer, live: positions.update({name: live[name][0, 0].numel() for name in layer.inputs}),
        )
    groups = _Groups()
    outputs = {INPUT: np.zeros(example_input.shape[1], dtype=int)}
    for layer in layers:
        outputs[layer.name] = _outputs(layer, [outputs[name] for name in layer.inputs], positions, groups)
    for name in (layers[-1].name, *ignored):  # the network's outputs cannot be removed
        groups.join(outputs[name], np.zeros_like(outputs[name]))
    made = [outputs[layer.name] for layer in layers if isinstance(layer.module, nn.Conv2d)]
    removable = {groups.root(channel) for channels in made for channel in channels}
    number = {0: -1}

    def numbered(channels: np.ndarray) -> np.ndarray:
        roots = [root if (root := groups.root(channel)) in removable else 0 for channel in channels]
        return np.array([number.setdefault(root, len(number) - 1) for root in roots], dtype=int)

    filters = {layer.name: numbered(outputs[layer.name]) for layer in layers if isinstance(layer.module, nn.Conv2d)}
    channels = {
        layer.name: numbered(outputs[layer.inputs[0]])
        for layer in layers
        if isinstance(layer.module, (*WEIGHTED, nn.BatchNorm2d))
    }
    padded = {}
    for layer in layers:
        if isinstance(layer.module, PadChannels):
            channels_of = numbered(outputs[layer.name])
            behind = len(channels_of) - layer.module.behind
            padded[layer.name] = channels_of[: layer.module.before], channels_of[behind:]
    return Coupling(len(number) - 1, filters, channels, padded)


def _outputs(layer: Layer, inputs: list[np.ndarray], positions: dict[str, int], groups: _Groups) -> np.ndarray:
    """Return the channels of a layer's output, after joining those that the layer couples."""
    module, (first, *others) = layer.module, inputs
    if isinstance(module, Sum):
        for other in others:
            groups.join(first, other)
        return first
    if isinstance(module, Concat):
        return np.concatenate(inputs)
    if isinstance(module, PadChannels):
        return np.concatenate([groups.new(module.before), first, groups.new(module.behind)])
    if isinstance(module, nn.Flatten):
        return np.repeat(first, positions[layer.inputs[0]])
    if isinstance(module, nn.Linear):
        return np.zeros(module.out_features, dtype=int)
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels and module.groups > 1:  # depthwise
            return np.repeat(first, module.out_channels // module.in_channels)
        made = groups.new(module.out_channels)
        for channels in (first, made):
            alike = channels.reshape(module.groups, -1)
            for other in alike[1:]:
                groups.join(alike[0], other)
        return made
    return first
