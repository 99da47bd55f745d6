"""Random scores as a criterion, the baseline that any other has to beat."""

from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.importance.criterion import Scores, same_for_all


@dataclass(frozen=True)
class Random:
    """Uniform random scores, drawn for each network; the same for every image."""

    seed: int

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Draw one number per filter."""
        generator = torch.Generator().manual_seed(self.seed)
        return same_for_all(model, images, lambda layer: torch.rand(layer.out_channels, generator=generator))
