"""Networks that make their images smaller before they read them."""

from collections import OrderedDict

import torch
from torch import nn

from lrp_core.graph.layers import Resize

NETWORK = "network"  # the name of the network inside


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return images (N, C, H, W) resized to a height and width."""
    return Resize(size)(images)


def resizing(model: nn.Module, size: tuple[int, int]) -> nn.Sequential:
    """Return a network that resizes its images to (H, W), then runs the given one, which becomes its ``network``."""
    return nn.Sequential(OrderedDict({"resize": Resize(size), NETWORK: model})).eval()
