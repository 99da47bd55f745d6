"""The layers that a traced network is made of, and what their kinds tell of the values between them."""

from dataclasses import dataclass

import torch
from torch import nn


class Sum(nn.Module):
    """The sum of its inputs, as at the end of a residual block."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Add inputs of one shape."""
        return sum(inputs[1:], inputs[0])


class Concat(nn.Module):
    """Its inputs side by side along the channels, as in a dense block."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Concatenate along dimension 1."""
        return torch.cat(inputs, dim=1)


@dataclass(frozen=True)
class Layer:
    """One operation of a traced network.

    Attributes:
        name: as in ``named_modules()``; for a bare function, its name in the trace.
        module: what it computes, never in place; shares its parameters with the traced model.
        inputs: names of the layers that it reads, ``"input"`` being the network's input.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


INPUT = "input"

WEIGHTED = (nn.Conv2d, nn.Linear)  # kinds (with their subclasses) that hold a weight
ACTIVATIONS = (nn.ReLU, nn.ReLU6)  # not negative, by channel and position
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_STATEFUL = (*WEIGHTED, nn.BatchNorm2d)
# Kinds behind which nothing is negative if nothing was before.
_SIGN_KEEPING = (nn.Flatten, *POOLING, Sum, Concat)
_NOTHING = (nn.Dropout, nn.Identity)  # in a network that predicts
SUPPORTED = (*WEIGHTED, nn.BatchNorm2d, *ACTIVATIONS, *POOLING, nn.Flatten, Sum, Concat, *_NOTHING)


def shallow_copy(module: nn.Module) -> nn.Module:
    """Return a network with modules of its own and the tensors of the given one."""
    other = object.__new__(type(module))  # fx.GraphModule's own __new__ would make a class without a forward
    other.__dict__ = module.__dict__ | {
        "_parameters": module._parameters.copy(),
        "_buffers": module._buffers.copy(),
        "_modules": {name: child and shallow_copy(child) for name, child in module._modules.items()},
    }
    return other


def _readers(layers: list[Layer]) -> dict[str, list[Layer]]:
    readers: dict[str, list[Layer]] = {name: [] for name in (INPUT, *(layer.name for layer in layers))}
    for layer in layers:
        for source in layer.inputs:
            readers[source].append(layer)
    return readers


def nonnegative(layers: list[Layer]) -> set[str]:
    """Return the names of the layers whose outputs cannot be negative."""
    names: set[str] = set()
    for layer in layers:
        keeps = isinstance(layer.module, _SIGN_KEEPING) and names.issuperset(layer.inputs)
        if keeps or isinstance(layer.module, ACTIVATIONS):
            names.add(layer.name)
    return names


def rectified(layers: list[Layer]) -> set[str]:
    """Return the names of the layers that are read by nothing but activations, so that negative outputs are lost."""
    readers = _readers(layers)
    return {
        layer.name
        for layer in layers
        if readers[layer.name] and all(isinstance(reader.module, ACTIVATIONS) for reader in readers[layer.name])
    }
