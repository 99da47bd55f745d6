"""Choose the residual block to skip next: the one whose branch adds least to its shortcut."""

import math
from collections.abc import Callable

import torch
from torch import nn

from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import Layer
from lrp_core.graph.tracing import trace
from lrp_core.utils.devices import device_of

# A function from a backbone, its identity blocks (lrp_core.graph.blocks.identity_blocks) and images (N, C, H, W) to how
# much each block changes; the block that changes least is skipped first.
BlockChanges = Callable[[nn.Module, dict[str, tuple[str, ...]], torch.Tensor], dict[str, float]]


def branch_norms(backbone: nn.Module, blocks: dict[str, tuple[str, ...]], images: torch.Tensor) -> dict[str, float]:
    """Return, by block, the ratio of the squared norms of its branch and its shortcut, over all images together.

    Infinite if the shortcut is 0: without its branch such a block outputs only zeros.

    Args:
        backbone: images to feature maps, made of supported layers.
        blocks: of the backbone (:func:`lrp_core.graph.blocks.identity_blocks`).
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
