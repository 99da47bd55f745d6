"""Signals: what tells the controller how good a pruned network still is, on the calibration images alone."""

import numpy as np
import torch

from lrp_core.repair.out_of_fold import out_of_fold_logits
from lrp_core.utils.errors import check_choice
from lrp_core.utils.sites import AllReduce, single_site

MONITORED = ("cross-fitted", "training", "probability")


def monitored_accuracies(
    logits: torch.Tensor,
    targets: torch.Tensor,
    fold: torch.Tensor | None,
    n_outputs: int,
    monitored: str,
    all_reduce: AllReduce = single_site,
) -> np.ndarray:
    """Return the accuracy of each class that has images, as a signal has it, (n_classes,), float64.

    Args:
        logits: of a classifier and of the copies of its head beside it (:func:`lrp_core.repair.out_of_fold.with_out_of_fold_heads`),
            (N, n_outputs + k * n_classes).
        targets: each image's class as the classifier counts them, (N,).
        fold: each image's fold, (N,); not read by the signal "training".
        n_outputs: of the classifier; there may be more than classes with images.
        monitored: the accuracy of the copies that have not seen the image ("cross-fitted"), that of the classifier itself
            ("training", since these images may have trained it), or the mean of what the former take for the
            probability of the true class ("probability": their output and one over the number of classes, within 0..1).
        all_reduce: sums over images, over all places.

    Raises:
        ValueError: unknown signal.
    """
    check_choice("monitored accuracy", monitored, MONITORED)
    classes, labels = targets.unique(return_inverse=True)
    if monitored == "training":
        right = logits[:, :n_outputs].argmax(dim=1) == targets
    else:
        judged = out_of_fold_logits(logits[:, n_outputs:], fold, len(classes))
        if monitored == "cross-fitted":
            right = judged.argmax(dim=1) == labels
        else:
            right = (judged.double()[torch.arange(len(labels)), labels] + 1 / len(classes)).clamp(0, 1)
    return (all_reduce(labels.bincount(right.double())) / all_reduce(labels.bincount().double())).numpy()
