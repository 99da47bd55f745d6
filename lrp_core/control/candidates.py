"""Candidates of the budget search: networks made from a backbone, with a head, and evaluated.

All of them are reconstructed towards the outputs of the whole backbone (:mod:`lrp_core.repair.reconstruction`), and
their heads are refitted (:mod:`lrp_core.repair.refit`).
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from lrp_core.control.controller import NO_FILTERS, first_removable
from lrp_core.control.cost import LayerCost, cost_kept, layer_costs
from lrp_core.graph.explicit import with_modules
from lrp_core.graph.truncation import Truncation, classifier, truncated
from lrp_core.importance.by_class import class_shares
from lrp_core.importance.criterion import Criterion
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import out_of_fold_logits, with_out_of_fold_heads
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.repair.refit import Refit
from lrp_core.repair.ridge_head import pooled_features, squared_error

_HEAD = "head"  # name of a classifier's last layer


@dataclass(frozen=True)
class Candidate:
    """A network that an action offers.

    Attributes:
        action: name of the action.
        truncation: the remaining depth of the backbone (:class:`lrp_core.graph.truncation.Truncation`), as text.
        network: with out-of-fold heads after its own head.
        error: cross-fitted (:func:`lrp_core.repair.ridge_head.squared_error`).
        costs: of the network's layers before filters were removed.
        removed: its removed filters, in the order of removal, numbered as in the network of that depth.
    """

    action: str
    truncation: str
    network: PrunedNetwork
    error: float
    costs: list[LayerCost]
    removed: np.ndarray

    def multiply_adds(self, filters: np.ndarray = NO_FILTERS) -> int:
        """Return the multiply-adds for one image if these filters are removed too."""
        kept = self.network.active.copy()
        kept[filters] = False
        return cost_kept(self.costs, kept)


class CandidateBuilder:
    """Makes smaller networks from a backbone, and evaluates them by out-of-fold heads.

    Attributes:
        backbone, images, labels, fold: as given.
    """

    def __init__(
        self, backbone: nn.Module, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, criterion: Criterion
    ):
        """Run the whole backbone over the calibration images; arguments as for :class:`BudgetSearch`."""
        backbone = with_modules(backbone)  # so that parts of it can be taken out of a smaller network
        self.backbone, self.images, self.labels, self.fold = backbone, images, labels, fold
        self._criterion, self._n_classes = criterion, int(labels.max()) + 1
        self._reconstruction = Reconstruction(nn.Sequential(OrderedDict(backbone=backbone)), images)
        self._unpruned: dict[str, Candidate] = {}  # by exit
        self._removal_orders: dict[str, np.ndarray] = {}  # of networks that have lost no filter, by truncation

    def unfitted(self, truncation: str, out_of_fold: bool) -> PrunedNetwork:
        """Return the classifier of a truncation, with zero heads, which are fitted when filters (or none) are removed.

        Args:
            truncation: as text.
            out_of_fold: whether it also has the out-of-fold heads.
        """
        part = truncated(self.backbone, truncation)
        n_features, n_outputs = pooled_features(part, self.images[:1]).shape[1], self._n_classes
        model = classifier(part, torch.zeros(n_outputs, n_features))
        if out_of_fold:
            model = with_out_of_fold_heads(model, torch.zeros(int(self.fold.max()) + 1, n_outputs, n_features))
        return PrunedNetwork(model, self.images, [self._reconstruction, Refit(_HEAD, self.labels, self.fold)])

    def unpruned(self, exit_: str) -> Candidate:
        """Return the backbone up to an exit, with all of its filters: a possible start of the search."""
        if exit_ not in self._unpruned:
            truncation = Truncation(exit_)
            network = self.unfitted(str(truncation), out_of_fold=True)
            self._unpruned[exit_] = self._judged_anew("start", truncation, network, NO_FILTERS)
        return self._unpruned[exit_]

    def at_truncation(self, action: str, now: Candidate, truncation: Truncation) -> Candidate:
        """Return the network at another truncation, without its removed filters."""
        other = self.unfitted(str(truncation), out_of_fold=True)
        number = np.full(now.network.n_filters, -1)  # in the other network; -1 for filters that it does not have
        for name, groups in other.coupling.filters.items():
            number[now.network.coupling.filters[name]] = groups
        removed = number[now.removed]
        return self._judged_anew(action, truncation, other, removed[removed >= 0])

    def without(self, action: str, now: Candidate, filters: np.ndarray) -> Candidate:
        """Return the network with these filters removed too."""
        network, error = self._judged(now.network, filters)
        return replace(now, action=action, network=network, error=error, removed=np.append(now.removed, filters))

    def removal_order(self, now: Candidate) -> np.ndarray:
        """Return the filters that can be removed, lowest scores first."""
        if len(now.removed) == 0 and now.truncation in self._removal_orders:
            return self._removal_orders[now.truncation]
        network = now.network
        scores = network.flat(self._criterion(network.model, self.images, self.labels).filters)
        shares = class_shares(scores, self.labels.numpy(), network.layer_of).sum(axis=0)
        left = np.flatnonzero(network.active)
        ascending = left[np.argsort(shares[left], kind="stable")]
        order = first_removable(ascending, len(left), network.layer_of, network.active)
        if len(now.removed) == 0:
            self._removal_orders[now.truncation] = order
        return order

    def _judged_anew(
        self, action: str, truncation: Truncation, unfitted: PrunedNetwork, removed: np.ndarray
    ) -> Candidate:
        costs = layer_costs(unfitted, self.images[:1], heads=1 + len(self.fold.unique()))
        return Candidate(action, str(truncation), *self._judged(unfitted, removed), costs, removed)

    def _judged(self, network: PrunedNetwork, filters: np.ndarray) -> tuple[PrunedNetwork, float]:
        """Return a network without these filters, and its cross-fitted error."""
        model, outputs = network.compensated_without(filters)
        out_of_fold = torch.cat(outputs)[:, self._n_classes :].to(self.labels.device)
        error = squared_error(out_of_fold_logits(out_of_fold, self.fold, self._n_classes), self.labels)
        return network.smaller(filters, model), error
