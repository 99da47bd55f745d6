"""Criteria that are the same for every image: weight magnitude, and random draws."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.tracing import trace
from lrp_core.importance.criterion import Scores
from lrp_core.metrics.accuracy import predict


def weight(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Sum of a filter's absolute weights, batch normalisation folded in; the same for every image.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, sec. 3.1.
    """
    return _same_for_all(model, images, lambda layer: layer.weight.detach().abs().sum(dim=(1, 2, 3)))


@dataclass(frozen=True)
class Random:
    """Uniform draws, in each network anew; the same for every image."""

    seed: int

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Draw a number a filter."""
        generator = torch.Generator().manual_seed(self.seed)
        return _same_for_all(model, images, lambda layer: torch.rand(layer.out_channels, generator=generator))


def _same_for_all(model: nn.Module, images: torch.Tensor, score: Callable[[nn.Conv2d], torch.Tensor]) -> Scores:
    convolutions = [layer for layer in fold_batchnorm(trace(model)) if isinstance(layer.module, nn.Conv2d)]
    filters = {layer.name: score(layer.module).to(images.device).expand(len(images), -1) for layer in convolutions}
    return Scores(filters, predict(model, images))
