"""Monitored accuracies, by hand."""

import numpy as np
import pytest
import torch

from lrp_core.control.monitored import monitored_accuracies


def test_accuracies_by_hand():
    """Two classes, two folds; heads: full, without fold 0, without fold 1."""
    labels, fold = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    right, wrong = [0.4, -0.3], [-0.3, 0.4]
    logits = torch.tensor(
        [[*right, *right, *wrong], [*right, *right, *wrong], [*wrong, *right, *wrong], [*wrong, *right, *wrong]]
    )
    # Image 0 is judged by the second head, image 1 by the third, and so on.
    assert monitored_accuracies(logits, labels, fold, 2, "training").tolist() == [1.0, 1.0]
    assert monitored_accuracies(logits, labels, fold, 2, "cross-fitted").tolist() == [0.5, 0.5]
    got = monitored_accuracies(logits, labels, fold, 2, "probability")
    np.testing.assert_allclose(got, [((0.5 + 0.4) + (0.5 - 0.3)) / 2] * 2, rtol=1e-6)
    got = monitored_accuracies(2 * logits, labels, fold, 2, "probability")  # beyond 0 and 1: no more than sure
    np.testing.assert_allclose(got, [(1 + 0) / 2] * 2)
    with pytest.raises(ValueError, match="unknown monitored accuracy 'test'; choose one of: cross-fitted, prob"):
        monitored_accuracies(logits, labels, fold, 2, "test")


def test_accuracies_of_a_network_with_more_outputs_than_classes_with_images():
    """Outputs 0 to 4, images of classes 1 and 3 alone; an out-of-fold head knows these two, in this order."""
    targets, fold = torch.tensor([1, 3, 1, 3]), torch.tensor([0, 0, 1, 1])
    own = torch.eye(5)[[1, 3, 4, 1]]  # right, right, wrong, wrong
    out_of_fold = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]] * 4).flatten(1)  # the first says class 1, the second class 3
    logits = torch.cat([own, out_of_fold], dim=1)
    assert monitored_accuracies(logits, targets, fold, 5, "training").tolist() == [0.5, 0.5]
    assert monitored_accuracies(logits, targets, fold, 5, "cross-fitted").tolist() == [0.5, 0.5]
    assert monitored_accuracies(logits, targets, 1 - fold, 5, "cross-fitted").tolist() == [0.5, 0.5]
    assert monitored_accuracies(logits, targets, torch.tensor([0, 1, 0, 1]), 5, "cross-fitted").tolist() == [1.0, 1.0]
