"""Composites: which layer uses which rule of LRP.

Source: Montavon et al., in Explainable AI, LNCS 11700, 2019 (rules by depth).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from lrp_core.relevance.rules import RULES, AlphaBeta, Box, Gamma, Rule, ZBox, ZPlus
from lrp_core.utils.errors import check_choice


@dataclass(frozen=True)
class Composite:
    """The rule of each layer: of dense layers, and of the low, middle and high third of the convolutions.

    Attributes:
        low, mid, high: for convolutions; the low third is next to the pixels.
        dense: for dense layers.
        first: for the first convolution, instead of ``low``; affects only the relevance of pixels.
    """

    low: Rule
    mid: Rule
    high: Rule
    dense: Rule = RULES["epsilon"]
    first: Rule | None = None

    def assign(self, layers: Mapping[str, nn.Module]) -> dict[str, Rule]:
        """Return the rule of each layer, given convolutions and dense layers by name in the order of the network."""
        convolutions = [name for name, module in layers.items() if isinstance(module, nn.Conv2d)]
        thirds = (self.low, self.mid, self.high)
        rules = {name: thirds[3 * i // len(convolutions)] for i, name in enumerate(convolutions)}
        if self.first is not None and convolutions:
            rules[convolutions[0]] = self.first
        return {name: rules.get(name, self.dense) for name in layers}


COMPOSITES: dict[str, Callable[[Box | None], Composite]] = {
    "epsilon-zplus": lambda box: Composite(ZPlus(), ZPlus(), ZPlus()),
    "epsilon-alpha2-beta1": lambda box: Composite(*[AlphaBeta(2.0, 1.0)] * 3),
    "epsilon-gamma-box": lambda box: Composite(Gamma(), Gamma(), Gamma(), first=_box(box)),
}


class _NoBox(Rule):
    """Replaces the z-box rule if no bounds are given; relevance of filters does not need it."""

    def __call__(self, layer, a, output, relevance):
        raise ValueError("this composite ends with the z-box rule: give box=(low, high), the bounds of the pixels")


def _box(box: Box | None) -> Rule:
    return _NoBox() if box is None else ZBox(box)


def composite(choice: str | Mapping[str, str | Rule] | Composite, box: Box | None = None) -> Composite:
    """Return a composite.

    Args:
        choice: a name (``"epsilon-zplus"``, ``"epsilon-alpha2-beta1"``, ``"epsilon-gamma-box"``), a composite, or a
            rule (an object or a name) for each of ``low``, ``mid``, ``high`` and optionally ``dense`` and ``first``.
        box: bounds of the normalised pixels, for the z-box rule.

    Raises:
        ValueError: an unknown composite, rule or depth, or a missing one.
    """
    if isinstance(choice, Composite):
        return choice
    if isinstance(choice, str):
        return COMPOSITES[check_choice("composite", choice, COMPOSITES)](box)
    for depth in choice:
        check_choice("depth of a composite", depth, ("low", "mid", "high", "dense", "first"))
    if missing := [depth for depth in ("low", "mid", "high") if depth not in choice]:
        raise ValueError(f"a composite needs a rule for each of low, mid and high; missing: {', '.join(missing)}")
    return Composite(
        **{
            depth: rule if isinstance(rule, Rule) else RULES[check_choice(f"rule for {depth}", rule, RULES)]
            for depth, rule in choice.items()
        }
    )
