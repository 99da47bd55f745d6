"""Weight magnitude as a criterion."""

import torch
from torch import nn

from lrp_core.importance.criterion import Scores, same_for_all


def weight(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Sum of a filter's absolute weights, batch normalisation folded in; the same for every image.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, sec. 3.1.
    """
    return same_for_all(model, images, lambda layer: layer.weight.detach().abs().sum(dim=(1, 2, 3)))
