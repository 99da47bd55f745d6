"""Measures of accuracy: by class, their harmonic mean, the area under a pruning curve."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lrp_core.utils.devices import device_of

MAX_RATE = 0.95  # curves end here: with fewer filters than that every network is at chance


def filters_at(rate: float, n_filters: int) -> int:
    """Return how many filters are pruned at a pruning rate: the least number that reaches it."""
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
