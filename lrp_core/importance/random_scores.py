"""Random draws as a criterion: what any other has to beat."""

from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.importance.criterion import Scores, same_for_all


@dataclass(frozen=True)
class Random:
    """Uniform draws, in each network anew; the same for every image."""

    seed: int

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Draw a number a filter."""
        generator = torch.Generator().manual_seed(self.seed)
        return same_for_all(model, images, lambda layer: torch.rand(layer.out_channels, generator=generator))
