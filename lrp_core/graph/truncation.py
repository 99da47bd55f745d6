"""Networks of less depth: one ends at an early exit, skips residual blocks, or both."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.graph.blocks import without_blocks
from lrp_core.graph.explicit import of_layers
from lrp_core.graph.layers import needed
from lrp_core.graph.tracing import trace


@dataclass(frozen=True)
class Truncation:
    """How a backbone is shortened; in tables, as text: the exit, then each skipped block, after " -".

    Attributes:
        exit: the name of the layer behind which the backbone ends, "" for its own end.
        skipped: names of the sums that end the residual blocks that are skipped
            (:func:`lrp_core.graph.blocks.without_blocks`).
    """

    exit: str
    skipped: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Truncation":
        """Return the truncation that a text says."""
        exit_, *skipped = text.split(" -")
        return cls(exit_, tuple(skipped))

    def __str__(self) -> str:
        """Return the text for :meth:`parse`."""
        return " -".join([self.exit, *self.skipped])


def truncated(backbone: nn.Module, truncation: str) -> nn.Module:
    """Return a shortened backbone; its layers are those of the given one.

    Args:
        backbone: images to feature maps, made of supported layers; untouched.
        truncation: a :class:`Truncation`, as text.
    """
    how = Truncation.parse(truncation)
    part = without_blocks(backbone, how.skipped) if how.skipped else backbone
    return up_to(part, how.exit) if how.exit else part


def up_to(model: nn.Module, name: str) -> nn.Module:
    """Return the part of a network that ends with a layer; it gives what that layer makes.

    Args:
        model: as for :func:`lrp_core.graph.tracing.trace`; untouched, the part shares its layers.
        name: of the layer.

    Raises:
        ValueError: the network has no such layer.
    """
    layers = trace(model)
    if name not in (layer.name for layer in layers):
        raise ValueError(f"the network has no layer {name!r}")
    return of_layers(needed(layers, name))


def classifier(backbone: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Put a linear head on a backbone: average over positions, then a dense layer without bias.

    Args:
        backbone: images to feature maps (N, C, H, W).
        weight: (n_classes, C); the head has the backbone's device and dtype.
    """
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    like = next(backbone.parameters(), weight)
    head.weight = nn.Parameter(weight.to(like, copy=True), requires_grad=False)
    parts = {"backbone": backbone, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": head}
    return nn.Sequential(OrderedDict(parts)).eval()
