"""SInGE: integrated gradients of the loss along the way to a layer without its filters."""

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
    """|Change of the loss on the way to a layer without its filters|, shared out among them.

    The activations of one layer at a time are scaled from 1 down to 0, and each filter gets the integral of the
    loss's gradient times its activation along that path. The shares of a layer's filters, with their signs, sum to the
    change of the loss when all of them are removed. One layer after the other, so that it takes as many passes as there
    are layers, times the nodes of the integral.

    Source: Yvinec et al., SInGE: Sparsity via Integrated Gradients Estimation of Neuron Relevance, NeurIPS 2022 (arXiv
    2207.04089). That the path scales activations, and the Gauss-Legendre nodes on it, are our reading.

    Attributes:
        n_classes: the loss is the cross-entropy of the first so many outputs; other heads stand behind them.
        nodes: of the Gauss-Legendre rule.
    """

    n_classes: int
    nodes: int = 3

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Go forward once, then from each convolution to the end and back, once for each node."""
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
