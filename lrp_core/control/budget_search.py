"""The controller with three levers: filters go, the backbone ends earlier, residual blocks are skipped.

It goes down a ladder of budgets of multiply-adds. Where the present network exceeds a budget, every lever offers one
within it:

1. Filters: those with the least relevance go, as many as the budget asks for.
2. End: the backbone ends behind an earlier layer, the one with the least error of those within the budget.
3. Block: the residual block whose branch adds least to its shortcut is skipped, or, if asked for, the one without
   which the features stay most alike (:func:`lrp_core.control.early_exit.cka`); then filters go as in 1.

Lest early choices bind later ones, a start is offered, too: the backbone that has lost nothing but its end, the one with
the least error of those that cost at most 1, 2 or 4 times the budget, less the filters that have to go.

All networks are reconstructed towards what the whole backbone gives (:mod:`lrp_core.repair.reconstruction`), their heads are
refitted (:mod:`lrp_core.repair.refit`), and relevance starts from the head that is there. The offer with the least
cross-fitted error (:func:`lrp_core.repair.ridge_head.squared_error`) is taken: at one budget it is the one that keeps most for the
multiply-adds that it saves.

Ours.
"""

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from lrp_core.control.controller import first_removable
from lrp_core.control.early_exit import Exit, cka, exits
from lrp_core.graph.blocks import identity_blocks, without_blocks
from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import Layer
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import Truncation, truncated
from lrp_core.importance.by_class import class_shares
from lrp_core.importance.criterion import Criterion
from lrp_core.metrics.cost import multiply_adds_by_layer
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.repair.refit import Refit
from lrp_core.repair.ridge_head import (
    classifier,
    out_of_fold_logits,
    pooled_features,
    squared_error,
    with_out_of_fold_heads,
)
from lrp_core.utils.devices import device_of
from lrp_core.utils.errors import check_choice

SLACK = (1, 2, 4)  # so many times a budget may a backbone cost that starts anew; chosen on development seeds
_NOTHING = np.array([], dtype=int)
_HEAD = "head"  # name of a classifier's last layer
ACTIONS = ("filters", "exit", "block")


@dataclass(frozen=True)
class BudgetStep:
    """A network within a budget.

    Attributes:
        budget: of multiply-adds, as a fraction of the whole classifier's.
        action: which made it of the one before; "start" for a backbone that starts anew, "none" where the network of the
            rung before is within this budget, too.
        truncation: what is left of the backbone's depth (:class:`lrp_core.graph.truncation.Truncation`), as text.
        removed: the filters that are gone, numbered as in the network of that depth, in the order in which they went.
        multiply_adds: of one image, as a fraction of the whole classifier's.
        error: cross-fitted (:func:`lrp_core.repair.ridge_head.squared_error`).
        candidates: by lever, the error of what it offered.
    """

    budget: float
    action: str
    truncation: str
    removed: np.ndarray
    multiply_adds: float
    error: float
    candidates: dict[str, float]


@dataclass(frozen=True)
class Candidate:
    """A network that a lever offers.

    ``whole``: by layer, the multiply-adds before filters went, and the groups of channels that they go with.
    """

    action: str
    truncation: str
    network: PrunedNetwork
    error: float
    whole: list[tuple[int, list[np.ndarray]]]
    removed: np.ndarray

    def multiply_adds(self, filters: np.ndarray = _NOTHING) -> int:
        """Return the multiply-adds of one image, without these filters more."""
        kept_groups, total = np.append(self.network.active, True), 0  # group -1 stays
        kept_groups[filters] = False
        for cost, proportional in self.whole:
            for groups in proportional:
                cost = cost * int(kept_groups[groups].sum()) // len(groups)
            total += cost
        return total


