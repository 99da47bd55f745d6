"""Layer-wise Relevance Propagation (LRP): how much each filter of a network contributes to a class.

A forward pass stores the values that the rules need. A backward pass carries relevance from the logit to the filters,
and to the pixels if requested. Rules for convolutions and dense layers are in :mod:`lrp_core.relevance.rules`. For the
other layers:

- Activations, scaling by channel and normalisations pass relevance on (the pass rule). Mean and standard deviation of a
  normalisation over channels count as constants (the identity rule of Achtibat et al., AttnLRP, ICML 2024), as those of
  a batch normalisation in eval mode. Keeping only the deviation constant (Ali et al., XAI for Transformers, ICML 2022)
  divides by values near the mean, so that relevance would be unbounded.
- Max pooling gives all relevance to the largest input.
- Sums, average pooling and convolutions along the channels distribute it by contribution (the norm rule).
- A product gives all of it to the signal and none to its gate (:mod:`lrp_core.relevance.products`).
- Layers that move values move the relevance back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.batchnorm import ChannelAffine, fold_batchnorm
from lrp_core.graph.execution import run
from lrp_core.graph.layers import (
    ACTIVATIONS,
    INPUT,
    PADDING,
    REARRANGED,
    RESIZING,
    WEIGHTED,
    ChannelConv,
    ChannelNorm,
    ChannelScale,
    Concat,
    Layer,
    Product,
    Subsample,
    Sum,
)
from lrp_core.graph.outputs import up_to_logits
from lrp_core.graph.signs import nonnegative, rectified
from lrp_core.graph.tracing import check_trace, trace
from lrp_core.relevance import composites, products, rules
from lrp_core.relevance.linear_map import LinearMap
from lrp_core.utils.devices import device_of

_PASSING = (*ACTIVATIONS, ChannelAffine, ChannelScale, ChannelNorm, nn.GroupNorm)
_MOVING = (*REARRANGED, *PADDING, Subsample)
_AVERAGING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, *RESIZING)  # SquarePool is an AvgPool2d
_NO_VALUES = (*_PASSING, *_MOVING, nn.Flatten, Concat, Product)  # their backward pass needs shapes at most


def _winner_takes_all(layer: nn.Module, a: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Send the relevance of a maximum back to where it came from."""
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        return torch.autograd.grad(layer(a), a, relevance)[0]


def _moved_back(layer: nn.Module, shape: torch.Size, relevance: torch.Tensor) -> torch.Tensor:
    """Move relevance back to where the values came from; relevance of copied values adds up."""
    with torch.enable_grad():
        a = relevance.new_zeros(()).expand(shape).requires_grad_()
        return torch.autograd.grad(layer(a), a, relevance)[0]


def _norm(layer: nn.Module, inputs: list[torch.Tensor], relevance: torch.Tensor) -> list[torch.Tensor]:
    """Distribute the relevance of a sum or an average in proportion to each input's share of it."""
    with torch.enable_grad():
        inputs = [a.detach().requires_grad_() for a in inputs]
        z = layer(*inputs)
        bias = getattr(layer, "bias", None)
        share = rules.share(relevance, z.detach() if bias is None else z.detach() - bias)
        return [
            a.detach() * gradient for a, gradient in zip(inputs, torch.autograd.grad(z, inputs, share), strict=True)
        ]


@dataclass
class Explanation:
    """The result of one backward pass of relevance.

    Attributes:
        filters: by convolution, the relevance of its output channels, summed over positions, (N, C); 0 if the
            convolution feeds only a gate.
        totals: by convolution, the sum of all relevance at its output, (N,); in a chain of layers it equals
            ``initial`` if nothing is lost.
        initial: the relevance at the target output, where propagation starts, (N,).
        logits: the network's output, before a softmax at its end, (N, K).
        pixels: relevance at the input, (N, 3, H, W), if requested.
    """

    filters: dict[str, torch.Tensor] = field(default_factory=dict)
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    initial: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pixels: torch.Tensor | None = None

    def conservation_gap(self) -> dict[str, float]:
        """Return, by convolution, the mean over samples of |total - initial| / |initial|: 0 if nothing was lost.

        In a network with branches, the gap of a branch is the share of the relevance that takes another branch.
        """
        gaps = {name: (total - self.initial).abs() / self.initial.abs() for name, total in self.totals.items()}
        return {name: gap.mean().item() for name, gap in gaps.items()}


