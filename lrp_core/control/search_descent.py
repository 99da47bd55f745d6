"""The descent of the budget search: its networks at every size, as those of any other descent."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from lrp_core.control.budget_search import BudgetSearch, BudgetStep
from lrp_core.control.descent import LEAST, Stop, Whole, first_fitting, limits
from lrp_core.control.methods import Method
from lrp_core.control.preparation import Prepared
from lrp_core.graph.exits import own_end
from lrp_core.graph.truncation import up_to
from lrp_core.importance.registry import criterion
from lrp_core.metrics.cost import n_parameters
from lrp_core.pruning.network import PrunedNetwork


class SearchDescent:
    """The budget search goes down from a classifier (:mod:`lrp_core.control.budget_search`).

    A size is the number of a step, counted from 1.

    Attributes:
        prepared: the given network; nothing is done to it before.
        steps: what the search has done so far.
        last: the smallest size so far.
    """

    def __init__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        how: Method,
        fold: torch.Tensor,
        seed: int,
        whole: Whole,
    ):
        """Run the unpruned network's backbone over the images; its head is fitted anew to every network.

        Args:
            model: images to logits (N, K), made of supported layers; untouched, and expected not to change.
            images: of calibration, (N, C, H, W), normalised.
            labels: theirs, (N,), in 0..K-1, each class present.
            how: the method.
            fold: of the images, (N,).
            seed: of random draws.
            whole: of which sizes are fractions.
        """
        self.prepared = Prepared(model)
        backbone, n_classes = up_to(model, own_end(model)), int(labels.max()) + 1
        score = how.criterion if callable(how.criterion) else criterion(how.criterion, n_classes, seed)
        self._search = BudgetSearch(backbone, images, labels, fold, score, how.actions, how.blocks)
        self._whole = whole
        self._parameters: list[int] = []
        self._active: list[int] = []  # how many filters each step's network has
        self.steps: list[BudgetStep] = []

    @property
    def last(self) -> int:
        """The smallest size so far."""
        return len(self.steps)

    def walk(self, far_enough: Callable[["SearchDescent"], bool]) -> Iterator[Stop]:
        """Go down, and yield the network at every size, as :meth:`lrp_core.control.descent.Descent.walk` does."""
        share = self._search.whole / self._whole.multiply_adds
        for limit, step in zip(limits(), self._search.descend(limit / share for limit in limits()), strict=False):
            self.steps.append(step)
            network = self._network(self.last)
            self._parameters.append(n_parameters(network.model))
            self._active.append(int(network.active.sum()))
            yield Stop(limit, self.last, self.multiply_adds(self.last), network.model)
            if limit <= LEAST and far_enough(self):
                return

    def model(self, size: int) -> nn.Module:
        """Return the network of a step."""
        return self._network(size).model

    def kept(self, size: int) -> dict[str, list[int]]:
        """Return the filters of a step's network, by convolution, by their numbers in the unpruned network."""
        return self._network(size).kept()

    def truncation(self, size: int) -> str:
        """Return what is left of the depth (:class:`lrp_core.graph.truncation.Truncation`)."""
        return self.steps[size - 1].truncation

    def removed(self, size: int) -> int:
        """Return how many filters have gone, those behind an exit and in skipped blocks with them."""
        return self._whole.filters - self._active[size - 1]

    def pruning_ratio(self, size: int) -> float:
        """Return the fraction of the filters that have gone."""
        return self.removed(size) / self._whole.filters

    def first(self, fits: Callable[[int], bool]) -> int:
        """Return the largest network that fits; smaller ones do."""
        return first_fitting(self.last, fits, start=1)

    def multiply_adds(self, size: int) -> float:
        """Return the fraction of the multiply-adds that is left."""
        return self.steps[size - 1].multiply_adds * self._search.whole / self._whole.multiply_adds

    def parameters(self, size: int) -> float:
        """Return the fraction of the parameters that is left."""
        return self._parameters[size - 1] / self._whole.parameters

    def _network(self, size: int) -> PrunedNetwork:
        step = self.steps[size - 1]
        return self._search.network(step.truncation).smaller(step.removed)
