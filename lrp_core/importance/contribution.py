"""What a filter contributes to the logit of each class."""

import torch
from torch import nn

from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT, Layer
from lrp_core.graph.tracing import trace
from lrp_core.importance.criterion import Scores, activation_ends, in_batches
from lrp_core.utils.devices import device_of


class Contribution:
    """What a filter contributes to the logit of each class that has images: activation times gradient, summed.

    To first order this is what the logit loses with the filter. In a network of convolutions, ReLU and pooling it is
    the relevance of the filter to that logit by the rule LRP-0 (Montavon et al., Layer-Wise Relevance Propagation: An
    Overview, 2019, sec. 10.2.1).
    """

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Go forward once, and back once for each class; labels tell only which classes there are."""
        layers, classes = fold_batchnorm(trace(model)), targets.unique().tolist()
        ends = activation_ends(layers)

        def score(images: torch.Tensor, _: torch.Tensor) -> Scores:
            kept: dict[str, torch.Tensor] = {}

            def keep(layer: Layer, live: dict[str, torch.Tensor]) -> None:
                kept.update({name: live[name] for name in layer.inputs if name in ends})

            by_class = []
            with torch.enable_grad():
                logits = run(layers, {INPUT: images.requires_grad_()}, keep)
                activations = [kept[end] for end in ends]
                for label in classes:
                    gradients = torch.autograd.grad(logits[:, label].sum(), activations, retain_graph=True)
                    pairs = zip(activations, gradients, strict=True)
                    by_class.append([(a.detach() * gradient).sum(dim=(2, 3)) for a, gradient in pairs])
            stacked = (torch.stack(parts, dim=1) for parts in zip(*by_class, strict=True))
            return Scores(dict(zip(ends.values(), stacked, strict=True)), logits.detach())

        return in_batches(score, device_of(model), images, targets)