@torch.inference_mode(False)  # relevance is computed by gradients, whatever the caller's mode
def explain(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    composite: str | Mapping[str, str | rules.Rule] | composites.Composite = "epsilon-zplus",
    *,
    absolute: bool = False,
    pixels: bool = False,
    box: rules.Box | None = None,
    batch_size: int = 24,
) -> Explanation:
    """Propagate relevance from each sample's target class to every convolution, and optionally to the pixels.

    Relevance starts as 1 at the target class, whatever the logit. The network is explained in eval mode: batch
    normalisation uses its running statistics and is folded into the convolution before it, and dropout is off. If the
    network ends in a softmax, relevance starts at the logit before it.

    Args:
        model: a classifier made of supported layers, from images (N, C, H, W) to logits (N, K); not changed.
        images: (N, C, H, W), in the dtype of the model's parameters; results are on the images' device.
        targets: the class to explain for each sample, (N,), integers.
        composite: the rule of each layer: a name, or a rule for each depth
            (:func:`lrp_core.relevance.composites.composite`).
        absolute: sum |R| over positions instead of R.
        pixels: also propagate through the first convolution, to the input.
        box: smallest and largest normalised pixel, numbers or (C,), as the first convolution reads them, for composites
            that end with the z-box rule.
        batch_size: samples per batch; limits the memory.

    Raises:
        ValueError: an unknown composite, an unsupported layer, or targets that do not fit the model's output.
    """
    if len(images) != len(targets) or len(images) == 0:
        raise ValueError(
            f"{len(images)} images with {len(targets)} targets: give one target to each of 1 or more images"
        )
    if targets.dtype.is_floating_point or targets.dim() != 1:
        raise ValueError(f"targets must be classes, integers (N,); got {targets.dtype} {tuple(targets.shape)}")
    check_trace(model, images[:1])
    device, targets = device_of(model), targets.long()
    with torch.no_grad():
        propagation = _Propagation(model, composites.composite(composite, box), absolute, pixels)
        parts = [
            propagation(images[i : i + batch_size].to(device), targets[i : i + batch_size].to(device))
            for i in range(0, len(images), batch_size)
        ]

    def joined(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.to(images.device) for tensor in tensors])

    return Explanation(
        filters={name: joined(part.filters[name] for part in parts) for name in parts[0].filters},
        totals={name: joined(part.totals[name] for part in parts) for name in parts[0].totals},
        initial=joined(part.initial for part in parts),
        logits=joined(part.logits for part in parts),
        pixels=joined(part.pixels for part in parts) if pixels else None,
    )


