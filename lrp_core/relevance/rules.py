"""The rules of Layer-wise Relevance Propagation (LRP).

A rule distributes the relevance R_k of a layer's outputs over its inputs a_j: R_j = a_j * sum_k w'_jk R_k / z_k for
some weights w', where z_k is the sum of the contributions. Biases get no relevance and are left out of z, so that
relevance is conserved. Each rule takes as few convolutions as possible: it reuses results of the forward pass, and
after a ReLU, where no input is negative, it skips half of the terms.

Sources: Bach et al., PLOS ONE 2015 (epsilon, alpha-beta); Montavon et al., Pattern Recognition 2017 (z+, w^2, z-box);
Lapuschkin et al., Nature Communications 2019 (flat); Montavon et al., in Explainable AI, LNCS 11700, 2019 (gamma);
Andeol et al., 2021 (gamma for signed inputs).
"""

import math
from dataclasses import dataclass

import torch

from lrp_core.relevance.linear_map import LinearMap

Box = tuple[float | torch.Tensor, float | torch.Tensor]
EPSILON = 1e-6  # keeps a denominator away from 0; small next to any pre-activation that carries relevance


def share(relevance: torch.Tensor, z: torch.Tensor, sign: int = 0) -> torch.Tensor:
    """Return R / z, with z moved away from 0 without changing its sign (``sign``, if known); overwrites z."""
    z.add_(sign * EPSILON if sign else torch.copysign(z.new_tensor(EPSILON), z))
    return torch.div(relevance, z, out=z)


class Rule:
    """How the relevance of a layer's outputs is distributed over its inputs.

    Attributes:
        uses_output: whether the rule needs the layer's output (including the bias).
    """

    uses_output = False

    def __call__(
        self, layer: LinearMap, a: torch.Tensor, output: torch.Tensor | None, relevance: torch.Tensor
    ) -> torch.Tensor:
        """Return the relevance of the inputs, in the shape of ``a``.

        Args:
            layer: the convolution or dense layer.
            a: its inputs, (N, C, H, W) or (N, C).
            output: its outputs, if the rule uses them; read only.
            relevance: of the outputs, in their shape; read only.
        """
        raise NotImplementedError


