"""Criteria that are functions of activations and gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT, Layer
from lrp_core.importance.criterion import Scores, activation_ends, in_batches, logit_layers, loss
from lrp_core.utils.devices import device_of


@dataclass(frozen=True)
class ByActivation:
    """A criterion that is a function of a filter's activations and of the loss's gradient there.

    Activations are taken after the batch normalisation and the activation function that follow a convolution.

    Attributes:
        score: activations and gradients, (N, C, H, W) each, to scores, (N, C).
        n_classes: the loss is the cross-entropy of the first n_classes outputs; those of other heads follow.
    """

    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    n_classes: int

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Run one forward and one backward pass."""
        layers = logit_layers(model)
        ends = activation_ends(layers)

        def score(images: torch.Tensor, targets: torch.Tensor) -> Scores:
            kept: dict[str, torch.Tensor] = {}

            def keep(layer: Layer, live: dict[str, torch.Tensor]) -> None:
                kept.update({name: live[name] for name in layer.inputs if name in ends})

            with torch.enable_grad():  # with respect to the images: the network's parameters need no gradients
                logits = run(layers, {INPUT: images.requires_grad_()}, keep)
                gradients = torch.autograd.grad(loss(logits, targets, self.n_classes), [kept[end] for end in ends])
            scores = (self.score(kept[end].detach(), gradient) for end, gradient in zip(ends, gradients, strict=True))
            return Scores(dict(zip(ends.values(), scores, strict=True)), logits.detach())

        return in_batches(score, device_of(model), images, targets)


def mean_activation(a: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Mean |activation| (Molchanov et al., ICLR 2017, sec. 2.2)."""
    return a.abs().mean(dim=(2, 3))


def summed_gradient(a: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Sum of |gradient of the loss|."""
    return gradient.abs().sum(dim=(2, 3))


def taylor(a: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """|Change of the loss without the filter| to first order (Molchanov et al., ICLR 2017, eq. 7)."""
    return (a * gradient).sum(dim=(2, 3)).abs()


BY_ACTIVATION = {"activation": mean_activation, "gradient": summed_gradient, "taylor": taylor}