class _Propagation:
    """A prepared network: traced, batch normalisation folded, rules assigned."""

    def __init__(self, model: nn.Module, composite: composites.Composite, absolute: bool, pixels: bool):
        self.layers = fold_batchnorm(up_to_logits(trace(model)))
        self.absolute, self.pixels = absolute, pixels
        weighted = {layer.name: layer.module for layer in self.layers if isinstance(layer.module, WEIGHTED)}
        self.rules = composite.assign(weighted)
        unsigned, followed = nonnegative(self.layers), rectified(self.layers)
        self.maps = {
            layer.name: LinearMap(layer.module, layer.inputs[0] not in unsigned, layer.name in followed)
            for layer in self.layers
            if layer.name in weighted
        }
        self.sigmoids = products.sigmoids(self.layers)
        # Relevance is propagated to a layer only if a convolution or the pixels are there or before it.
        self.wanted = {INPUT} if pixels else set()
        for layer in self.layers:
            if isinstance(layer.module, nn.Conv2d) or self.wanted.intersection(layer.inputs):
                self.wanted.add(layer.name)

        self.kept = {name for layer in self.layers for name in self._reads(layer)}

    def _reads(self, layer: Layer) -> list[str]:
        """Name the values that the backward pass of this layer needs."""
        if self.wanted.isdisjoint(layer.inputs) or isinstance(layer.module, _NO_VALUES):
            return []
        if layer.name in self.maps and self.rules[layer.name].uses_output:
            return [*layer.inputs, layer.name]
        return list(layer.inputs)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> Explanation:
        kept, shapes = {}, {}

        def keep(layer: Layer, live: dict[str, torch.Tensor]) -> None:
            for name in layer.inputs:
                shapes[name] = live[name].shape
                if name in self.kept:
                    kept[name] = live[name]

        logits = run(self.layers, {INPUT: images}, keep)
        kept[self.layers[-1].name] = logits
        n_classes = logits.shape[1]
        if targets.min() < 0 or targets.max() >= n_classes:
            raise ValueError(f"targets must lie in 0..{n_classes - 1}, got {targets.min()}..{targets.max()}")
        start = F.one_hot(targets, n_classes).to(logits)
        result = Explanation(logits=logits, initial=start.sum(dim=1))
        arrived = {self.layers[-1].name: start}
        for layer in reversed(self.layers):
            relevance = arrived.pop(layer.name, None)
            if relevance is None:
                if isinstance(layer.module, nn.Conv2d):  # feeds only a gate
                    result.filters[layer.name] = logits.new_zeros(len(logits), layer.module.out_channels)
                    result.totals[layer.name] = logits.new_zeros(len(logits))
                continue
            if isinstance(layer.module, nn.Conv2d):
                by_filter = relevance.sum(dim=(2, 3))
                result.filters[layer.name] = relevance.abs().sum(dim=(2, 3)) if self.absolute else by_filter
                result.totals[layer.name] = by_filter.sum(dim=1)
            if self.wanted.intersection(layer.inputs):
                passed = self._backward(layer, kept, shapes, relevance)
                for source, share in zip(layer.inputs, passed, strict=True):
                    if source in self.wanted and share is not None:
                        arrived[source] = arrived[source] + share if source in arrived else share
            kept.pop(layer.name, None)
        result.pixels = arrived.get(INPUT)
        return result

    def _backward(
        self, layer: Layer, kept: dict, shapes: dict, relevance: torch.Tensor
    ) -> Sequence[torch.Tensor | None]:
        """Return the relevance of each of the layer's inputs; None for an input that gets none."""
        module, inputs = layer.module, [kept.get(name) for name in layer.inputs]
        if layer.name in self.maps:
            output = kept.get(layer.name)
            return [self.rules[layer.name](self.maps[layer.name], inputs[0], output, relevance)]
        if isinstance(module, _PASSING):
            return [relevance]
        if isinstance(module, nn.Flatten):
            return [relevance.reshape(shapes[layer.inputs[0]])]
        if isinstance(module, Concat):
            return relevance.split([shapes[name][1] for name in layer.inputs], dim=1)
        if isinstance(module, _MOVING):
            return [_moved_back(module, shapes[layer.inputs[0]], relevance)]
        if isinstance(module, Product):
            gates = [name in self.sigmoids for name in layer.inputs]
            return products.shared(relevance, [shapes[name] for name in layer.inputs], gates)
        if isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d):
            return [_winner_takes_all(module, inputs[0], relevance)]
        if isinstance(module, (Sum, *_AVERAGING, ChannelConv)):
            return _norm(module, inputs, relevance)
        raise AssertionError(f"no rule for {type(module).__name__}")  # graph.layers.SUPPORTED and this list differ


def filter_relevance(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    composite: str | Mapping[str, str | rules.Rule] | composites.Composite = "epsilon-zplus",
    *,
    absolute: bool = False,
    batch_size: int = 24,
) -> dict[str, torch.Tensor]:
    """Return the relevance of every filter for every sample's target class.

    Relevance is taken at a convolution's output, after any batch normalisation that follows, and summed over positions.
    Arguments and errors are as in :func:`explain`.

    Returns:
        By convolution, in the order of the network's layers from the output back, a tensor (N, C_layer).
    """
    return explain(model, images, targets, composite, absolute=absolute, batch_size=batch_size).filters
