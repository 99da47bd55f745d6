"""Cross-validation of the whole pruning: repeat it without each fold of the images, and evaluate on that fold.

Order, reconstruction, refitted head and the choice of every filter use only the other folds. The fold then evaluates
the resulting networks at every size. Every choice made with images has to be repeated in each fold (Cawley and Talbot,
On Over-fitting in Model Selection, JMLR 2010). If the last layer was fitted to the images, it is refitted in each fold,
too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import torch
from torch import nn

from lrp_core.control.descent import Descent
from lrp_core.metrics.accuracy import predict
from lrp_core.metrics.estimate import Estimate, estimate
from lrp_core.utils.sites import AllReduce

SIGNIFICANCE = 0.05  # of the test whether the last layer was fitted to the images


@dataclass(frozen=True)
class HeldOut:
    """Results on held-out images.

    Attributes:
        limits: of multiply-adds, descending, (n_sizes,).
        before: whether the unpruned network is right, by image, (N,), boolean.
        after: whether the pruned networks are right, by size and image, (n_sizes, N), boolean.
        labels: in 0..K-1, each class present, (N,).
        groups: of the images, (N,).
        n_folds: the number of folds.
        all_reduce: sums over images, over all sites.
    """

    limits: np.ndarray
    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    n_folds: int
    all_reduce: AllReduce

    def estimates(self) -> list[Estimate]:
        """Return the estimate of the network at each size."""
        return [self._of(after) for after in self.after]

    def unpruned(self) -> Estimate:
        """Return the estimate of the unpruned network."""
        return replace(self._of(self.before), drop_interval=(0.0, 0.0))

    def _of(self, after: np.ndarray) -> Estimate:
        return estimate(self.before, after, self.labels, self.groups, self.all_reduce, self.n_folds)


def held_out(
    images: torch.Tensor,
    labels: torch.Tensor,
    fold: torch.Tensor,
    groups: torch.Tensor,
    classifier: Callable[[int], tuple[nn.Module, torch.Tensor]],
    descent: Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], Descent],
    until: Callable[[Descent], bool],
    progress: Callable[[float], None],
    all_reduce: AllReduce,
) -> HeldOut:
    """Prune without each fold, and evaluate on that fold.

    Args:
        images: (N, C, H, W), normalised.
        labels: of the images, (N,).
        fold: of the images, (N,), in 0..k-1.
        groups: of the images, (N,); images of one group are in one fold.
        classifier: maps a fold to its unpruned classifier, and the labels in the numbering of its outputs, (N,).
        descent: maps a classifier, the images to prune with, their labels and groups to a descent.
        until: whether a descent may end.
        progress: called with the finished fraction of each descent, from 0 to 1.
        all_reduce: sums over images, over all sites.
    """
    before, after, limits = np.zeros(len(images), dtype=bool), [], None
    n_folds = int(fold.max()) + 1
    for k in range(n_folds):
        held = fold == k
        model, numbers = classifier(k)
        wanted = numbers[held]
        before[held] = (predict(model, images[held]).argmax(dim=1) == wanted).numpy()
        rows, found = [], []
        for stop in descent(model, images[~held], numbers[~held], groups[~held]).walk(until):
            rows.append((predict(stop.model, images[held]).argmax(dim=1) == wanted).numpy())
            found.append(stop.limit)
            progress(1 - stop.multiply_adds)
        progress(1)
        limits = found if limits is None or len(found) < len(limits) else limits
        after.append(rows)
    right = np.zeros((len(limits), len(images)), dtype=bool)
    for k, rows in enumerate(after):
        for at_limit, row in zip(right, rows, strict=False):  # no row if the first limit was out of reach
            at_limit[(fold == k).numpy()] = row
    numbers = labels.unique(return_inverse=True)[1]
    return HeldOut(np.array(limits), before, right, numbers.numpy(), groups.numpy(), n_folds, all_reduce)


def was_fitted(own: np.ndarray, out_of_fold: np.ndarray, all_reduce: AllReduce) -> bool:
    """Return whether the last layer was fitted to the images, judging by its lead over heads that have not seen them.

    McNemar's test, one-sided and exact: of the images that only one of them classifies correctly, how many does the
    last layer classify correctly?

    Args:
        own: whether the network is right, (N,), boolean.
        out_of_fold: whether the head that was fitted without the image is right, (N,), boolean.
        all_reduce: sums over images, over all sites.
    """
    mine, theirs = float((own & ~out_of_fold).sum()), float((out_of_fold & ~own).sum())
    mine, theirs = (int(part) for part in all_reduce(torch.tensor([mine, theirs], dtype=torch.float64)).tolist())
    disagreeing = mine + theirs
    p = sum(comb(disagreeing, count) for count in range(mine, disagreeing + 1)) / 2**disagreeing
    return p < SIGNIFICANCE
