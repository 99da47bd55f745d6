"""Which residual block is the next to be skipped: the one whose branch adds least to its shortcut."""

import math
from collections.abc import Callable

import torch
from torch import nn

from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import Layer
from lrp_core.graph.tracing import trace
from lrp_core.utils.devices import device_of

# From a backbone, its identity blocks (lrp_core.graph.blocks.identity_blocks) and images (N, C, H, W) to how much each
# block changes, by block; the least goes first.
BlockChanges = Callable[[nn.Module, dict[str, tuple[str, ...]], torch.Tensor], dict[str, float]]


def branch_norms(backbone: nn.Module, blocks: dict[str, tuple[str, ...]], images: torch.Tensor) -> dict[str, float]:
    """Return, by block, the squared norm of what its branch adds over that of its shortcut, of all images together.

    Infinite where the shortcut is 0: without its branch such a block gives nothing.

    Args:
        backbone: images to feature maps, made of supported layers.
        blocks: of it (:func:`lrp_core.graph.blocks.identity_blocks`).
        images: (N, C, H, W), normalised.
    """
    changes = {}

    def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
        if layer.name in blocks:
            branch = blocks[layer.name][0]
            (shortcut,) = set(layer.inputs) - {branch}
            added, there = (sum(live[name].square().sum().item() for live in lives) for name in (branch, shortcut))
            changes[layer.name] = added / there if there else math.inf

    with torch.no_grad():
        run_together(trace(backbone), batched(images, device_of(backbone)), visit)
    return changes
