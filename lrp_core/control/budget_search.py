"""The controller with three levers: filters go, the trunk ends earlier, residual blocks are skipped.

It goes down a ladder of budgets of multiply-adds. Where the present network exceeds a budget, every lever offers one
within it:

1. Filters: those with the least relevance go, as many as the budget asks for.
2. End: the trunk ends behind an earlier layer, the one with the least error of those within the budget.
3. Block: the residual block whose branch adds least to its shortcut is skipped, or, if asked for, the one without
   which the features stay most alike (:func:`lrp_core.control.early_exit.cka`); then filters go as in 1.

Lest early choices bind later ones, a start is offered, too: the trunk that has lost nothing but its end, the one with
the least error of those that cost at most 1, 2 or 4 times the budget, less the filters that have to go.

All networks are reconstructed towards what the whole trunk gives (:mod:`lrp_core.repair.reconstruction`), their heads are
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

from lrp_core.control.controller import take
from lrp_core.control.early_exit import End, cka, ends
from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import Layer
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import Cut, identity_blocks, shortened, without_blocks
from lrp_core.importance.by_class import class_shares
from lrp_core.importance.criterion import Criterion
from lrp_core.metrics.cost import multiply_adds_by_layer
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.repair.refit import Refit
from lrp_core.repair.ridge_head import classifier, crossfitted_logits, pooled_features, squared_error, with_copies
from lrp_core.utils.devices import device_of
from lrp_core.utils.errors import check_choice

SLACK = (1, 2, 4)  # so many times a budget may a trunk cost that starts anew; chosen on development seeds
_NOTHING = np.array([], dtype=int)
_HEAD = "head"  # name of a classifier's last layer
LEVERS = ("filters", "end", "block")


@dataclass(frozen=True)
class Rung:
    """A network within a budget.

    Attributes:
        budget: of multiply-adds, as a fraction of the whole classifier's.
        lever: which made it of the one before; "start" for a trunk that starts anew, "none" where the network of the
            rung before is within this budget, too.
        cut: what is left of the trunk's depth (:class:`lrp_core.graph.truncation.Cut`), as text.
        removed: the filters that are gone, numbered as in the network of that depth, in the order in which they went.
        multiply_adds: of one image, as a fraction of the whole classifier's.
        error: cross-fitted (:func:`lrp_core.repair.ridge_head.squared_error`).
        offers: by lever, the error of what it offered.
    """

    budget: float
    lever: str
    cut: str
    removed: np.ndarray
    multiply_adds: float
    error: float
    offers: dict[str, float]


@dataclass(frozen=True)
class _Offer:
    """A network that a lever offers.

    ``whole``: by layer, the multiply-adds before filters went, and the groups of channels that they go with.
    """

    lever: str
    cut: str
    network: PrunedNetwork
    error: float
    whole: list[tuple[int, list[np.ndarray]]]
    removed: np.ndarray

    def multiply_adds(self, filters: np.ndarray = _NOTHING) -> int:
        """Return the multiply-adds of one image, without these filters more."""
        stays, total = np.append(self.network.active, True), 0  # group -1 stays
        stays[filters] = False
        for cost, proportional in self.whole:
            for groups in proportional:
                cost = cost * int(stays[groups].sum()) // len(groups)
            total += cost
        return total


class Levers:
    """A trunk under the controller, with the scarce images that judge it."""

    def __init__(
        self,
        trunk: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        fold: torch.Tensor,
        criterion: Criterion,
        levers: Sequence[str] = LEVERS,
        blocks: str = "branch",
    ):
        """Take the trunk.

        Args:
            trunk: images to feature maps, made of supported layers; untouched, and expected not to change.
            images: (N, C, H, W), normalised.
            labels: (N,), in 0..n_classes-1, each class present.
            fold: of the images, (N,) (:func:`lrp_core.repair.ridge_head.draw_folds`).
            criterion: what scores filters (:mod:`lrp_core.importance`).
            levers: which of :data:`LEVERS` there are.
            blocks: which residual block is skipped next: the one whose branch adds least to its shortcut ("branch"), or
                the one without which the trunk's features stay most alike ("cka").

        Raises:
            ValueError: unknown lever, or order of blocks.
        """
        pulls = {"filters": self._narrower, "end": self._earlier, "block": self._without_block}
        self._pulls = {lever: pulls[check_choice("lever", lever, LEVERS)] for lever in levers}
        orders = {"branch": self._branches, "cka": self._unlikeness}
        self._block_changes = orders[check_choice("order of blocks", blocks, orders)]
        self._trunk, self._images, self._labels, self._fold = trunk, images, labels, fold
        self._criterion, self._n_classes = criterion, int(labels.max()) + 1
        self._reconstruction = Reconstruction(nn.Sequential(OrderedDict(backbone=trunk)), images)
        self._unpruned: dict[str, _Offer] = {}  # trunks that a start may be, by their end
        self._orders: dict[str, np.ndarray] = {}  # of their filters
        self._places = {layer.name: place for place, layer in enumerate(trace(trunk))}

    @cached_property
    def _ends(self) -> list[End]:
        every = ends(self._trunk, self._images, self._labels, self._fold)
        return every if "end" in self._pulls else every[-1:]

    def network(self, cut: str, copies: bool = False) -> PrunedNetwork:
        """Return the classifier that a cut leaves (:class:`lrp_core.graph.truncation.Cut`), with its head fitted.

        With ``copies``, those of its head stand beside it.
        """
        return self._unfitted(cut, copies).smaller(_NOTHING)

    def _unfitted(self, cut: str, copies: bool) -> PrunedNetwork:
        part = shortened(self._trunk, cut)
        n_features, n_outputs = pooled_features(part, self._images[:1]).shape[1], self._n_classes
        model = classifier(part, torch.zeros(n_outputs, n_features))
        if copies:
            model = with_copies(model, torch.zeros(int(self._fold.max()) + 1, n_outputs, n_features))
        return PrunedNetwork(model, self._images, [self._reconstruction, Refit(_HEAD, self._labels, self._fold)])

    def descend(self, budgets: Iterable[float]) -> Iterator[Rung]:
        """Go down a ladder of budgets, and yield the network of each rung, until one cannot be kept.

        Args:
            budgets: of multiply-adds, as fractions of the whole classifier's, descending.
        """
        now, whole = self._start(self._ends), self._ends[-1].multiply_adds
        been: set[str] = set()  # cuts; none is gone back to, so that at one cut filters only ever go
        for budget in budgets:
            limit, offers = int(budget * whole * (1 + 1e-9)), [now]
            if now.multiply_adds() > limit:
                pulled = (offer for pull in self._pulls.values() for offer in pull(now, limit))
                offers = [*self._starts(limit, been), *(offer for offer in pulled if offer.cut not in been - {now.cut})]
            if not offers:
                return
            offers.sort(key=lambda offer: offer.error)
            now, errors = offers[0], {offer.lever: offer.error for offer in reversed(offers)}
            been.add(now.cut)
            yield Rung(budget, now.lever, now.cut, now.removed, now.multiply_adds() / whole, now.error, errors)
            now = replace(now, lever="none")

    def _starts(self, limit: int, been: Collection[str]) -> Iterator[_Offer]:
        """Yield trunks within a limit that start anew."""
        ends = [end for end in self._ends if end.name not in been]
        within = [[end for end in ends if end.multiply_adds <= times * limit] for times in SLACK]
        starts = {start.cut: start for start in map(self._start, filter(None, within))}
        for start in starts.values():
            if start.multiply_adds() <= limit:
                yield start
            elif "filters" in self._pulls:
                yield from self._narrower(start, limit, "start")

    def _start(self, within: Sequence[End]) -> _Offer:
        end = min(within, key=lambda end: end.squared_error).name
        if end not in self._unpruned:
            self._unpruned[end] = self._at("start", Cut(end), self._unfitted(end, copies=True), _NOTHING)
        return self._unpruned[end]

    def _narrower(self, now: _Offer, limit: int, lever: str = "filters") -> Iterator[_Offer]:
        """Yield the network without its least relevant filters."""
        order = self._order(now)
        size = bisect_left(range(len(order)), -limit, key=lambda size: -now.multiply_adds(order[:size]))
        if now.multiply_adds(gone := order[:size]) <= limit:
            yield self._without(now, gone, lever)

    def _order(self, now: _Offer) -> np.ndarray:
        """Return the filters that can go, those with the least relevance first."""
        if len(now.removed) == 0 and now.cut in self._orders:
            return self._orders[now.cut]
        network = now.network
        scores = network.flat(self._criterion(network.model, self._images, self._labels).filters)
        shares = class_shares(scores, self._labels.numpy(), network.layer_of).sum(axis=0)
        left = np.flatnonzero(network.active)
        order = take(left[np.argsort(shares[left], kind="stable")], len(left), network.layer_of, network.active)
        if len(now.removed) == 0:
            self._orders[now.cut] = order
        return order

    def _earlier(self, now: _Offer, limit: int) -> Iterator[_Offer]:
        """Yield the best of the network's earlier ends."""
        found = ends(now.network.model.backbone, self._images, self._labels, self._fold)[:-1]
        if within := [end for end in found if end.multiply_adds <= limit]:
            end, skipped = min(within, key=lambda end: end.squared_error).name, Cut.parse(now.cut).skipped
            before = tuple(name for name in skipped if self._places[name] < self._places[end])
            yield self._moved("end", now, Cut(end, before))

    def _without_block(self, now: _Offer, limit: int) -> Iterator[_Offer]:
        """Yield the network without the residual block that changes least."""
        trunk = now.network.model.backbone
        layers = trace(trunk)
        blocks = {name: branch for name, branch in identity_blocks(layers).items() if name != layers[-1].name}
        if blocks:
            changes, cut = self._block_changes(trunk, blocks), Cut.parse(now.cut)
            shorter = self._moved("block", now, Cut(cut.end, (*cut.skipped, min(changes, key=changes.get))))
            yield from [shorter] if shorter.multiply_adds() <= limit else self._narrower(shorter, limit, "block")

    def _branches(self, trunk: nn.Module, blocks: dict[str, tuple[str, ...]]) -> dict[str, float]:
        """Return, by block, how much its branch adds to its shortcut."""
        changes = {}

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in blocks:
                branch = blocks[layer.name][0]
                (shortcut,) = set(layer.inputs) - {branch}
                added, there = (sum(live[name].square().sum().item() for live in lives) for name in (branch, shortcut))
                changes[layer.name] = added / there if there else math.inf

        with torch.no_grad():
            run_together(trace(trunk), batched(self._images, device_of(self._trunk)), visit)
        return changes

    def _unlikeness(self, trunk: nn.Module, blocks: dict[str, tuple[str, ...]]) -> dict[str, float]:
        """Return, by block, how unlike the trunk's features are without it."""
        features = pooled_features(trunk, self._images)
        return {
            block: 1 - cka(features, pooled_features(without_blocks(trunk, [block]), self._images)) for block in blocks
        }

    def _moved(self, lever: str, now: _Offer, cut: Cut) -> _Offer:
        """Return the present network cut in another place, without the filters that it has lost."""
        other = self._unfitted(str(cut), copies=True)
        number = np.full(now.network.n_filters, -1)  # in the other network; -1 for filters that it has not
        for name, groups in other.coupling.filters.items():
            number[now.network.coupling.filters[name]] = groups
        removed = number[now.removed]
        return self._at(lever, cut, other, removed[removed >= 0])

    def _at(self, lever: str, cut: Cut, unfitted: PrunedNetwork, removed: np.ndarray) -> _Offer:
        whole = []
        for name, cost in multiply_adds_by_layer(unfitted.model, self._images[:1]).items():
            module, reads = unfitted.model.get_submodule(name), unfitted.coupling.channels[name]
            if name == _HEAD:
                whole.append((cost // (1 + len(self._fold.unique())), [reads]))  # its copies cost nothing in the end
            elif module.groups == module.in_channels > 1:  # depthwise
                whole.append((cost, [unfitted.coupling.filters[name]]))
            else:
                whole.append((cost, [reads, unfitted.coupling.filters[name]]))
        return _Offer(lever, str(cut), *self._judged(unfitted, removed), whole, removed)

    def _without(self, now: _Offer, filters: np.ndarray, lever: str) -> _Offer:
        network, error = self._judged(now.network, filters)
        removed = np.append(now.removed, filters)
        return replace(now, lever=lever, network=network, error=error, removed=removed)

    def _judged(self, network: PrunedNetwork, filters: np.ndarray) -> tuple[PrunedNetwork, float]:
        """Return a network without these filters, and its cross-fitted error."""
        model, outputs = network.mended_without(filters)
        copies = torch.cat(outputs)[:, self._n_classes :].to(self._labels.device)
        error = squared_error(crossfitted_logits(copies, self._fold, self._n_classes), self._labels)
        return network.smaller(filters, model), error
