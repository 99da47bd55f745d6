"""What a network would cost without some filters, against the smaller network itself."""

import numpy as np
import pytest
import torch
from networks import Branches, Repeating, depthwise_network, draw_images, network, settle
from tasks import CifarResNet
from torch import nn
from torch.nn import functional as F

from lrp_core.control.cost import cost_kept, layer_costs, parameter_costs, savings
from lrp_core.metrics.cost import multiply_adds, n_parameters
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.reconstruction import Reconstruction

NAMES = ["resnet18", "mobilenet_v2", "densenet121", "squeezenet1_1"]
SMALL = {
    "branches": Branches,
    "repeating": Repeating,
    "depthwise": depthwise_network,
    "option A": lambda: CifarResNet(1),
    "flattened": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 4, bias=False),
    ),
}  # fmt: skip


def drawn(name):
    """A network in float32, and an image."""
    if name in SMALL:
        size = 32 if name in ("depthwise", "option A") else 10
        return settle(SMALL[name]()).float(), torch.zeros(1, 3, size, size)
    return network(name), draw_images(name, 1)


def biases_to_come(model):
    """What reconstruction may add: a bias for each filter of a convolution without groups that has none."""
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.groups == 1]
    return sum(part.out_channels for part in convolutions if part.bias is None)


@pytest.mark.parametrize("name", [*NAMES, *SMALL])
def test_costs_are_those_of_the_smaller_network(name):
    model, image = drawn(name)
    pruned = PrunedNetwork(model, image)
    costs, parameters = layer_costs(pruned, image), parameter_costs(pruned)
    for share in (0, 0.6):
        generator = np.random.default_rng(0)
        layers = [np.flatnonzero(pruned.layer_of == layer) for layer in range(len(pruned.layer_names))]
        gone = np.concatenate([generator.choice(of, int(share * len(of)), replace=False) for of in layers])
        smaller, kept = pruned.without(gone), ~np.isin(np.arange(pruned.n_filters), gone)
        assert cost_kept(costs, kept) == multiply_adds(smaller, image)
        assert cost_kept(parameters, kept) == n_parameters(smaller) + biases_to_come(smaller)


def test_after_reconstruction_no_bias_is_to_come():
    """All convolutions without one get one, but for those that read what they have read before."""
    model, image = drawn("option A")
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pruned = PrunedNetwork(model, images, [Reconstruction(model, images)])
    gone = np.arange(0, pruned.n_filters, 3)
    smaller, kept = pruned.without(gone), ~np.isin(np.arange(pruned.n_filters), gone)
    assert biases_to_come(smaller) == smaller.conv1.out_channels
    assert cost_kept(parameter_costs(pruned), kept) == n_parameters(smaller) + smaller.conv1.out_channels
    assert cost_kept(layer_costs(pruned, image), kept) == multiply_adds(smaller, image)


def test_of_heads_that_stand_side_by_side_one_counts():
    model, image = drawn("flattened")
    whole = multiply_adds(model, image)
    wide = nn.Sequential(*list(model)[:-1], settle(nn.Linear(20, 12, bias=False)))
    pruned = PrunedNetwork(wide, image)
    kept = np.ones(pruned.n_filters, dtype=bool)
    assert cost_kept(layer_costs(pruned, image, heads=3), kept) == whole == multiply_adds(wide, image) - 8 * 20


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", *SMALL])
@pytest.mark.parametrize("share", [0, 0.5])
def test_what_a_filter_saves_is_the_difference_that_it_makes(name, share):
    """Some filters are gone already; of the others, one at a time."""
    model, image = drawn(name)
    pruned = PrunedNetwork(model, image)
    generator, kept = np.random.default_rng(1), np.ones(pruned.n_filters, dtype=bool)
    for layer in range(len(pruned.layer_names)):
        of = np.flatnonzero(pruned.layer_of == layer)
        kept[generator.choice(of, int(share * len(of)), replace=False)] = False
    some = generator.permutation(np.flatnonzero(kept))[:40]
    for costs in (layer_costs(pruned, image), parameter_costs(pruned)):
        saved = savings(costs, kept)
        assert saved.shape == (pruned.n_filters,)
        for filter_ in some:
            without = kept.copy()
            without[filter_] = False
            assert saved[filter_] == pytest.approx(cost_kept(costs, kept) - cost_kept(costs, without), rel=1e-9)
        assert len({round(value) for value in saved[some]}) > 1


class ReadsItself(nn.Module):
    """A block that is one convolution: its filters and what they read are coupled."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1, bias=False), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.branch(x)).mean((2, 3)))


def test_where_a_layer_reads_and_makes_the_same_channels_the_saving_counts_where_they_meet_twice():
    model, image = settle(ReadsItself()), torch.zeros(1, 3, 8, 8)
    pruned = PrunedNetwork(model, image)
    costs, kept = layer_costs(pruned, image), np.arange(6) > 0
    difference = multiply_adds(model, image) - multiply_adds(pruned.without(np.array([0])), image)
    assert cost_kept(costs, np.ones(6, dtype=bool)) - cost_kept(costs, kept) == difference
    assert savings(costs, np.ones(6, dtype=bool))[0] == difference + 6 * 6  # one weight, at 6 x 6 positions
