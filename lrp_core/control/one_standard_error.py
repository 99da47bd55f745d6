"""The one-standard-error rule: of networks that the images cannot tell from the best one, take the smallest.

Breiman et al., Classification and Regression Trees, 1984, sec. 3.4.3.
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import nn

from lrp_core.metrics.accuracy import class_accuracies

Name = TypeVar("Name", bound=Hashable)
Judged = tuple[tuple[float, float], nn.Module]  # an accuracy with its standard error, and the classifier that has it


def accuracy_with_error(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Return the class-averaged accuracy and its standard error; logits (N, K), labels (N,), each class present."""
    n_classes = int(labels.max()) + 1
    by_class = class_accuracies(logits.argmax(dim=1), labels, n_classes)
    error = (by_class * (1 - by_class) / labels.bincount()).sum().sqrt() / n_classes
    return by_class.mean().item(), error.item()


def first_as_good(found: Mapping[Name, tuple[float, float]], errors: float = 1.0) -> Name:
    """Return the first name whose accuracy is within some standard errors of the best.

    Args:
        found: accuracies with their standard errors, by name, from the smallest network to the largest.
        errors: how many.
    """
    accuracy, error = max(found.values(), key=lambda pair: pair[0])
    return next(name for name, (other, _) in found.items() if other >= accuracy - errors * error)
