"""Modules that share tensors with others: to change one tensor of a network, nothing else need be copied."""

import torch
from torch import nn


def shallow_copy(module: nn.Module) -> nn.Module:
    """Return a network with modules of its own and the tensors of the given one."""
    other = object.__new__(type(module))  # fx.GraphModule's own __new__ would make a class without a forward
    other.__dict__ = module.__dict__ | {
        "_parameters": module._parameters.copy(),
        "_buffers": module._buffers.copy(),
        "_modules": {name: child and shallow_copy(child) for name, child in module._modules.items()},
    }
    return other


def with_weight(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Module:
    """Return the layer with another weight and bias; it shares nothing but its settings with the given one."""
    other = type(layer).__new__(type(layer))
    other.__dict__ = layer.__dict__ | {"_parameters": {"weight": weight, "bias": bias}}
    return other
