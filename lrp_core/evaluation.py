"""Measures: class accuracies, their harmonic mean, the area under a pruning curve, what a network costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrp_core.devices import device_of

MAX_RATE = 0.95  # curves end here: with fewer filters than that every network is at chance


def filters_at(rate: float, n_filters: int) -> int:
    """Return how many filters are gone at a pruning rate: the least number that reaches it."""
    return int(np.ceil(round(rate * n_filters, 6)))  # 0.95 * 20 is 19, not a hair more


def class_accuracies(predictions: torch.Tensor, targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return the share of each class's samples that is predicted as that class, (n_classes,), float64.

    Args:
        predictions: predicted classes, (N,), integer.
        targets: true classes, (N,), integer.
        n_classes: how many there are.

    Raises:
        ValueError: a class without a sample (it has no accuracy), or predictions and targets of different shapes.
    """
    if predictions.shape != targets.shape or targets.dim() != 1:
        raise ValueError(f"expected two tensors (N,), got {tuple(predictions.shape)} and {tuple(targets.shape)}")
    counts = torch.bincount(targets, minlength=n_classes)
    if len(counts) > n_classes or (counts == 0).any():
        raise ValueError(
            f"every class 0..{n_classes - 1} needs a sample and no other may occur; counts: {counts.tolist()}"
        )
    hits = torch.bincount(targets[predictions == targets], minlength=n_classes)
    return hits.double() / counts


def harmonic_mean(values: torch.Tensor | Sequence[float]) -> float:
    """Return the harmonic mean of non-negative values, 0 where any of them is 0.

    Raises:
        ValueError: no values, or a negative one.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0 or (values < 0).any():
        raise ValueError(f"expected one or more non-negative values, got {values.tolist()}")
    return 0.0 if (values == 0).any() else float(values.size / np.sum(1 / values))


def pruning_auc(rates: Sequence[float], accuracies: Sequence[float]) -> float:
    """Return the area under accuracy against pruning rate from 0 to 0.95, divided by 0.95: an average accuracy.

    Trapezoids between the given points; a point beyond 0.95 serves to interpolate the curve's end.

    Args:
        rates: achieved pruning rates, increasing, from 0 to 0.95 or beyond.
        accuracies: the accuracy at each rate.

    Raises:
        ValueError: the rates do not increase, do not start at 0 or end before 0.95.
    """
    rates, accuracies = np.asarray(rates, dtype=float), np.asarray(accuracies, dtype=float)
    if rates.shape != accuracies.shape or rates.ndim != 1:
        raise ValueError(f"expected as many rates as accuracies, got {rates.shape} and {accuracies.shape}")
    if len(rates) < 2 or rates[0] != 0 or (np.diff(rates) <= 0).any() or not MAX_RATE - 1e-9 <= rates[-1] <= 1:
        raise ValueError(f"rates must increase from 0 to {MAX_RATE} or beyond (at most 1), got {rates.tolist()}")
    inside = rates < MAX_RATE - 1e-9
    end = np.interp(MAX_RATE, rates, accuracies)
    return float(np.trapezoid(np.append(accuracies[inside], end), np.append(rates[inside], MAX_RATE)) / MAX_RATE)


def predict(model: nn.Module, images: torch.Tensor, batch_size: int = 40) -> torch.Tensor:
    """Return the model's logits (N, K), batch by batch; they come back to the images' device."""
    device = device_of(model)
    with torch.inference_mode():
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return torch.cat([model(batch.to(device)).to(images.device) for batch in batches])


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        filters: output channels of all convolutions.
        parameters: of all layers.
        multiply_adds: of one forward pass, as torch's own counter sees them.
        latency: median time of one forward pass, in seconds, measured here, on the CPU or whatever holds the model.
    """

    filters: int
    parameters: int
    multiply_adds: int
    latency: float


def size(model: nn.Module, example_input: torch.Tensor) -> Size:
    """Return what a network costs on one input (1, C, H, W)."""
    filters = sum(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))
    counted = n_parameters(model), multiply_adds(model, example_input)
    return Size(filters, *counted, latency(model, example_input))


def multiply_adds(model: nn.Module, example_input: torch.Tensor) -> int:
    """Return the multiply-adds of one forward pass, as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # in inference mode torch 2.5 counts nothing
        model(example_input.to(device_of(model)))
    return counter.get_total_flops() // 2


def multiply_adds_by_layer(model: nn.Module, example_input: torch.Tensor) -> dict[str, int]:
    """Return the multiply-adds of one forward pass by name of the convolution or dense layer that needs them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example_input.to(device_of(model)))
    counts, kind = counter.get_flop_counts(), type(model).__name__
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return {name: sum(counts[f"{kind}.{name}"].values()) // 2 for name in layers}


def n_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def latency(model: nn.Module, example_input: torch.Tensor, repeats: int = 15) -> float:
    """Return the median time of one forward pass in seconds, after two passes to warm up."""
    example_input, seconds = example_input.to(device_of(model)), []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            start = time.perf_counter()
            model(example_input).cpu()  # a GPU is done when its result is here
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:]))
