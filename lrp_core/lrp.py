"""Layer-wise Relevance Propagation (LRP): how much each filter of a network contributes to a class.

A rule redistributes the relevance R_k of a layer's outputs to its inputs, R_j = a_j * sum_k (dz_k / da_j) R_k / z_k,
and rules differ only in the linear map z(a) that stands for the layer. Each rule below is that map; automatic
differentiation of one layer does the rest. Biases take no relevance and stay out of z, so that relevance is conserved.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.errors import check_choice
from lrp_core.graph import INPUT, Layer, run, trace

EPSILON = 1e-6  # keeps a denominator from 0; small beside any pre-activation that carries relevance


def _linear(layer: nn.Module, weight: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Apply the layer with other weights and no bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(a, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(a, weight)


def epsilon(layer: nn.Module, a: torch.Tensor) -> torch.Tensor:
    """Epsilon rule (Bach et al. 2015, eq. 58): every contribution a_j w_jk."""
    return _linear(layer, layer.weight, a)


def zplus(layer: nn.Module, a: torch.Tensor) -> torch.Tensor:
    """z+ rule (Montavon et al. 2017, sec. 4): positive contributions only.

    The paper states it for a >= 0, as behind a ReLU. Negative inputs (pixels) contribute through negative weights.
    """
    if bool((a < 0).any()):
        negative = _linear(layer, layer.weight.clamp(max=0), a.clamp(max=0))
        return _linear(layer, layer.weight.clamp(min=0), a.clamp(min=0)) + negative
    return _linear(layer, layer.weight.clamp(min=0), a)


def norm(layer: nn.Module, a: torch.Tensor) -> torch.Tensor:
    """Average pooling, linear as it is: inputs share in proportion to their part of the average."""
    return layer(a)


Rule = Callable[[nn.Module, torch.Tensor], torch.Tensor]
COMPOSITES: dict[str, dict[type[nn.Module], Rule]] = {
    "epsilon-zplus": {nn.Linear: epsilon, nn.Conv2d: zplus},
}
_POOLING: dict[type[nn.Module], Rule] = {nn.AvgPool2d: norm, nn.AdaptiveAvgPool2d: norm}


def _gradient(layer: nn.Module, a: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Max pooling (winner takes all) and flattening: relevance goes where the value came from."""
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        return torch.autograd.grad(layer(a), a, relevance)[0]


