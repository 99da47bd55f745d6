"""Contributions of filters to the logits: of each class, or to random combinations of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.execution import images_at_a_time, run
from lrp_core.graph.layers import INPUT, Layer
from lrp_core.graph.outputs import up_to_logits
from lrp_core.importance.criterion import BATCH, Scores, activation_ends, logit_layers
from lrp_core.utils.devices import device_of

CHUNK = 2**26  # bytes of a chunk's contributions in float64; a chunk has at least one class of one batch


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
    """Contribution of a filter to the centred logit of each class that has images: activation times gradient, summed.

    A centred logit is a logit minus the mean over all classes that have images, because a common offset changes no
    probability. To first order, the centred logit loses this contribution if the filter is removed. In a network of
    convolutions, ReLU and pooling it is the relevance of the filter for that logit by the rule LRP-0
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
        """Run one forward pass and one backward pass per class, and yield the contributions in chunks.

        Args:
            model: made of supported layers.
            images: (N, C, H, W), normalised; the chunks are on their device.
            targets: their classes, (N,); used only to find out which classes there are.
        """
        layers, classes = logit_layers(model), targets.unique()
        ends, device = activation_ends(layers), device_of(model)
        for start in range(0, len(images), BATCH):
            batch, kept = images[start : start + BATCH].to(device), {}

            def keep(layer: Layer, live: dict[str, torch.Tensor], kept: dict[str, torch.Tensor] = kept) -> None:
                kept.update({name: live[name] for name in layer.inputs if name in ends})

            with torch.enable_grad():  # with respect to the images: the network's parameters need no gradients
                logits = run(layers, {INPUT: batch.requires_grad_()}, keep)
                own = logits[:, classes.to(device)]
                centred = (own - own.mean(dim=1, keepdim=True)).unbind(dim=1)
            activations = [kept[end] for end in ends]
            n_numbers = len(batch) * sum(a.shape[1] for a in activations)
            n_classes = max(1, CHUNK // (8 * n_numbers))
            for first in range(0, len(classes), n_classes):
                chosen = slice(first, min(first + n_classes, len(classes)))
                by_class = []
                for logit in centred[chosen]:
                    gradients = torch.autograd.grad(logit, activations, torch.ones_like(logit), retain_graph=True)
                    pairs = zip(activations, gradients, strict=True)
                    by_class.append([(a.detach() * gradient).sum(dim=(2, 3)) for a, gradient in pairs])
                stacked = (torch.stack(parts, dim=1).to(images.device) for parts in zip(*by_class, strict=True))
                filters = dict(zip(ends.values(), stacked, strict=True))
                yield Chunk(slice(start, start + len(batch)), chosen, filters, logits.detach().to(images.device))


def projected_contributions(
    layers: list[Layer], images: torch.Tensor, directions: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the contribution of each filter to combinations of the logits: activation times gradient, summed.

    If the directions have random signs, the mean of a combination's square is the sum of squares over all logits
    (Hutchinson, A Stochastic Estimator of the Trace, 1989). So a few backward passes suffice for any number of classes.

    Args:
        layers: a trace of the network.
        images: (N, C, H, W), normalised; results are on their device.
        directions: R combinations of the K logits for each image, (N, R, K).

    Returns:
        By convolution the contributions, (N, R, C), and the logits, (N, n_outputs), of which the first K are combined.
    """
    device = next((part.device for layer in layers for part in layer.module.parameters()), images.device)
    # For each output value of a layer several are stored: gradients, and the values that they are computed from.
    size, folded, parts, logits = (
        images_at_a_time(layers, images[:1].to(device), copies=3),
        fold_batchnorm(up_to_logits(layers)),
        [],
        [],
    )
    ends = activation_ends(folded)
    for start in range(0, len(images), size):
        batch, kept = images[start : start + size].to(device), {}
        towards = directions[start : start + size].to(batch)

        def keep(layer: Layer, live: dict[str, torch.Tensor], kept: dict[str, torch.Tensor] = kept) -> None:
            kept.update({name: live[name] for name in layer.inputs if name in ends})

        with torch.enable_grad():
            given = run(folded, {INPUT: batch.requires_grad_()}, keep)
            combined = torch.einsum("nk,nrk->rn", given[:, : towards.shape[2]], towards).sum(dim=1).unbind()
        activations, by_direction = [kept[end] for end in ends], []
        for r, combination in enumerate(combined):
            gradients = torch.autograd.grad(combination, activations, retain_graph=r < len(combined) - 1)
            pairs = zip(activations, gradients, strict=True)
            by_direction.append([(a.detach() * gradient).sum(dim=(2, 3)) for a, gradient in pairs])
        parts.append([torch.stack(one, dim=1).to(images.device) for one in zip(*by_direction, strict=True)])
        logits.append(given.detach().to(images.device))
    joined = (torch.cat(one) for one in zip(*parts, strict=True))
    return dict(zip(ends.values(), joined, strict=True)), torch.cat(logits)