class BudgetSearch:
    """A backbone under the controller, with the calibration images that judge it."""

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
        """Take the backbone.

        Args:
            backbone: images to feature maps, made of supported layers; untouched, and expected not to change.
            images: (N, C, H, W), normalised.
            labels: (N,), in 0..n_classes-1, each class present.
            fold: of the images, (N,) (:func:`lrp_core.repair.ridge_head.draw_folds`).
            criterion: what scores filters (:mod:`lrp_core.importance`).
            actions: which of :data:`LEVERS` there are.
            blocks: which residual block is skipped next: the one whose branch adds least to its shortcut ("branch"), or
                the one without which the backbone's features stay most alike ("cka").

        Raises:
            ValueError: unknown lever, or order of blocks.
        """
        pulls = {"filters": self._narrower, "exit": self._earlier_exit, "block": self._without_block}
        self._pulls = {action: pulls[check_choice("action", action, ACTIONS)] for action in actions}
        orders = {"branch": self._branches, "cka": self._unlikeness}
        self._block_changes = orders[check_choice("order of blocks", blocks, orders)]
        self._backbone, self._images, self._labels, self._fold = backbone, images, labels, fold
        self._criterion, self._n_classes = criterion, int(labels.max()) + 1
        self._reconstruction = Reconstruction(nn.Sequential(OrderedDict(backbone=backbone)), images)
        self._unpruned: dict[str, Candidate] = {}  # backbones that a start may be, by their end
        self._orders: dict[str, np.ndarray] = {}  # of their filters
        self._depths = {layer.name: place for place, layer in enumerate(trace(backbone))}

    @cached_property
    def _exits(self) -> list[Exit]:
        every = exits(self._backbone, self._images, self._labels, self._fold)
        return every if "exit" in self._pulls else every[-1:]

    def network(self, truncation: str, out_of_fold: bool = False) -> PrunedNetwork:
        """Return the classifier that a cut leaves (:class:`lrp_core.graph.truncation.Truncation`), with its head fitted.

        With ``out_of_fold``, those of its head stand beside it.
        """
        return self._unfitted(truncation, out_of_fold).smaller(_NOTHING)

    def _unfitted(self, truncation: str, out_of_fold: bool) -> PrunedNetwork:
        part = truncated(self._backbone, truncation)
        n_features, n_outputs = pooled_features(part, self._images[:1]).shape[1], self._n_classes
        model = classifier(part, torch.zeros(n_outputs, n_features))
        if out_of_fold:
            model = with_out_of_fold_heads(model, torch.zeros(int(self._fold.max()) + 1, n_outputs, n_features))
        return PrunedNetwork(model, self._images, [self._reconstruction, Refit(_HEAD, self._labels, self._fold)])

    def descend(self, budgets: Iterable[float]) -> Iterator[BudgetStep]:
        """Go down a ladder of budgets, and yield the network of each rung, until one cannot be kept.

        Args:
            budgets: of multiply-adds, as fractions of the whole classifier's, descending.
        """
        now, whole = self._start(self._exits), self._exits[-1].multiply_adds
        visited: set[str] = set()  # cuts; none is gone back to, so that at one cut filters only ever go
        for budget in budgets:
            limit, candidates = int(budget * whole * (1 + 1e-9)), [now]
            if now.multiply_adds() > limit:
                pulled = (candidate for pull in self._pulls.values() for candidate in pull(now, limit))
                candidates = [
                    *self._starts(limit, visited),
                    *(candidate for candidate in pulled if candidate.truncation not in visited - {now.truncation}),
                ]
            if not candidates:
                return
            candidates.sort(key=lambda candidate: candidate.error)
            now, errors = candidates[0], {candidate.action: candidate.error for candidate in reversed(candidates)}
            visited.add(now.truncation)
            yield BudgetStep(
                budget, now.action, now.truncation, now.removed, now.multiply_adds() / whole, now.error, errors
            )
            now = replace(now, action="none")

    def _starts(self, limit: int, visited: Collection[str]) -> Iterator[Candidate]:
        """Yield backbones within a limit that start anew."""
        exits = [exit_ for exit_ in self._exits if exit_.name not in visited]
        within = [[exit_ for exit_ in exits if exit_.multiply_adds <= times * limit] for times in SLACK]
        starts = {start.truncation: start for start in map(self._start, filter(None, within))}
        for start in starts.values():
            if start.multiply_adds() <= limit:
                yield start
            elif "filters" in self._pulls:
                yield from self._narrower(start, limit, "start")

    def _start(self, within: Sequence[Exit]) -> Candidate:
        exit_ = min(within, key=lambda exit_: exit_.squared_error).name
        if exit_ not in self._unpruned:
            self._unpruned[exit_] = self._at(
                "start", Truncation(exit_), self._unfitted(exit_, out_of_fold=True), _NOTHING
            )
        return self._unpruned[exit_]

    def _narrower(self, now: Candidate, limit: int, action: str = "filters") -> Iterator[Candidate]:
        """Yield the network without its least relevant filters."""
        order = self._order(now)
        size = bisect_left(range(len(order)), -limit, key=lambda size: -now.multiply_adds(order[:size]))
        if now.multiply_adds(pruned := order[:size]) <= limit:
            yield self._without(now, pruned, action)

    def _order(self, now: Candidate) -> np.ndarray:
        """Return the filters that can go, those with the least relevance first."""
        if len(now.removed) == 0 and now.truncation in self._orders:
            return self._orders[now.truncation]
        network = now.network
        scores = network.flat(self._criterion(network.model, self._images, self._labels).filters)
        shares = class_shares(scores, self._labels.numpy(), network.layer_of).sum(axis=0)
        left = np.flatnonzero(network.active)
        order = first_removable(
            left[np.argsort(shares[left], kind="stable")], len(left), network.layer_of, network.active
        )
        if len(now.removed) == 0:
            self._orders[now.truncation] = order
        return order

    def _earlier_exit(self, now: Candidate, limit: int) -> Iterator[Candidate]:
        """Yield the best of the network's earlier ends."""
        found = exits(now.network.model.backbone, self._images, self._labels, self._fold)[:-1]
        if within := [exit_ for exit_ in found if exit_.multiply_adds <= limit]:
            exit_, skipped = (
                min(within, key=lambda exit_: exit_.squared_error).name,
                Truncation.parse(now.truncation).skipped,
            )
            before = tuple(name for name in skipped if self._depths[name] < self._depths[exit_])
            yield self._moved("exit", now, Truncation(exit_, before))

    def _without_block(self, now: Candidate, limit: int) -> Iterator[Candidate]:
        """Yield the network without the residual block that changes least."""
        backbone = now.network.model.backbone
        layers = trace(backbone)
        blocks = {name: branch for name, branch in identity_blocks(layers).items() if name != layers[-1].name}
        if blocks:
            changes, truncation = self._block_changes(backbone, blocks), Truncation.parse(now.truncation)
            shorter = self._moved(
                "block", now, Truncation(truncation.exit, (*truncation.skipped, min(changes, key=changes.get)))
            )
            yield from [shorter] if shorter.multiply_adds() <= limit else self._narrower(shorter, limit, "block")

    def _branches(self, backbone: nn.Module, blocks: dict[str, tuple[str, ...]]) -> dict[str, float]:
        """Return, by block, how much its branch adds to its shortcut."""
        changes = {}

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in blocks:
                branch = blocks[layer.name][0]
                (shortcut,) = set(layer.inputs) - {branch}
                added, there = (sum(live[name].square().sum().item() for live in lives) for name in (branch, shortcut))
                changes[layer.name] = added / there if there else math.inf

        with torch.no_grad():
            run_together(trace(backbone), batched(self._images, device_of(self._backbone)), visit)
        return changes

    def _unlikeness(self, backbone: nn.Module, blocks: dict[str, tuple[str, ...]]) -> dict[str, float]:
        """Return, by block, how unlike the backbone's features are without it."""
        features = pooled_features(backbone, self._images)
        return {
            block: 1 - cka(features, pooled_features(without_blocks(backbone, [block]), self._images))
            for block in blocks
        }

    def _moved(self, action: str, now: Candidate, truncation: Truncation) -> Candidate:
        """Return the present network cut in another place, without the filters that it has lost."""
        other = self._unfitted(str(truncation), out_of_fold=True)
        number = np.full(now.network.n_filters, -1)  # in the other network; -1 for filters that it has not
        for name, groups in other.coupling.filters.items():
            number[now.network.coupling.filters[name]] = groups
        removed = number[now.removed]
        return self._at(action, truncation, other, removed[removed >= 0])

    def _at(self, action: str, truncation: Truncation, unfitted: PrunedNetwork, removed: np.ndarray) -> Candidate:
        whole = []
        for name, cost in multiply_adds_by_layer(unfitted.model, self._images[:1]).items():
            module, reads = unfitted.model.get_submodule(name), unfitted.coupling.channels[name]
            if name == _HEAD:
                whole.append((cost // (1 + len(self._fold.unique())), [reads]))  # its copies cost nothing in the end
            elif module.groups == module.in_channels > 1:  # depthwise
                whole.append((cost, [unfitted.coupling.filters[name]]))
            else:
                whole.append((cost, [reads, unfitted.coupling.filters[name]]))
        return Candidate(action, str(truncation), *self._judged(unfitted, removed), whole, removed)

    def _without(self, now: Candidate, filters: np.ndarray, action: str) -> Candidate:
        network, error = self._judged(now.network, filters)
        removed = np.append(now.removed, filters)
        return replace(now, action=action, network=network, error=error, removed=removed)

    def _judged(self, network: PrunedNetwork, filters: np.ndarray) -> tuple[PrunedNetwork, float]:
        """Return a network without these filters, and its cross-fitted error."""
        model, outputs = network.compensated_without(filters)
        out_of_fold = torch.cat(outputs)[:, self._n_classes :].to(self._labels.device)
        error = squared_error(out_of_fold_logits(out_of_fold, self._fold, self._n_classes), self._labels)
        return network.smaller(filters, model), error
