"""What pruning costs on images that had no part in it: the whole of it is done again without each fold of the images.

Order, reconstruction, refitted head and the choice of every filter see the other folds alone. The fold judges the
networks that this gives, at every size (Cawley and Talbot, On Over-fitting in Model Selection, JMLR 2010: whatever
chooses by images has to stand inside the folds). Where the last layer was fitted to the images, it is fitted anew
inside the folds, too.
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
    """What held-out images saw.

    Attributes:
        limits: of multiply-adds, descending, (n_sizes,).
        before: whether the unpruned network is right, by image, (N,), boolean.
        after: whether the pruned ones are, by size and image, (n_sizes, N), boolean.
        labels: in 0..K-1, each class present, (N,).
        groups: of the images, (N,).
        n_folds: that judged in turn.
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
        """Return what the images say of the network at each size."""
        return [self._of(after) for after in self.after]

    def unpruned(self) -> Estimate:
        """Return what the images say of the unpruned network."""
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
    """Prune without each fold, and let the fold judge.

    Args:
        images: (N, C, H, W), normalised.
        labels: theirs, (N,).
        fold: of the images, (N,), in 0..k-1.
        groups: of the images, (N,); images of one are in one fold.
        classifier: from a fold to the unpruned classifier for it, and the labels as its outputs are numbered, (N,).
        descent: from a classifier, the images to prune with, their labels and groups to what goes down from it.
        until: whether a descent may end.
        progress: is told how much of a descent has been done, from 0 to 1 each.
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
        right[:, (fold == k).numpy()] = rows[: len(limits)]
    numbers = labels.unique(return_inverse=True)[1]
    return HeldOut(np.array(limits), before, right, numbers.numpy(), groups.numpy(), n_folds, all_reduce)


def was_fitted(own: np.ndarray, out_of_fold: np.ndarray, all_reduce: AllReduce) -> bool:
    """Return whether a last layer is so much better than heads that have not seen the images that it must have.

    McNemar's test, one-sided and exact: of the images that one of them gets right and the other does not, how many are
    the last layer's?

    Args:
        own: whether the network is right, (N,), boolean.
        out_of_fold: whether heads are right that were fitted without the image, (N,), boolean.
        all_reduce: sums over images, over all sites.
    """
    mine, theirs = float((own & ~out_of_fold).sum()), float((out_of_fold & ~own).sum())
    mine, theirs = (int(part) for part in all_reduce(torch.tensor([mine, theirs], dtype=torch.float64)).tolist())
    disagreeing = mine + theirs
    p = sum(comb(disagreeing, count) for count in range(mine, disagreeing + 1)) / 2**disagreeing
    return p < SIGNIFICANCE
