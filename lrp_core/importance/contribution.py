"""What a filter contributes to the logit of each class."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT, Layer
from lrp_core.graph.tracing import trace
from lrp_core.importance.criterion import BATCH, Scores, activation_ends
from lrp_core.utils.devices import device_of

CHUNK = 2**26  # bytes that the contributions of a chunk take in float64, but for one class of one batch at the least


@dataclass(frozen=True)
class Chunk:
    """Contributions to the logits of some images and classes.

    Attributes:
        images: which of the images.
        classes: which of the classes that have images.
        filters: by convolution, (images, classes, C).
        logits: of the network for these images, (images, n_outputs).
    """

    images: slice
    classes: slice
    filters: dict[str, torch.Tensor]
    logits: torch.Tensor


class Contribution:
    """What a filter contributes to the centred logit of each class that has images: activation times gradient, summed.

    A centred logit is a logit less the mean of those of all classes that have images: what all logits of an image share
    changes no class's probability. To first order the contribution is what the centred logit loses with the filter.
    In a network of convolutions, ReLU and pooling it is the relevance of the filter to that logit by the rule LRP-0
    (Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019, sec. 10.2.1).
    """

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Return all contributions at once, by convolution (N, K, C); :meth:`chunks` takes less memory."""
        by_image: dict[int, list[Chunk]] = {}
        for chunk in self.chunks(model, images, targets):
            by_image.setdefault(chunk.images.start, []).append(chunk)
        parts = list(by_image.values())
        filters = {
            name: torch.cat([torch.cat([chunk.filters[name] for chunk in part], dim=1) for part in parts])
            for name in parts[0][0].filters
        }
        return Scores(filters, torch.cat([part[0].logits for part in parts]))

    def chunks(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Iterator[Chunk]:
        """Go forward once, and back once for each class, and yield the contributions a chunk at a time.

        Args:
            model: made of supported layers.
            images: (N, C, H, W), normalised; the chunks come to where they are.
            targets: their classes, (N,), which tell only which classes there are.
        """
        layers, classes = fold_batchnorm(trace(model)), targets.unique()
        ends, device = activation_ends(layers), device_of(model)
        for start in range(0, len(images), BATCH):
            batch, kept = images[start : start + BATCH].to(device), {}

            def keep(layer: Layer, live: dict[str, torch.Tensor], kept: dict[str, torch.Tensor] = kept) -> None:
                kept.update({name: live[name] for name in layer.inputs if name in ends})

            with torch.enable_grad():  # from the images on: the network's parameters ask for none
                logits = run(layers, {INPUT: batch.requires_grad_()}, keep)
                own = logits[:, classes.to(device)]
                centred = own - own.mean(dim=1, keepdim=True)
            activations = [kept[end] for end in ends]
            n_numbers = len(batch) * sum(a.shape[1] for a in activations)
            n_classes = max(1, CHUNK // (8 * n_numbers))
            for first in range(0, len(classes), n_classes):
                chosen = slice(first, min(first + n_classes, len(classes)))
                by_class = []
                for logit in centred.T[chosen]:
                    gradients = torch.autograd.grad(logit.sum(), activations, retain_graph=True)
                    pairs = zip(activations, gradients, strict=True)
                    by_class.append([(a.detach() * gradient).sum(dim=(2, 3)) for a, gradient in pairs])
                stacked = (torch.stack(parts, dim=1).to(images.device) for parts in zip(*by_class, strict=True))
                filters = dict(zip(ends.values(), stacked, strict=True))
                yield Chunk(slice(start, start + len(batch)), chosen, filters, logits.detach().to(images.device))
