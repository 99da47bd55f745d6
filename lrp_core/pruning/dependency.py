"""Coupled filters: those that can only be removed together.

Filters are coupled if their channels meet: partners in a residual sum; a depthwise filter and the channel that it
reads; channels with the same index in the groups of a grouped convolution; channels of a gate and those that it scales;
channels that a group normalisation normalises together. A set of coupled filters is called a group. In a plain chain of
convolutions each group is one filter.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lrp_core.graph.execution import shapes
from lrp_core.graph.layers import (
    INPUT,
    STATEFUL,
    ChannelNorm,
    ChannelPermutation,
    ChannelScale,
    ChannelSlice,
    Concat,
    Layer,
    PadChannels,
    Product,
    Sum,
)
from lrp_core.graph.tracing import trace


@dataclass(frozen=True)
class Coupling:
    """Which filters are coupled. Each channel has the number of its group, -1 if it cannot be removed.

    Attributes:
        n_groups: number of groups.
        filters: by convolution, the groups of its output channels, (C_out,).
        channels: by layer that differs in a smaller network (:data:`lrp_core.graph.layers.STATEFUL`), the groups of the
            channels that it reads, (C_in,); for a dense layer, of its inputs.
        padded: by layer that adds channels of zeros, the groups of those before and of those behind its input.
    """

    n_groups: int
    filters: dict[str, np.ndarray]
    channels: dict[str, np.ndarray]
    padded: dict[str, tuple[np.ndarray, np.ndarray]]


class _Joined:
    """Channels, and which of them are joined; channel 0 stands for all that cannot be removed."""

    def __init__(self):
        self._n, self._pairs = 1, [np.zeros((2, 0), dtype=int)]

    def new(self, n: int) -> np.ndarray:
        self._n += n
        return np.arange(self._n - n, self._n)

    def join(self, one: np.ndarray, other: np.ndarray | int) -> None:
        self._pairs.append(np.stack(np.broadcast_arrays(one, other)).reshape(2, -1))

    def sets(self) -> np.ndarray:
        """Return, by channel, the lowest of all channels that are joined to it."""
        one, other = np.concatenate(self._pairs, axis=1)
        lowest = before = np.arange(self._n)
        while before is lowest or (before != lowest).any():
            before, lowest = lowest, lowest.copy()
            both = np.minimum(before[one], before[other])
            np.minimum.at(lowest, before[one], both)
            np.minimum.at(lowest, before[other], both)
            while (lowest[lowest] != lowest).any():
                lowest = lowest[lowest]
        return lowest


def couple(model: nn.Module, example_input: torch.Tensor, ignored: Collection[str] = ()) -> Coupling:
    """Find out which filters are coupled; nothing is computed, the tensors may be on the meta device.

    Groups are numbered by their first filter, from the input to the output.

    Args:
        model: made of supported layers.
        example_input: one input (1, C, H, W); its size tells how many positions a flattened channel has.
        ignored: convolutions that keep all of their filters.
    """
    layers = trace(model)
    shape_of = shapes(layers, example_input[:1])
    joined = _Joined()
    outputs = {INPUT: np.zeros(example_input.shape[1], dtype=int)}
    for layer in layers:
        channels = shape_of[layer.inputs[0]][1]
        if isinstance(layer.module, ChannelScale) and len(layer.module.weight) not in (1, channels):
            raise ValueError(
                f"layer {layer.name!r} scales {len(layer.module.weight)} channels, and its input has {channels}: give "
                "images that have as many channels"
            )
        positions = shape_of[layer.inputs[0]][2:].numel()
        outputs[layer.name] = _outputs(layer, [outputs[name] for name in layer.inputs], positions, joined)
    for name in (layers[-1].name, *ignored):  # the network's outputs cannot be removed
        joined.join(outputs[name], 0)
    convolutions = [layer.name for layer in layers if isinstance(layer.module, nn.Conv2d)]
    parts = [outputs[layer.name] for layer in layers if isinstance(layer.module, ChannelSlice)]
    joined.join(_to_keep(parts, [outputs[name] for name in convolutions], joined.sets()), 0)
    of = joined.sets()
    made = of[np.concatenate([[], *(outputs[name] for name in convolutions)]).astype(int)]
    kept, first = np.unique(made[made != 0], return_index=True)
    number = np.full(len(of), -1)
    number[kept[np.argsort(first)]] = np.arange(len(kept))

    def numbered(channels: np.ndarray) -> np.ndarray:
        return number[of[channels]]

    filters = {name: numbered(outputs[name]) for name in convolutions}
    channels = {
        layer.name: numbered(outputs[layer.inputs[0]])
        for layer in layers
        if isinstance(layer.module, STATEFUL) and not isinstance(layer.module, PadChannels)
    }
    padded = {}
    for layer in layers:
        if isinstance(layer.module, PadChannels):
            channels_of = numbered(outputs[layer.name])
            behind = len(channels_of) - layer.module.behind
            padded[layer.name] = channels_of[: layer.module.before], channels_of[behind:]
    return Coupling(len(kept), filters, channels, padded)


def _to_keep(parts: list[np.ndarray], made: list[np.ndarray], of: np.ndarray) -> np.ndarray:
    """Return a channel of each part that all could lose while every convolution kept a filter.

    Args:
        parts: channels that some layer reads.
        made: of each convolution, its output channels.
        of: by channel, its set of joined ones.
    """
    members: dict[int, tuple[int, ...]] = {}  # by set, the convolutions that have filters in it
    for i, channels in enumerate(made):
        for group in np.unique(of[channels]).tolist():
            members[group] = (*members.get(group, ()), i)
    found = []
    for part in parts:
        inside = set(of[part].tolist())
        spread = {names for group, names in members.items() if group not in inside}
        if 0 not in inside and all(members[group] in spread for group in inside):
            found.append(part[0])
    return np.array(found, dtype=int)


def _outputs(layer: Layer, inputs: list[np.ndarray], positions: int, joined: _Joined) -> np.ndarray:
    """Return the channels of a layer's output, after joining those that the layer couples.

    Args:
        layer: any.
        inputs: the channels of each of its inputs.
        positions: that its first input has.
        joined: is told.
    """
    module, (first, *others) = layer.module, inputs
    if isinstance(module, Sum | Product):
        for other in others:
            joined.join(first, other)
        return first
    if isinstance(module, Concat):
        return np.concatenate(inputs)
    if isinstance(module, PadChannels):
        return np.concatenate([joined.new(module.before), first, joined.new(module.behind)])
    if isinstance(module, ChannelSlice):
        return first[module.start : module.stop]
    if isinstance(module, ChannelPermutation):
        return first[module.index.numpy(force=True)]
    if isinstance(module, nn.Flatten):
        return np.repeat(first, positions)
    if isinstance(module, nn.Linear):
        return np.zeros(module.out_features, dtype=int)
    # Fewer channels would change the mean and the variance of the others, unless all of them are removed.
    if isinstance(module, ChannelNorm) or (isinstance(module, nn.GroupNorm) and module.num_groups == 1):
        joined.join(first, 0)
    elif isinstance(module, nn.GroupNorm):
        together = first.reshape(module.num_groups, -1)
        joined.join(together[:, 1:], together[:, :1])
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels and module.groups > 1:  # depthwise
            return np.repeat(first, module.out_channels // module.in_channels)
        made = joined.new(module.out_channels)
        for channels in (first, made):
            alike = channels.reshape(module.groups, -1)
            joined.join(alike[1:], alike[:1])
        return made
    return first