def _split(layer: LinearMap, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the positive part of the inputs, and their negative part if inputs can be negative."""
    return (a.clamp(min=0), a.clamp(max=0)) if layer.signed else (a, None)


def _positive_terms(layer: LinearMap, up: torch.Tensor, down: torch.Tensor | None) -> torch.Tensor:
    """Sum the contributions a_j w_jk > 0: positive inputs by positive weights, negative ones by negative weights."""
    z = layer(layer.positive, up)
    return z if down is None else z.add_(layer(layer.negative, down))


def _gather(
    layer: LinearMap,
    ratio: torch.Tensor,
    for_up: torch.Tensor,
    for_down: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor | None,
) -> torch.Tensor:
    """Return a_j * sum_k w_jk ratio_k, with one weight for positive inputs and one for negative inputs."""
    relevance = layer.transposed(for_up, ratio, up).mul_(up)
    return relevance if down is None else relevance.add_(layer.transposed(for_down, ratio, down).mul_(down))


@dataclass(frozen=True)
class Epsilon(Rule):
    """Epsilon rule (Bach et al. 2015, eq. 58): all contributions a_j w_jk; LRP-0 except for the stabiliser."""

    uses_output = True

    def __call__(self, layer, a, output, relevance):
        """Two passes, including the forward one: z is the output without its bias."""
        return layer.transposed(layer.weight, share(relevance, layer.unbiased(output)), a).mul_(a)


@dataclass(frozen=True)
class ZPlus(Rule):
    """z+ rule (Montavon et al. 2017, sec. 4.1): positive contributions only, which for a < 0 are those of w < 0."""

    def __call__(self, layer, a, output, relevance):
        """Three passes after a ReLU, including the forward one."""
        up, down = _split(layer, a)
        ratio = share(relevance, _positive_terms(layer, up, down), 1)
        return _gather(layer, ratio, layer.positive, layer.negative, up, down)


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """Alpha-beta rule (Bach et al. 2015, eq. 60): positive contributions times alpha, negative ones times -beta."""

    alpha: float = 2.0
    beta: float = 1.0
    uses_output = True

    def __post_init__(self):
        """Raise an error for parameters that do not conserve relevance."""
        if self.beta < 0 or not math.isclose(self.alpha - self.beta, 1):
            raise ValueError(f"alpha - beta must be 1 and beta not negative, got alpha={self.alpha}, beta={self.beta}")

    def __call__(self, layer, a, output, relevance):
        """Four passes after a ReLU, including the forward one: the negative part of z is z minus the positive one."""
        up, down = _split(layer, a)
        positive = _positive_terms(layer, up, down)
        negative = layer.unbiased(output).sub_(positive).clamp_(max=0)
        positive = share(relevance, positive, 1).mul_(self.alpha)
        negative = share(relevance, negative, -1).mul_(-self.beta)
        result = _gather(layer, positive, layer.positive, layer.negative, up, down)
        return result.add_(_gather(layer, negative, layer.negative, layer.positive, up, down))


@dataclass(frozen=True)
class Gamma(Rule):
    """Gamma rule (Montavon et al. 2019, table 1.1): contributions with the output's sign have the weight 1 + gamma.

    The form for signed inputs and outputs is from Andeol et al. 2021. Outputs that an activation cuts off at 0 carry no
    relevance.
    """

    gamma: float = 0.25
    uses_output = True

    def __call__(self, layer, a, output, relevance):
        """Three passes between activations, including the forward one; four if negative outputs carry relevance."""
        up, down = _split(layer, a)
        raised = torch.add(layer.weight, layer.positive, alpha=self.gamma)
        lowered = torch.add(layer.weight, layer.negative, alpha=self.gamma)
        positive, z = _positive_terms(layer, up, down), layer.unbiased(output)
        if not layer.rectified:
            below = z.mul(1 + self.gamma).sub_(
                positive, alpha=self.gamma
            )  # negative terms are z minus the positive ones
        ratio = share(relevance, z.add_(positive, alpha=self.gamma)).mul_(output > 0)
        result = _gather(layer, ratio, raised, lowered, up, down)
        if layer.rectified:
            return result
        ratio = share(relevance, below).mul_(output < 0)
        return result.add_(_gather(layer, ratio, lowered, raised, up, down))


@dataclass(frozen=True)
class WSquare(Rule):
    """w^2 rule (Montavon et al. 2017, sec. 4.1): by squared weight, independent of the input; for unbounded pixels."""

    def __call__(self, layer, a, output, relevance):
        """Share by squared weight."""
        return _by_weight(layer, layer.weight**2, a, relevance)


@dataclass(frozen=True)
class Flat(Rule):
    """Flat rule (Lapuschkin et al. 2019): evenly over all inputs of an output."""

    def __call__(self, layer, a, output, relevance):
        """Share evenly."""
        return _by_weight(layer, torch.ones_like(layer.weight), a, relevance)


def _by_weight(layer: LinearMap, weight: torch.Tensor, a: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    z = layer(weight, torch.ones_like(a[:1]))
    return layer.transposed(weight, relevance / z.add_(EPSILON), a)


@dataclass(frozen=True, eq=False)
class ZBox(Rule):
    """z-box rule (Montavon et al. 2017, sec. 4.1): for pixels between two bounds.

    Attributes:
        bounds: the smallest and the largest possible pixel, normalised like the images; numbers or (C,).
    """

    bounds: Box
    uses_output = True

    def __call__(self, layer, a, output, relevance):
        """Use the contributions a w minus those of the bounds that would lower the output."""
        low, high = (torch.as_tensor(bound).to(a).reshape(-1, 1, 1).expand(a[:1].shape) for bound in self.bounds)
        z = layer.unbiased(output) - layer(layer.positive, low) - layer(layer.negative, high)
        ratio = share(relevance, z)
        result = layer.transposed(layer.weight, ratio, a) * a
        result -= layer.transposed(layer.positive, ratio, a) * low
        return result - layer.transposed(layer.negative, ratio, a) * high


RULES: dict[str, Rule] = {
    "epsilon": Epsilon(),
    "zplus": ZPlus(),
    "gamma": Gamma(),
    "alpha2-beta1": AlphaBeta(2.0, 1.0),
    "wsquare": WSquare(),
    "flat": Flat(),
}
