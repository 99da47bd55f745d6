"""SInGE: integrated gradients of the loss as the activations of a layer are scaled to 0."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT, Layer
from lrp_core.importance.criterion import Scores, activation_ends, in_batches, logit_layers, loss
from lrp_core.utils.devices import device_of


@dataclass(frozen=True)
class IntegratedGradients:
    """|Change of the loss as a layer's filters are scaled to 0|, attributed to the filters.

    The activations of one layer at a time are scaled from 1 down to 0. The score of a filter is the absolute integral
    of the loss's gradient times its activation along that path. The signed scores of a layer sum to the change of the
    loss when all its filters are removed. The number of passes is the number of layers times the nodes of the integral.

    Source: Yvinec et al., SInGE: Sparsity via Integrated Gradients Estimation of Neuron Relevance, NeurIPS 2022 (arXiv
    2207.04089). That the path scales activations, and the Gauss-Legendre nodes on it, are our reading.

    Attributes:
        n_classes: the loss is the cross-entropy of the first n_classes outputs; those of other heads follow.
        nodes: of the Gauss-Legendre rule.
    """

    n_classes: int
    nodes: int = 3

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Run one forward pass, then for each convolution and node a pass from there to the end and back."""
        layers = logit_layers(model)
        ends = activation_ends(layers)
        position = {layer.name: i for i, layer in enumerate(layers)}
        points, weights = np.polynomial.legendre.leggauss(self.nodes)
        path = [((1 + point) / 2, weight / 2) for point, weight in zip(points.tolist(), weights.tolist(), strict=True)]

        def score(images: torch.Tensor, targets: torch.Tensor) -> Scores:
            kept: dict[str, dict[str, torch.Tensor]] = {}

            def keep(layer: Layer, live: dict[str, torch.Tensor]) -> None:
                behind = layers[position[layer.name] - 1].name
                if behind in ends:
                    kept[behind] = live

            logits = run(layers, {INPUT: images}, keep)
            filters = {}
            for end, convolution in ends.items():
                full, total = kept[end][end], 0
                for scale, weight in path:
                    scaled = (scale * full).requires_grad_()
                    with torch.enable_grad():
                        logits_there = run(layers[position[end] + 1 :], kept[end] | {end: scaled})
                        (gradient,) = torch.autograd.grad(loss(logits_there, targets, self.n_classes), scaled)
                    total = total + weight * gradient
                filters[convolution] = (full * total).sum(dim=(2, 3)).abs()
            return Scores(filters, logits)

        with torch.no_grad():
            return in_batches(score, device_of(model), images, targets)
