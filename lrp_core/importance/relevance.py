"""LRP as a criterion."""

from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.importance.criterion import Scores
from lrp_core.relevance.lrp import explain


@dataclass(frozen=True)
class Relevance:
    """LRP: relevance to the target class, or its absolute value, summed over positions.

    Attributes:
        absolute: sum |R|.
        composite: which rule each layer has (:mod:`lrp_core.relevance.composites`).
    """

    absolute: bool = False
    composite: str | dict[str, str] = "epsilon-zplus"

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Go forward and back once."""
        explanation = explain(model, images, targets, self.composite, absolute=self.absolute)
        return Scores(explanation.filters, explanation.logits)
