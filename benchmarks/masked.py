"""The oracle for removal: the whole network, with the channels that are removed set to zero."""

import numpy as np
import torch
from torch import nn

from lrp_core.graph.layers import INPUT, ChannelPermutation, ChannelSlice, Concat
from lrp_core.graph.tracing import trace
from lrp_core.pruning.dependency import Coupling


def masked_run(model: nn.Module, coupling: Coupling, gone: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    """Run the whole network, layer by layer, with the channels of some groups set to 0 behind every single layer.

    Args:
        model: of supported layers.
        coupling: of it.
        gone: which groups, (n_groups,), boolean.
        images: (N, C, H, W).
    """
    values, channels = {INPUT: images}, {INPUT: np.full(images.shape[1], -1)}
    kept = torch.from_numpy(np.append(~gone, True))
    for layer in trace(model):
        value = layer.module(*(values[name] for name in layer.inputs))
        carried = [channels[name] for name in layer.inputs]
        if layer.name in coupling.filters:
            carried = [coupling.filters[layer.name]]
        elif isinstance(layer.module, nn.Linear):
            carried = [np.full(value.shape[1], -1)]
        elif isinstance(layer.module, nn.Flatten):
            carried = [np.repeat(carried[0], value.shape[1] // len(carried[0]))]
        elif isinstance(layer.module, Concat | ChannelSlice | ChannelPermutation):  # as it does with maps
            numbers = [torch.from_numpy(groups).view(1, -1, 1, 1) for groups in carried]
            carried = [layer.module(*numbers).flatten().numpy()]
        channels[layer.name] = carried[0]
        mask = kept[torch.from_numpy(channels[layer.name])]
        values[layer.name] = value * mask.view(1, -1, *[1] * (value.dim() - 2))
    return value
