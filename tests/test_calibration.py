"""Accuracy on the calibration images by shortcut, against the whole pruned network."""

import numpy as np
import pytest
import torch
from networks import IMAGE_SIZE, network

from lrp_core.control.calibration import CalibrationTask
from lrp_core.control.monitored import monitored_accuracies
from lrp_core.importance.by_class import class_shares
from lrp_core.importance.registry import criterion
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.reconstruction import Reconstruction


def scaled(model, images):
    """Make outputs small, as those of fitted heads are: beyond 0 and 1 probabilities tell nothing."""
    model.head.weight.mul_(0.1 / model(images).abs().max())
    return model


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet121", "efficientnet-lite0"])
@pytest.mark.parametrize(
    ("layout", "reconstruct"),
    [(torch.contiguous_format, False), (torch.channels_last, False), (torch.channels_last, True)],
)
def test_accuracy_without_filters_of_networks_with_branches(name, layout, reconstruct):
    """What is kept from step to step and evaluation to evaluation, against the whole network pruned in one go.

    Probabilities tell more than accuracies: a wrong channel, or a branch left as it was, would show.
    """
    size, rng = IMAGE_SIZE.get(name, 32), np.random.default_rng(0)
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    model = scaled(network(name, n_classes=6).to(memory_format=layout), images)  # three heads of two classes
    labels, fold = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    compensations = [Reconstruction(model, images)] if reconstruct else []
    pruned = PrunedNetwork(model, images, compensations)
    task = CalibrationTask(pruned, images, labels, 2, fold, criterion("weight", 2, 0), "probability")
    for _ in range(3):
        left = np.flatnonzero(pruned.active)
        layer = rng.choice(pruned.layer_of[left])
        for filters in (rng.choice(left, 12, replace=False), left[pruned.layer_of[left] == layer][1:4], left[1:3]):
            got = task.accuracy(filters)
            other = PrunedNetwork(model, images, compensations)  # in one go, and from the images on
            other.remove(np.append(np.flatnonzero(~pruned.active), filters))
            with torch.no_grad():
                logits = other.model(images)
            want = monitored_accuracies(logits, labels, fold, 2, "probability")
            np.testing.assert_allclose(got, want, rtol=1e-4)
        task.prune(filters)  # the last that were evaluated: what was kept of them goes on
        with torch.no_grad():
            torch.testing.assert_close(task.network.model(images), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reconstruct", [False, True])
def test_what_was_evaluated_does_not_stand_in_for_what_was_removed(reconstruct):
    """Some filters are evaluated, others removed: the next evaluation starts from the network as it is."""
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = scaled(network("vgg11", n_classes=6), images)
    labels, fold = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    compensations = [Reconstruction(model, images)] if reconstruct else []
    pruned = PrunedNetwork(model, images, compensations)
    task = CalibrationTask(pruned, images, labels, 2, fold, criterion("weight", 2, 0), "probability")
    first = np.flatnonzero(pruned.layer_of == 0)
    evaluated, removed, last = first[:40], first[20:60], np.flatnonzero(pruned.layer_of == 3)[:100]
    task.accuracy(evaluated)
    task.prune(removed)
    other = PrunedNetwork(model, images, compensations)
    other.remove(removed)
    torch.testing.assert_close(task.network.model(images), other.model(images), rtol=1e-4, atol=1e-5)
    got = task.accuracy(last)
    other.remove(last)
    want = monitored_accuracies(other.model(images), labels, fold, 2, "probability")
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_layer_without_any_score_goes_first():
    scores, labels = np.array([[0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 2.0, 2.0]]), np.array([0, 1])
    shares = class_shares(scores, labels, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(shares, [[0, 0, 1 / 8, 3 / 8], [0, 0, 1 / 4, 1 / 4]])
