"""The start of all runs: a prepared workspace with its classifiers, whole or truncated."""

import copy

from torch import nn

from lrp_core.control import methods
from lrp_core.control.budget_search import BudgetSearch
from lrp_core.control.methods import Method
from lrp_core.graph.exits import features_by_exit
from lrp_core.graph.truncation import classifier, truncated
from lrp_core.importance.registry import criterion
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import OutOfFoldHeads, with_out_of_fold_heads
from lrp_core.repair.ridge_head import fit_heads
from lrp_core.study.data.workspace import Workspace
from lrp_core.study.paths import ROOT
from lrp_core.utils.devices import nth_device

STAGES = "baseline", "dynamic", "budget_search"  # of pruning, each a folder


class Experiment(Workspace):
    """A prepared workspace on which methods are run."""

    def __init__(
        self, workspace: str, backbone: str, weights: str, threads: int = 1, jobs: int = 1, device: str = "auto"
    ):
        """Open a workspace for a backbone; ``jobs`` runs go at a time, which changes no result. The rest is its own."""
        super().__init__(workspace, backbone, weights, threads, device)
        self.finished = ROOT / "data" / "finished_runs"  # of all workspaces: their names tell what they depend on
        self.jobs = jobs

    def start(self, seed: int, truncation: str = "") -> tuple[nn.Module, OutOfFoldHeads]:
        """Return the unpruned classifier of a seed, and its out-of-fold heads.

        Args:
            seed: of the split.
            truncation: of the backbone (:class:`lrp_core.graph.truncation.Truncation`), whose head is then fitted to
                what is left of it; "" for the whole one.
        """
        if not truncation:
            return self.classifier(seed), self.out_of_fold_heads(seed)
        calibration, part = self.samples(seed, "calibration"), truncated(self.backbone, truncation)
        *_, features = features_by_exit(part, calibration.images).values()
        heads = fit_heads(features, calibration.labels, self.out_of_fold_heads(seed).fold)
        return classifier(part, heads.weight), heads.out_of_fold

    def budget_search(self, seed: int, how: Method) -> BudgetSearch:
        """Return the search over a descending schedule of budgets, with the actions of a method."""
        calibration, fold = self.samples(seed, "calibration"), self.out_of_fold_heads(seed).fold
        score = criterion(how.criterion, len(self.class_names), seed)
        return BudgetSearch(self.backbone, calibration.images, calibration.labels, fold, score, how.actions, how.blocks)

    def network(
        self, seed: int, how: Method = Method(), truncation: str = "", out_of_fold: bool = False
    ) -> PrunedNetwork:
        """Return a seed's unpruned classifier, ready to be pruned by a method.

        Args:
            seed: of the split.
            how: the method.
            truncation: as for :meth:`start`.
            out_of_fold: whether the out-of-fold heads stand beside the head.
        """
        if how.actions:
            return self.budget_search(seed, how).network(truncation, out_of_fold)
        calibration, (model, heads) = self.samples(seed, "calibration"), self.start(seed, truncation)
        model = with_out_of_fold_heads(model, heads.weight) if out_of_fold else model
        return methods.unpruned(model, calibration.images, calibration.labels, heads.fold, how)

    def at(self, n: int) -> "Experiment":
        """Return this experiment for the n-th of several runs at a time: on a GPU of its own, where there are some."""
        if (device := nth_device(self.device, n)) == self.device:
            return self
        other = copy.copy(self)
        other.__dict__.pop("backbone", None)  # is on the first GPU
        other.device = device
        return other
