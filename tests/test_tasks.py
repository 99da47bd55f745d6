"""Accuracy on the scarce images by shortcut, against the whole pruned network."""

import numpy as np
import pytest
import torch
from networks import IMAGE_SIZE, network

from lrp_core.criteria import criterion
from lrp_core.methods import class_shares
from lrp_core.pruning import PrunedNetwork
from lrp_core.tasks import ScarceTask, signal_accuracies


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet121", "efficientnet-lite0"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_accuracy_without_filters_of_networks_with_branches(name, layout):
    """Probabilities tell more than accuracies: a wrong channel, or a branch left as it was, would show."""
    size, rng = IMAGE_SIZE.get(name, 32), np.random.default_rng(0)
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    model = network(name, n_classes=6).to(memory_format=layout)  # three heads of two classes
    labels, fold = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    pruned = PrunedNetwork(model, images[:1])
    task = ScarceTask(pruned, images, labels, fold, criterion("weight", 2, 0), "probability")
    for _ in range(2):
        left = np.flatnonzero(pruned.active)
        layer = rng.choice(pruned.layer_of[left])
        for filters in (rng.choice(left, 12, replace=False), left[pruned.layer_of[left] == layer][1:4], left[1:3]):
            with torch.no_grad():
                logits = pruned.without(filters)(images)
            want = signal_accuracies(logits, labels, fold, 2, "probability")
            np.testing.assert_allclose(task.accuracy(filters), want, rtol=1e-4)
        task.prune(filters)


def test_a_layer_without_any_score_goes_first():
    scores, labels = np.array([[0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 2.0, 2.0]]), np.array([0, 1])
    shares = class_shares(scores, labels, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(shares, [[0, 0, 1 / 8, 3 / 8], [0, 0, 1 / 4, 1 / 4]])
