"""The budget search: at each of a descending schedule of multiply-adds, take the best candidate of several actions.

If the current network exceeds the next budget, every action offers candidates within it
(:mod:`lrp_core.control.actions`):

1. Filters: remove the filters with the least relevance, as many as the budget requires.
2. Exit: end the backbone earlier, at the exit with the smallest error among those within the budget.
3. Block: skip the residual block whose branch adds least to its shortcut (:mod:`lrp_core.control.block_ranking`), then
   remove filters as in 1.

New starts keep early choices from binding later ones. A start is the unpruned backbone, cut at the exit with the
smallest error among those that cost at most 1, 2 or 4 times the budget, and then pruned to the budget.

The candidate with the smallest cross-fitted error (:func:`lrp_core.repair.ridge_head.squared_error`) is taken.

Ours.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from lrp_core.control.actions import best_exit, exit_earlier, remove_filters, skip_block, start_anew
from lrp_core.control.block_ranking import branch_norms
from lrp_core.control.block_similarity import dissimilarities
from lrp_core.control.candidates import Candidate, CandidateBuilder
from lrp_core.control.controller import NO_FILTERS
from lrp_core.control.early_exit import Exit, exits
from lrp_core.importance.criterion import Criterion
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.utils.errors import check_choice

ACTIONS = ("filters", "exit", "block")
BLOCK_CHANGES = {"branch": branch_norms, "cka": dissimilarities}  # ways to rank residual blocks


@dataclass(frozen=True)
class BudgetStep:
    """A network within a budget.

    Attributes:
        budget: of multiply-adds, as a fraction of the whole classifier's.
        action: the action that made it from the previous network; "start" for a new start, "none" if the previous
            network is within this budget, too.
        truncation: the remaining depth of the backbone (:class:`lrp_core.graph.truncation.Truncation`), as text.
        removed: its removed filters, in the order of removal, numbered as in the network of that depth.
        multiply_adds: for one image, as a fraction of the whole classifier's.
        error: cross-fitted (:func:`lrp_core.repair.ridge_head.squared_error`).
        candidates: by action, the smallest error of its candidates.
    """

    budget: float
    action: str
    truncation: str
    removed: np.ndarray
    multiply_adds: float
    error: float
    candidates: dict[str, float]


class BudgetSearch:
    """The search for the best networks of a backbone within budgets, on calibration images."""

    def __init__(
        self,
        backbone: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        fold: torch.Tensor,
        criterion: Criterion,
        actions: Sequence[str] = ACTIONS,
        blocks: str = "branch",
    ):
        """Store the backbone, and run it over the images.

        Args:
            backbone: maps images to feature maps, made of supported layers; not changed here, must not change later.
            images: (N, C, H, W), normalised.
            labels: (N,), in 0..n_classes-1, each class present.
            fold: of the images, (N,) (:func:`lrp_core.repair.out_of_fold.draw_folds`).
            criterion: scores filters (:mod:`lrp_core.importance`).
            actions: which of :data:`ACTIONS` to use.
            blocks: one of :data:`BLOCK_CHANGES`. The residual block to skip next is the one whose branch adds least to
                its shortcut ("branch"), or the one without which the features stay most similar ("cka").

        Raises:
            ValueError: unknown action or ranking of blocks.
        """
        changes = BLOCK_CHANGES[check_choice("ranking of blocks", blocks, BLOCK_CHANGES)]
        offers = {"filters": remove_filters, "exit": exit_earlier, "block": partial(skip_block, changes=changes)}
        self._offers = {action: offers[check_choice("action", action, ACTIONS)] for action in actions}
        self._build = CandidateBuilder(backbone, images, labels, fold, criterion)

    @cached_property
    def _exits(self) -> list[Exit]:
        every = exits(self._build.backbone, self._build.images, self._build.labels, self._build.fold)
        return every if "exit" in self._offers else every[-1:]

    @property
    def whole(self) -> int:
        """The multiply-adds of the whole backbone with a head, for one image."""
        return self._exits[-1].multiply_adds

    def network(self, truncation: str, out_of_fold: bool = False) -> PrunedNetwork:
        """Return the classifier of a truncation, with its head fitted.

        Args:
            truncation: as text (:class:`lrp_core.graph.truncation.Truncation`).
            out_of_fold: whether it also has the out-of-fold heads.
        """
        return self._build.unfitted(truncation, out_of_fold).smaller(NO_FILTERS)

    def descend(self, budgets: Iterable[float]) -> Iterator[BudgetStep]:
        """Follow a schedule of budgets, and yield the network of each, until one cannot be met.

        Args:
            budgets: of multiply-adds, as fractions of the whole classifier's, descending.
        """
        now, whole = self._build.unpruned(best_exit(self._exits)), self.whole
        visited: set[str] = set()  # truncations; the search never returns to one, so each only loses filters
        for budget in budgets:
            limit = int(budget * whole * (1 + 1e-9))
            candidates = [now] if now.multiply_adds() <= limit else list(self._candidates(now, limit, visited))
            if not candidates:
                return
            candidates.sort(key=lambda candidate: candidate.error)
            now, errors = candidates[0], {candidate.action: candidate.error for candidate in reversed(candidates)}
            visited.add(now.truncation)
            yield BudgetStep(
                budget, now.action, now.truncation, now.removed, now.multiply_adds() / whole, now.error, errors
            )
            now = replace(now, action="none")

    def _candidates(self, now: Candidate, limit: int, visited: set[str]) -> Iterator[Candidate]:
        """Yield new starts, then the candidates of each action."""
        fresh = [exit_ for exit_ in self._exits if exit_.name not in visited]
        yield from start_anew(self._build, fresh, limit, prune="filters" in self._offers)
        for offer in self._offers.values():
            for candidate in offer(self._build, now, limit):
                if candidate.truncation not in visited - {now.truncation}:
                    yield candidate
