"""Networks that make their images smaller before they read them."""

from collections import OrderedDict

from torch import nn

from lrp_core.graph.layers import Resize

NETWORK = "network"  # the name of the network inside


def resizing(model: nn.Module, size: tuple[int, int]) -> nn.Sequential:
    """Return a network that resizes its images to (H, W), then runs the given one, which becomes its ``network``."""
    return nn.Sequential(OrderedDict({"resize": Resize(tuple(size)), NETWORK: model})).eval()
