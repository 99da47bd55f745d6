"""Monitored accuracy: tells the controller how good a pruned network is, from the calibration images only."""

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
    """Return the monitored accuracy of each class that has images, (n_classes,), float64.

    Args:
        logits: of a classifier, followed by those of its out-of-fold heads, (N, n_outputs + k * n_classes)
            (:func:`lrp_core.repair.out_of_fold.with_out_of_fold_heads`).
        targets: each image's class in the classifier's numbering, (N,).
        fold: each image's fold, (N,); not used for "training".
        n_outputs: of the classifier; may exceed the number of classes with images.
        monitored: "cross-fitted" is the accuracy of the out-of-fold heads, each on the images that it has not seen.
            "training" is that of the classifier itself, which these images may have trained. "probability" is the mean
            probability of the true class by the out-of-fold heads (their output plus one over the number of classes,
            within 0..1).
        all_reduce: sums over images, over all sites.

    Raises:
        ValueError: unknown monitored accuracy.
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
