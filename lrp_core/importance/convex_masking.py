"""Kernelised convex masking: how little the other filters of a layer can represent a filter."""

import torch
from torch import nn

from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT, Layer
from lrp_core.importance.criterion import Scores, activation_ends, in_batches, logit_layers
from lrp_core.utils.devices import device_of


def representative(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Mean |activation| times the filter's own coefficient by :func:`convex_masking`; without labels or gradients.

    Activations are divided by their mean over the layer, and batch normalisation is folded into the weights.

    Source: Nova, Dai and Schuurmans, Gradient-Free Structured Pruning with Unlabeled Data, ICML 2023 (arXiv
    2303.04185): kernelised convex masking. We had its abstract and summaries by others, not its text. The kernel's
    width, the scaling of the activations, and the step from dense layers to convolutions are our reading.
    """
    layers = logit_layers(model)
    ends = activation_ends(layers)

    def score(images: torch.Tensor, _: torch.Tensor) -> Scores:
        filters = {}

        def keep(layer: Layer, live: dict[str, torch.Tensor]) -> None:
            filters.update({ends[name]: live[name].abs().mean(dim=(2, 3)) for name in layer.inputs if name in ends})

        return Scores(filters, run(layers, {INPUT: images}, keep))

    with torch.no_grad():
        scores = in_batches(score, device_of(model), images, targets)
        weights = {
            layer.name: layer.module.weight.detach().to(images.device).flatten(1)
            for layer in layers
            if layer.name in scores.filters
        }
        own = {name: convex_masking(weight) for name, weight in weights.items()}
    filters = {name: a / (a.mean() or 1.0) * own[name] for name, a in scores.filters.items()}
    return Scores(filters, scores.logits)


MAX_UPDATES = 1000  # of the coefficients; layers of 7 to 2048 filters take 1 to 40 at the tolerance of 0.01


def convex_masking(filters: torch.Tensor, tolerance: float = 0.01) -> torch.Tensor:
    """Return how much each filter contributes to its own representation by all filters, (C,), within 0..1.

    The coefficients M >= 0 approximate each filter by all: phi(F) ~ phi(F) M, with phi the feature map of a Gaussian
    kernel K. The kernel's width is the root of the filters' mean squared distance. All coefficients start equal and are
    updated by the multiplicative rule M <- M * sqrt(K / (K M)). Updates stop when they change M by less than
    ``tolerance`` of its sum, or after :data:`MAX_UPDATES`; no update makes the approximation worse. The diagonal is
    returned: it is small for a filter that others represent well.

    Args:
        filters: (C, D).
        tolerance: see above.
    """
    squared = torch.cdist(filters, filters).square()
    kernel = torch.exp(-squared / (squared.mean() or 1.0))
    coefficients = torch.full_like(kernel, 1 / len(filters))
    for _ in range(MAX_UPDATES):
        before = coefficients
        coefficients = before * (kernel / (kernel @ before)).sqrt()
        if (coefficients - before).abs().sum() < tolerance * before.sum():
            break
    return coefficients.diagonal()
