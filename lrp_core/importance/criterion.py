"""Definition of a criterion, which scores each filter for each image, and code that several criteria share.

All criteria have the same signature, so that comparing two of them changes nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.layers import Layer
from lrp_core.graph.outputs import up_to_logits
from lrp_core.graph.signs import activated
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import predict

BATCH = 24  # images at a time, where gradients are needed


@dataclass(frozen=True)
class Scores:
    """The result of a criterion.

    Attributes:
        filters: by convolution, (N, C); filters with low scores are removed first.
            :class:`lrp_core.importance.contribution.Contribution` gives one score for each class, (N, K, C).
        logits: of the network, (N, K).
    """

    filters: dict[str, torch.Tensor]
    logits: torch.Tensor


Criterion = Callable[[nn.Module, torch.Tensor, torch.Tensor], Scores]


def activation_ends(layers: list[Layer]) -> dict[str, str]:
    """Return each convolution by the name of the layer whose output counts as the convolution's.

    That layer is an activation right after the convolution, or the convolution itself. Only an activation that maps 0
    to 0 counts: the output of a sigmoid is not 0 for a filter whose output is 0.
    """
    followed = activated(layers)
    behind = {layer.inputs[0]: layer.name for layer in layers if layer.inputs[0] in followed}
    convolutions = [layer.name for layer in layers if isinstance(layer.module, nn.Conv2d)]
    return {behind.get(name, name): name for name in convolutions}


def logit_layers(model: nn.Module) -> list[Layer]:
    """Return a network's layers up to its logits, batch normalisation folded in."""
    return fold_batchnorm(up_to_logits(trace(model)))


def loss(logits: torch.Tensor, targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return the cross-entropy of the first ``n_classes`` logits, summed over images."""
    return F.cross_entropy(logits[:, :n_classes], targets, reduction="sum")


def in_batches(
    score: Callable[[torch.Tensor, torch.Tensor], Scores],
    device: torch.device,
    images: torch.Tensor,
    targets: torch.Tensor,
) -> Scores:
    """Score the images batch by batch on the network's device; the scores are on the images' device."""
    parts = []
    for i in range(0, len(images), BATCH):
        part = score(images[i : i + BATCH].to(device), targets[i : i + BATCH].to(device))
        filters = {name: values.to(images.device) for name, values in part.filters.items()}
        parts.append(Scores(filters, part.logits.to(images.device)))
    filters = {name: torch.cat([part.filters[name] for part in parts]) for name in parts[0].filters}
    return Scores(filters, torch.cat([part.logits for part in parts]))


def same_for_all(model: nn.Module, images: torch.Tensor, score: Callable[[nn.Conv2d], torch.Tensor]) -> Scores:
    """Return scores that depend only on the network, repeated for each image.

    Args:
        model: made of supported layers.
        images: (N, C, H, W).
        score: maps a convolution, with batch normalisation folded in, to the scores of its filters, (C,).
    """
    convolutions = [layer for layer in fold_batchnorm(trace(model)) if isinstance(layer.module, nn.Conv2d)]
    filters = {layer.name: score(layer.module).to(images.device).expand(len(images), -1) for layer in convolutions}
    return Scores(filters, predict(model, images))
