"""LRP as a criterion."""

from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.importance.criterion import Scores
from lrp_core.relevance.lrp import explain


@dataclass(frozen=True)
class Relevance:
    """LRP: relevance for the target class, or its absolute value, summed over positions.

    Attributes:
        absolute: sum |R|.
        composite: the rule of each layer (:mod:`lrp_core.relevance.composites`).
    """

    absolute: bool = False
    composite: str | dict[str, str] = "epsilon-zplus"

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Run one forward and one backward pass."""
        explanation = explain(model, images, targets, self.composite, absolute=self.absolute)
        return Scores(explanation.filters, explanation.logits)
