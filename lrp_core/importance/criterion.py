"""What a criterion is: how much each filter matters to each image.

All criteria have one signature, so that a comparison of two changes nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.layers import Layer
from lrp_core.graph.signs import rectified

BATCH = 24  # images at a time, where gradients are needed


@dataclass(frozen=True)
class Scores:
    """What a criterion says.

    Attributes:
        filters: by convolution, (N, C), low for filters that should go first; :class:`Contribution` says what each has
            to do with each class, (N, K, C).
        logits: of the network, (N, K).
    """

    filters: dict[str, torch.Tensor]
    logits: torch.Tensor


Criterion = Callable[[nn.Module, torch.Tensor, torch.Tensor], Scores]


def activation_ends(layers: list[Layer]) -> dict[str, str]:
    """Return the convolutions by the layer whose output counts as theirs: an activation right behind, or themselves."""
    followed = rectified(layers)
    behind = {layer.inputs[0]: layer.name for layer in layers if layer.inputs[0] in followed}
    convolutions = [layer.name for layer in layers if isinstance(layer.module, nn.Conv2d)]
    return {behind.get(name, name): name for name in convolutions}


def _loss(logits: torch.Tensor, targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    return F.cross_entropy(logits[:, :n_classes], targets, reduction="sum")


def _in_batches(
    score: Callable[[torch.Tensor, torch.Tensor], Scores],
    device: torch.device,
    images: torch.Tensor,
    targets: torch.Tensor,
) -> Scores:
    """Score the images batch by batch on the network's device; the scores come back to the images'."""
    parts = []
    for i in range(0, len(images), BATCH):
        part = score(images[i : i + BATCH].to(device), targets[i : i + BATCH].to(device))
        filters = {name: values.to(images.device) for name, values in part.filters.items()}
        parts.append(Scores(filters, part.logits.to(images.device)))
    filters = {name: torch.cat([part.filters[name] for part in parts]) for name in parts[0].filters}
    return Scores(filters, torch.cat([part.logits for part in parts]))