def _redistribute(rule: Rule, layer: nn.Module, a: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        z = rule(layer, a)
        denominator = torch.copysign(torch.tensor(EPSILON, dtype=z.dtype), z.detach()).add_(z.detach())
        share = relevance / denominator
        return a.detach() * torch.autograd.grad(z, a, share)[0]


def _backward(
    rules: dict[type[nn.Module], Rule], layer: Layer, a: torch.Tensor, relevance: torch.Tensor
) -> torch.Tensor:
    kind = type(layer.module)
    if kind in (nn.ReLU, nn.Identity):
        return relevance
    if kind in (nn.MaxPool2d, nn.Flatten):
        return _gradient(layer.module, a, relevance)
    return _redistribute(rules[kind], layer.module, a, relevance)


@dataclass
class Explanation:
    """What one backward pass of relevance gives.

    Attributes:
        filters: by convolution, the relevance of its output channels, summed over positions, (N, C).
        totals: by convolution, the sum of all relevance at its output, (N,); equal to ``initial`` where conserved.
        initial: the relevance at the target output that was propagated, (N,).
        logits: the network's output, (N, K).
        pixels: relevance at the input, (N, 3, H, W), if asked for.
    """

    filters: dict[str, torch.Tensor] = field(default_factory=dict)
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    initial: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pixels: torch.Tensor | None = None

    def conservation_gap(self) -> dict[str, float]:
        """By convolution, the mean over samples of |total - initial| / |initial|: 0 where nothing was lost."""
        gaps = {name: (total - self.initial).abs() / self.initial.abs() for name, total in self.totals.items()}
        return {name: gap.mean().item() for name, gap in gaps.items()}


def explain(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    composite: str = "epsilon-zplus",
    *,
    absolute: bool = False,
    pixels: bool = False,
    batch_size: int = 24,
) -> Explanation:
    """Propagate relevance from each sample's target class to every convolution's output, and to the pixels if asked.

    The initial relevance is one-hot at the target (1, whatever the logit). Max pooling gives all to the winner,
    average pooling shares by contribution, ReLU and dropout pass relevance on.

    Args:
        model: a classifier made of supported layers, images (N, C, H, W) to logits (N, K); left as it is.
        images: (N, C, H, W), in the dtype of the model's parameters.
        targets: the class to explain, by sample, (N,), int64.
        composite: which rule goes to which layer; ``"epsilon-zplus"`` (epsilon in dense layers, z+ in convolutions).
        absolute: sum |R| over positions instead of R.
        pixels: also go through the first convolution, to the input.
        batch_size: samples at a time; bounds the memory.

    Raises:
        ValueError: an unknown composite, an unsupported layer, or targets that do not fit the model's output.
    """
    rules = COMPOSITES[check_choice("composite", composite, COMPOSITES)] | _POOLING
    layers = trace(model)
    if len(images) != len(targets) or len(images) == 0:
        raise ValueError(
            f"{len(images)} images with {len(targets)} targets: give one target to each of 1 or more images"
        )
    parts = [
        _explain_batch(layers, rules, images[i : i + batch_size], targets[i : i + batch_size], absolute, pixels)
        for i in range(0, len(images), batch_size)
    ]
    return Explanation(
        filters={name: torch.cat([part.filters[name] for part in parts]) for name in parts[0].filters},
        totals={name: torch.cat([part.totals[name] for part in parts]) for name in parts[0].totals},
        initial=torch.cat([part.initial for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
        pixels=torch.cat([part.pixels for part in parts]) if pixels else None,
    )


def _explain_batch(layers, rules, images, targets, absolute, pixels) -> Explanation:
    read: dict[str, torch.Tensor] = {}  # by layer, what it read
    with torch.no_grad():
        logits = run(layers, {INPUT: images}, lambda layer, live: read.update({layer.name: live[layer.inputs[0]]}))
        if targets.min() < 0 or targets.max() >= logits.shape[1]:
            raise ValueError(f"targets must lie in 0..{logits.shape[1] - 1}, got {targets.min()}..{targets.max()}")
        start = F.one_hot(targets, logits.shape[1]).to(logits)
        result = Explanation(logits=logits, initial=start.sum(dim=1))
        arrived = {layers[-1].name: start}
        first = next(i for i, layer in enumerate(layers) if isinstance(layer.module, nn.Conv2d))
        for i in range(len(layers) - 1, -1 if pixels else first - 1, -1):
            layer = layers[i]
            relevance = arrived.pop(layer.name)
            if isinstance(layer.module, nn.Conv2d):
                result.filters[layer.name] = (relevance.abs() if absolute else relevance).sum(dim=(2, 3))
                result.totals[layer.name] = relevance.sum(dim=(1, 2, 3))
            if pixels or i > first:
                (source,) = layer.inputs
                passed = _backward(rules, layer, read.pop(layer.name), relevance)
                arrived[source] = arrived[source] + passed if source in arrived else passed
        result.pixels = arrived.get(INPUT)
    return result


def filter_relevance(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    composite: str = "epsilon-zplus",
    *,
    absolute: bool = False,
    batch_size: int = 24,
) -> dict[str, torch.Tensor]:
    """Return the relevance of every filter to every sample's target class.

    Relevance is taken at a convolution's output and summed over positions. Arguments and errors as in :func:`explain`.

    Returns:
        By convolution, in the order of the network's layers from the output back, a tensor (N, C_layer).
    """
    return explain(model, images, targets, composite, absolute=absolute, batch_size=batch_size).filters
