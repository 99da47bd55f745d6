"""Criteria: how much each filter matters to each image, by LRP and by what others use in its place.

All have one signature, so that a comparison of two changes nothing else. LRP's own is :func:`lrp_core.lrp.explain`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.devices import device_of
from lrp_core.errors import check_choice
from lrp_core.evaluation import predict
from lrp_core.graph import INPUT, Layer, fold_batchnorm, rectified, run, trace
from lrp_core.lrp import explain

BATCH = 24  # images at a time, where gradients are needed


@dataclass(frozen=True)
class Scores:
    """What a criterion says.

    Attributes:
        filters: by convolution, (N, C); low for filters that should go first.
        logits: of the network, (N, K).
    """

    filters: dict[str, torch.Tensor]
    logits: torch.Tensor


Criterion = Callable[[nn.Module, torch.Tensor, torch.Tensor], Scores]


@dataclass(frozen=True)
class Relevance:
    """LRP: relevance to the target class, or its absolute value, summed over positions.

    Attributes:
        absolute: sum |R|.
        composite: which rule goes to which layer.
    """

    absolute: bool = False
    composite: str | dict[str, str] = "epsilon-zplus"

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Go forward and back once."""
        explanation = explain(model, images, targets, self.composite, absolute=self.absolute)
        return Scores(explanation.filters, explanation.logits)


def weight(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Sum of a filter's absolute weights, batch normalisation folded in; the same for every image.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, sec. 3.1.
    """
    return _same_for_all(model, images, lambda layer: layer.weight.detach().abs().sum(dim=(1, 2, 3)))


@dataclass(frozen=True)
class Random:
    """Uniform draws, in each network anew; the same for every image."""

    seed: int

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Draw a number a filter."""
        generator = torch.Generator().manual_seed(self.seed)
        return _same_for_all(model, images, lambda layer: torch.rand(layer.out_channels, generator=generator))


def _same_for_all(model: nn.Module, images: torch.Tensor, score: Callable[[nn.Conv2d], torch.Tensor]) -> Scores:
    convolutions = [layer for layer in fold_batchnorm(trace(model)) if isinstance(layer.module, nn.Conv2d)]
    filters = {layer.name: score(layer.module).to(images.device).expand(len(images), -1) for layer in convolutions}
    return Scores(filters, predict(model, images))


@dataclass(frozen=True)
class ByActivation:
    """A criterion that is a function of a filter's activations and of the loss's gradient there.

    Activations are taken behind the batch normalisation and the activation function that follow a convolution.

    Attributes:
        score: activations and gradients, (N, C, H, W) each, to scores, (N, C).
        n_classes: the loss is the cross-entropy of the first so many outputs; other heads stand behind them.
    """

    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    n_classes: int

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Go forward and back once."""
        layers, device = fold_batchnorm(trace(model)), device_of(model)
        followed = rectified(layers)
        behind = {layer.inputs[0]: layer.name for layer in layers if layer.inputs[0] in followed}
        convolutions = [layer.name for layer in layers if isinstance(layer.module, nn.Conv2d)]
        read_at = {behind.get(name, name): name for name in convolutions}
        parts = []
        for i in range(0, len(images), BATCH):
            activations: dict[str, torch.Tensor] = {}

            def keep(layer: Layer, live: dict[str, torch.Tensor], activations: dict = activations) -> None:
                activations.update({read_at[name]: live[name] for name in layer.inputs if name in read_at})

            with torch.enable_grad():  # from the images on: the network's parameters ask for none
                logits = run(layers, {INPUT: images[i : i + BATCH].to(device).requires_grad_()}, keep)
                loss = F.cross_entropy(logits[:, : self.n_classes], targets[i : i + BATCH].to(device), reduction="sum")
                gradients = torch.autograd.grad(loss, list(activations.values()))
            pairs = zip(activations, activations.values(), gradients, strict=True)
            scores = {name: self.score(a.detach(), gradient).to(images.device) for name, a, gradient in pairs}
            parts.append(Scores(scores, logits.detach().to(images.device)))
        filters = {name: torch.cat([part.filters[name] for part in parts]) for name in convolutions}
        return Scores(filters, torch.cat([part.logits for part in parts]))


def _activation(a: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Mean |activation| (Molchanov et al., ICLR 2017, sec. 2.2)."""
    return a.abs().mean(dim=(2, 3))


def _gradient(a: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Sum of |gradient|."""
    return gradient.abs().sum(dim=(2, 3))


def _taylor(a: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """|Change of the loss without the filter| to first order (Molchanov et al., ICLR 2017, eq. 7)."""
    return (a * gradient).sum(dim=(2, 3)).abs()


_BY_ACTIVATION = {"activation": _activation, "gradient": _gradient, "taylor": _taylor}
# Rules by depth, as Hatefi et al. 2024 choose them for each network; which ones, is our reading.
_BY_DEPTH = {"low": "alpha2-beta1", "mid": "gamma", "high": "zplus", "dense": "epsilon"}
_LRP = {"lrp": Relevance(), "lrp-abs": Relevance(absolute=True), "lrp-depth": Relevance(composite=_BY_DEPTH)}
CRITERIA = (*_LRP, "random", "weight", *_BY_ACTIVATION)


def criterion(name: str, n_classes: int, seed: int) -> Criterion:
    """Return a criterion by name.

    Args:
        name: one of ``CRITERIA``.
        n_classes: of the task; a network's first outputs.
        seed: of random draws.

    Raises:
        ValueError: unknown name.
    """
    check_choice("criterion", name, CRITERIA)
    if name == "random":
        return Random(seed)
    if name in _BY_ACTIVATION:
        return ByActivation(_BY_ACTIVATION[name], n_classes)
    return weight if name == "weight" else _LRP[name]
