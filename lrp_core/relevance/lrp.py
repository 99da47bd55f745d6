"""Layer-wise Relevance Propagation (LRP): how much each filter of a network contributes to a class.

One pass forward keeps what the rules will read. One pass backward carries relevance from the logit to the filters, and
to the pixels if asked. Rules for convolutions and dense layers are in :mod:`lrp_core.relevance.rules`. Of the other
layers,

- activations, scales by channel and normalisations pass relevance on (the pass rule). Normalisations over channels are
  the affine map that they are at this input, mean and standard deviation held constant (the identity rule of Achtibat
  et al., AttnLRP, ICML 2024), as batch normalisations are in a network that predicts. To hold the deviation alone
  constant (Ali et al., XAI for Transformers, ICML 2022) divides by values near the mean: relevance has no bound then;
- max pooling gives all to the winner;
- sums, average pooling and convolutions along the channels share by contribution (the norm rule);
- a product gives all to the signal, nothing to its gate (:mod:`lrp_core.relevance.products`);
- what moves values moves their relevance back.
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
from lrp_core.graph.tracing import trace
from lrp_core.relevance import composites, products, rules
from lrp_core.relevance.linear_map import LinearMap
from lrp_core.utils.devices import device_of

_PASSING = (*ACTIVATIONS, ChannelAffine, ChannelScale, ChannelNorm, nn.GroupNorm)
_MOVING = (*REARRANGED, *PADDING, Subsample)
_NO_VALUES = (*_PASSING, *_MOVING, nn.Flatten, Concat, Product)  # their way back reads shapes at most


def _winner_takes_all(layer: nn.Module, a: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Send the relevance of a maximum to where it came from."""
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        return torch.autograd.grad(layer(a), a, relevance)[0]


def _moved_back(layer: nn.Module, shape: torch.Size, relevance: torch.Tensor) -> torch.Tensor:
    """Move relevance to where the values came from; that of values that were copied adds up."""
    with torch.enable_grad():
        a = relevance.new_zeros(()).expand(shape).requires_grad_()
        return torch.autograd.grad(layer(a), a, relevance)[0]


def _norm(layer: nn.Module, inputs: list[torch.Tensor], relevance: torch.Tensor) -> list[torch.Tensor]:
    """Share the relevance of a sum or an average in proportion to each input's part in it."""
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
    """What one backward pass of relevance gives.

    Attributes:
        filters: by convolution, the relevance of its output channels, summed over positions, (N, C); 0 where it does
            nothing but make a gate.
        totals: by convolution, the sum of all relevance at its output, (N,); in a chain of layers equal to
            ``initial`` where nothing is lost.
        initial: the relevance at the target output that was propagated, (N,).
        logits: the network's output, before a softmax at its end, (N, K).
        pixels: relevance at the input, (N, 3, H, W), if asked for.
    """

    filters: dict[str, torch.Tensor] = field(default_factory=dict)
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    initial: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pixels: torch.Tensor | None = None

    def conservation_gap(self) -> dict[str, float]:
        """By convolution, the mean over samples of |total - initial| / |initial|: 0 where nothing was lost.

        In a network with branches the gap is that part of the relevance which takes another way.
        """
        gaps = {name: (total - self.initial).abs() / self.initial.abs() for name, total in self.totals.items()}
        return {name: gap.mean().item() for name, gap in gaps.items()}


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
    """Propagate relevance from each sample's target class to every convolution's output, and to the pixels if asked.

    The initial relevance is one-hot at the target (1, whatever the logit). The network is explained as it predicts:
    batch normalisation with its running statistics, folded into the convolution before it; no dropout. Where it ends in
    a softmax, the logit before that is explained.

    Args:
        model: a classifier made of supported layers, images (N, C, H, W) to logits (N, K); left as it is.
        images: (N, C, H, W), in the dtype of the model's parameters; results come back to their device.
        targets: the class to explain, by sample, (N,), int64.
        composite: which rule goes to which layer: a name, or a rule for each depth
            (:func:`lrp_core.relevance.composites.composite`).
        absolute: sum |R| over positions instead of R.
        pixels: also go through the first convolution, to the input.
        box: least and greatest normalised pixel, numbers or (C,), for composites that end with the z-box rule.
        batch_size: samples at a time; bounds the memory.

    Raises:
        ValueError: an unknown composite, an unsupported layer, or targets that do not fit the model's output.
    """
    if len(images) != len(targets) or len(images) == 0:
        raise ValueError(
            f"{len(images)} images with {len(targets)} targets: give one target to each of 1 or more images"
        )
    device = device_of(model)
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
    """A network made ready: traced, folded, its rules assigned, the parts of its weights made when first needed."""

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
        # Relevance goes on to a layer only if a convolution or the pixels are there or behind it.
        self.wanted = {INPUT} if pixels else set()
        for layer in self.layers:
            if isinstance(layer.module, nn.Conv2d) or self.wanted.intersection(layer.inputs):
                self.wanted.add(layer.name)

        self.kept = {name for layer in self.layers for name in self._reads(layer)}

    def _reads(self, layer: Layer) -> list[str]:
        """Name the values that this layer's way back reads."""
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
                if isinstance(layer.module, nn.Conv2d):  # of a gate
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
        """Return the relevance of each of the layer's inputs; None for one that takes none."""
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
        if isinstance(module, (Sum, nn.AvgPool2d, nn.AdaptiveAvgPool2d, ChannelConv)):  # SquarePool is an AvgPool2d
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
    """Return the relevance of every filter to every sample's target class.

    Relevance is taken at a convolution's output, after the batch normalisation that follows it, and summed over
    positions. Arguments and errors as in :func:`explain`.

    Returns:
        By convolution, in the order of the network's layers from the output back, a tensor (N, C_layer).
    """
    return explain(model, images, targets, composite, absolute=absolute, batch_size=batch_size).filters
