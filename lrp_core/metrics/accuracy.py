"""Predictions of a network, and their accuracy by class and in the harmonic mean."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lrp_core.utils.devices import device_of


def class_accuracies(predictions: torch.Tensor, targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return, for each class, the share of its samples that are predicted correctly, (n_classes,), float64.

    Args:
        predictions: predicted classes, (N,), integer.
        targets: true classes, (N,), integer.
        n_classes: the number of classes.

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
    """Return the harmonic mean of non-negative values, 0 if any of them is 0.

    Raises:
        ValueError: no values, or a negative one.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0 or (values < 0).any():
        raise ValueError(f"expected one or more non-negative values, got {values.tolist()}")
    return 0.0 if (values == 0).any() else float(values.size / np.sum(1 / values))


def predict(model: nn.Module, images: torch.Tensor, batch_size: int = 40) -> torch.Tensor:
    """Return the model's logits (N, K), computed batch by batch, on the images' device."""
    device = device_of(model)
    with torch.inference_mode():
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return torch.cat([model(batch.to(device)).to(images.device) for batch in batches])
