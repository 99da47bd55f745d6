"""The budget search: down a schedule of multiply-adds, the best of what several actions offer.

Where the present network exceeds the next budget, every action offers candidates within it
(:mod:`lrp_core.control.actions`):

1. Filters: those with the least relevance are removed, as many as the budget asks for.
2. Exit: the backbone ends earlier, behind the layer with the least error of those within the budget.
3. Block: the residual block whose branch adds least to its shortcut is skipped
   (:mod:`lrp_core.control.block_ranking`); then filters are removed as in 1.

Lest early choices bind later ones, new starts are offered, too: the backbone up to an exit with all of its filters, of
those that cost at most 1, 2 or 4 times the budget the one with the least error, less the filters that have to be
removed.

The candidate with the least cross-fitted error (:func:`lrp_core.repair.ridge_head.squared_error`) is taken: within one
budget it is the one that keeps most for the multiply-adds that it saves.

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
        action: which made it of the network before; "start" for a backbone that starts anew, "none" where the network
            of the budget before is within this one, too.
        truncation: what is left of the backbone's depth (:class:`lrp_core.graph.truncation.Truncation`), as text.
        removed: the filters that it has lost, numbered as in the network of that depth, in the order in which they were
            removed.
        multiply_adds: of one image, as a fraction of the whole classifier's.
        error: cross-fitted (:func:`lrp_core.repair.ridge_head.squared_error`).
        candidates: by action, the least error of its candidates.
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
        """Take the backbone, and run it over the images.

        Args:
            backbone: images to feature maps, made of supported layers; untouched, and expected not to change.
            images: (N, C, H, W), normalised.
            labels: (N,), in 0..n_classes-1, each class present.
            fold: of the images, (N,) (:func:`lrp_core.repair.out_of_fold.draw_folds`).
            criterion: what scores filters (:mod:`lrp_core.importance`).
            actions: which of :data:`ACTIONS` there are.
            blocks: one of :data:`BLOCK_CHANGES`: the residual block that is skipped next is the one whose branch adds
                least to its shortcut ("branch"), or the one without which the features stay most alike ("cka").

        Raises:
            ValueError: unknown action, or ranking of blocks.
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
        """Return the classifier that a truncation leaves, with its head fitted.

        Args:
            truncation: as text (:class:`lrp_core.graph.truncation.Truncation`).
            out_of_fold: whether the out-of-fold heads stand beside its head.
        """
        return self._build.unfitted(truncation, out_of_fold).smaller(NO_FILTERS)

    def descend(self, budgets: Iterable[float]) -> Iterator[BudgetStep]:
        """Go down a schedule of budgets, and yield the network of each, until one cannot be kept.

        Args:
            budgets: of multiply-adds, as fractions of the whole classifier's, descending.
        """
        now, whole = self._build.unpruned(best_exit(self._exits)), self.whole
        visited: set[str] = set()  # truncations; none is gone back to, so that at one of them filters are only removed
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
        """Yield what starts anew, then what each action offers."""
        fresh = [exit_ for exit_ in self._exits if exit_.name not in visited]
        yield from start_anew(self._build, fresh, limit, prune="filters" in self._offers)
        for offer in self._offers.values():
            for candidate in offer(self._build, now, limit):
                if candidate.truncation not in visited - {now.truncation}:
                    yield candidate
