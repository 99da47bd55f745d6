"""The cost of a network: filters, parameters, multiply-adds, latency."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrp_core.graph.tracing import trace
from lrp_core.utils.devices import device_of


@dataclass(frozen=True)
class Size:
    """The cost of a network.

    Layers that run in training alone, such as those of auxiliary heads, are not counted.

    Attributes:
        filters: output channels of all convolutions.
        parameters: of all layers.
        multiply_adds: of one forward pass, by torch's own counter.
        latency: median time of one forward pass, in seconds, measured here, on the device of the model.
    """

    filters: int
    parameters: int
    multiply_adds: int
    latency: float


def size(model: nn.Module, example_input: torch.Tensor) -> Size:
    """Return the cost of a network, made of supported layers, for one input (1, C, H, W)."""
    counted = n_filters(model), n_parameters(model), multiply_adds(model, example_input)
    return Size(*counted, latency(model, example_input))


def multiply_adds(model: nn.Module, example_input: torch.Tensor) -> int:
    """Return the multiply-adds of one forward pass, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # in inference mode torch 2.5 counts nothing
        model(example_input.to(device_of(model)))
    return counter.get_total_flops() // 2


def multiply_adds_by_layer(model: nn.Module, example_input: torch.Tensor) -> dict[str, int]:
    """Return the multiply-adds of one forward pass for each convolution and dense layer, by name.

    Layers that run only in training, such as those of auxiliary heads, are left out.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example_input.to(device_of(model)))
    counts, kind = counter.get_flop_counts(), type(model).__name__
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    ran = [name for name in layers if f"{kind}.{name}" in counts]
    return {name: sum(counts[f"{kind}.{name}"].values()) // 2 for name in ran}


def n_filters(model: nn.Module) -> int:
    """Return the number of output channels of all convolutions that run in a network that predicts."""
    return sum(layer.module.out_channels for layer in trace(model) if isinstance(layer.module, nn.Conv2d))


def n_parameters(model: nn.Module) -> int:
    """Return the number of parameters of all layers that run in a network that predicts."""
    return sum(parameter.numel() for layer in trace(model) for parameter in layer.module.parameters())


def latency(model: nn.Module, example_input: torch.Tensor, repeats: int = 15) -> float:
    """Return the median time of one forward pass in seconds, after two warm-up passes."""
    example_input, seconds = example_input.to(device_of(model)), []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            start = time.perf_counter()
            model(example_input).cpu()  # a GPU is done when its result is here
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:]))
