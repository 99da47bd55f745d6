import copy

import numpy as np
import pytest
import torch
import torch_pruning
from conftest import miniature_vgg
from masked import masked_run
from networks import BACKBONES, Branches, Repeating, depthwise_network, draw_images, network, settle
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from lrp_core.graph.truncation import classifier
from lrp_core.metrics.cost import multiply_adds, n_parameters
from lrp_core.pruning.dependency import couple
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.surgery import remove_filters


def masked_output(model, filters, images):
    """The plain way: the whole network, with the channels set to 0 behind the ReLU that follows the convolution."""
    model, layers = copy.deepcopy(model), dict(model.named_modules())
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.ReLU)]
    for name, indices in filters.items():
        relu = names[names.index(name) + 1]
        assert isinstance(layers[relu], nn.ReLU)

        def silence(module, inputs, output, indices=indices):
            output = output.clone()
            output[:, indices] = 0
            return output

        model.get_submodule(relu).register_forward_hook(silence)
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("flatten_positions", [False, True])
def test_smaller_network_equals_masked_one(images, flatten_positions):
    model = miniature_vgg(flatten_positions=flatten_positions)
    filters = {"conv1": [0, 5], "conv2": [1, 2, 7], "conv3": [0, 3, 4, 9]}
    smaller = remove_filters(model, filters, images[:1])
    assert torch.allclose(smaller(images), masked_output(model, filters, images), rtol=1e-12)
    assert [smaller.conv1.out_channels, smaller.conv2.in_channels, smaller.conv2.out_channels] == [4, 4, 5]
    assert smaller.head.in_features == (24 if flatten_positions else 6)
    assert not any(parameter.requires_grad for parameter in smaller.parameters())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_pruned_vgg16_equals_masked_vgg16(vgg16, rate):
    generator = torch.Generator().manual_seed(0)
    model = classifier(vgg16, torch.randn(4, 512, generator=generator) / 512)
    images = torch.rand(2, 3, 32, 32, generator=generator) * 255 - 110
    filters = {
        name: torch.randperm(layer.out_channels, generator=generator)[: int(rate * layer.out_channels)].tolist()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    smaller = remove_filters(model, filters, images[:1])
    expected = masked_output(model, filters, images)
    assert (smaller(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert n_parameters(smaller) < n_parameters(model)
    assert multiply_adds(smaller, images[:1]) < multiply_adds(model, images[:1])


@pytest.mark.parametrize("name", BACKBONES)
def test_every_architecture_shrinks_to_what_it_is_when_masked(name):
    """At 10, 50 and 90 % of each layer's groups, float32; silenced behind normalisation and activation."""
    model, images = network(name), draw_images(name)
    whole = PrunedNetwork(model, images[:1])
    assert sum(map(len, whole.kept().values())) == sum(
        layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)
    )
    size = n_parameters(model)
    for rate in (0.1, 0.5, 0.9):
        generator = np.random.default_rng(0)
        layers = [np.flatnonzero(whole.layer_of == layer) for layer in range(len(whole.layer_names))]
        pruned = np.concatenate([generator.choice(groups, int(rate * len(groups)), replace=False) for groups in layers])
        smaller = whole.without(pruned)
        expected = masked_run(model, whole.coupling, np.isin(np.arange(whole.n_filters), pruned), images)
        assert (smaller(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert n_parameters(smaller) < size * (1 - 0.9 * rate)
        size = n_parameters(smaller) / (1 - 0.9 * rate) if rate < 0.5 else size


@pytest.mark.parametrize("name", [*BACKBONES, "branches", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5"])
def test_groups_are_those_of_torch_pruning(name):
    """Which filters are coupled to the first and the last filter of every convolution."""
    if name in BACKBONES:
        model, example = network(name), draw_images(name, 1)
    else:
        model = Branches() if name == "branches" else get_model(name, num_classes=4)
        model, example = settle(model), torch.zeros(1, 3, 32, 32)
    coupling = couple(model, example)
    theirs = copy.deepcopy(model).requires_grad_(True)  # it finds nothing in a frozen network
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, example)
    names = {module: name for name, module in theirs.named_modules()}
    for convolution, groups in coupling.filters.items():
        module = theirs.get_submodule(convolution)
        prune = graph.get_pruner_of_module(module).prune_out_channels
        for index in (0, len(groups) - 1):
            expected = {
                (names[dependency.target.module], i)
                for dependency, indices in graph.get_pruning_group(module, prune, idxs=[index])
                if isinstance(dependency.target.module, nn.Conv2d)
                and graph.is_out_channel_pruning_fn(dependency.handler)
                for i in indices
            }
            ours = {
                (other, i)
                for other, numbers in coupling.filters.items()
                for i in np.flatnonzero(numbers == groups[index]).tolist()
            }
            assert ours == expected, (convolution, index)


def test_grouped_convolutions_keep_their_groups_alike():
    """24 channels in 4 groups of 6 go to 16 in 4 groups of 4: filters of one index in each group are coupled."""
    model = depthwise_network()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smaller = remove_filters(model, {"depth2": [1], "grouped": [3, 6]}, images[:1])
    assert (smaller.depth2.groups, smaller.expand.out_channels) == (20, 20)
    assert (smaller.grouped.groups, smaller.grouped.in_channels, smaller.grouped.out_channels) == (4, 20, 8)
    masked = copy.deepcopy(model)
    masked.relu3.register_forward_hook(
        lambda module, inputs, output: output * (torch.arange(24) % 6 != 1).view(-1, 1, 1)
    )
    masked.relu4.register_forward_hook(
        lambda module, inputs, output: output * (torch.arange(16) % 4 < 2).view(-1, 1, 1)
    )
    assert torch.allclose(smaller(images), masked(images), rtol=1e-10)


def test_values_that_are_read_twice_shrink_twice():
    """x + x and [x, x]: the smaller network is the whole one with the filters' maps set to 0, and counts them once."""
    model = settle(Repeating()).double()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    filters = {"doubled": [0, 4], "beside": [1, 3], "joined": [6]}
    coupling = couple(model, images[:1])
    assert coupling.n_groups == 6 + 5 + 7
    smaller = remove_filters(model, filters, images[:1])
    assert [smaller.beside.in_channels, smaller.joined.in_channels, smaller.head.in_features] == [4, 6, 12]
    masked = model.read_once()
    for relu, name in (("relu1", "doubled"), ("relu2", "beside"), ("relu3", "joined")):
        kept = torch.ones(masked.get_submodule(name).out_channels)
        kept[filters[name]] = 0
        masked.get_submodule(relu).register_forward_hook(
            lambda _, inputs, output, kept=kept: output * kept.view(-1, 1, 1)
        )
    torch.testing.assert_close(smaller(images), masked(images))
    pruned = PrunedNetwork(model, images)
    pruned.remove(np.array([0, 4, 7, 9, 17]))
    torch.testing.assert_close(pruned.model(images), smaller(images))
    # Half of the network is run: what the layers behind "beside" read is handed in.
    values = [{"beside": model.beside(2 * F.relu(model.norm(model.doubled(images))))}]
    _, (output,) = PrunedNetwork(model, images).outputs_without(np.array([6, 8]), values)
    torch.testing.assert_close(output, remove_filters(model, {"beside": [0, 2]}, images[:1])(images))


def test_a_regnet_shrinks_to_what_it_is_when_masked():
    """Its blocks have grouped convolutions, and a projection where their size changes."""
    with torch.random.fork_rng():
        model = settle(get_model("regnet_x_400mf", num_classes=4)).double()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, generator = PrunedNetwork(model, images[:1]), np.random.default_rng(0)
    layers = [np.flatnonzero(whole.layer_of == layer) for layer in range(len(whole.layer_names))]
    pruned = np.concatenate([generator.choice(groups, len(groups) // 2, replace=False) for groups in layers])
    smaller = whole.without(pruned)
    expected = masked_run(model, whole.coupling, np.isin(np.arange(whole.n_filters), pruned), images)
    torch.testing.assert_close(smaller(images), expected)
    assert n_parameters(smaller) < 0.5 * n_parameters(model)


def test_relevance_of_a_group_is_the_sum_over_its_members():
    model, example = settle(Branches()), torch.zeros(1, 3, 8, 8)
    network_ = PrunedNetwork(model, example)
    by_layer = {
        name: torch.arange(len(groups)) * 10.0**i for i, (name, groups) in enumerate(network_.coupling.filters.items())
    }
    # stem 6, then a 4 and b 5 beside one another with c 9 added to them, then own 7
    expected = [0, 1, 2, 3, 4, 5]
    expected += [10 * i + 1000 * i for i in range(4)] + [100 * i + 1000 * (i + 4) for i in range(5)]
    expected += [10000 * i for i in range(7)]
    np.testing.assert_allclose(network_.flat(by_layer), expected)
    network_.remove(np.array([0, 7, 21]))
    by_layer = {name: torch.ones(len(kept)) for name, kept in network_.kept().items()}
    assert {name: len(values) for name, values in by_layer.items()} == {"stem": 5, "a": 3, "b": 5, "c": 8, "own": 6}
    flat = network_.flat(by_layer)
    assert np.flatnonzero(np.isnan(flat)).tolist() == [0, 7, 21]
    assert np.nansum(flat) == 5 + 2 * 8 + 6


def test_filters_of_the_networks_output_cannot_be_removed():
    model = settle(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    with pytest.raises(
        ValueError, match="filter 1 of '2' cannot be removed: its channel is the network's input or output"
    ):
        remove_filters(model, {"2": [1]}, torch.zeros(1, 3, 8, 8))
    network_ = PrunedNetwork(model, torch.zeros(1, 3, 8, 8))
    assert network_.n_filters == 5
    network_.remove(np.array([0, 1, 2, 3]))
    assert {name: len(kept) for name, kept in network_.kept().items()} == {"0": 1, "2": 4}
    with pytest.raises(ValueError, match="layer '0' would lose its last filter"):
        network_.remove(np.array([4]))


def test_argument_is_untouched_and_nothing_is_shared(images):
    model = miniature_vgg()
    before = copy.deepcopy(model.state_dict())
    smaller = remove_filters(model, {"conv1": [0]}, images[:1])
    for parameter in smaller.parameters():
        parameter.data.fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.conv1.out_channels == 6


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"conv9": [0]}, "'conv9' is no convolution of this network; it has: conv1, conv2, conv3"),
        ({"head": [0]}, "'head' is no convolution"),
        ({"conv1": [6]}, r"layer 'conv1' has filters 0\.\.5, not 6"),
        ({"conv1": [-1]}, r"layer 'conv1' has filters 0\.\.5, not -1"),
        ({"conv1": range(6)}, "layer 'conv1' would lose all of its 6 filters"),
    ],
)
def test_impossible_removals_are_refused(images, filters, message):
    with pytest.raises(ValueError, match=message):
        remove_filters(miniature_vgg(), filters, images[:1])


def test_steps_are_numbered_as_at_the_start(images):
    """Removing in two steps, by the first numbering, equals removing at once."""
    model = miniature_vgg()
    network = PrunedNetwork(model, images[:1])
    assert network.n_filters == 24
    network.remove(np.array([0, 3, 7, 20]))  # conv1: 0, 3; conv2: 1; conv3: 6
    network.remove(np.array([5, 6, 23]))  # conv1: 5; conv2: 0; conv3: 9
    at_once = remove_filters(model, {"conv1": [0, 3, 5], "conv2": [0, 1], "conv3": [6, 9]}, images[:1])
    assert torch.allclose(network.model(images), at_once(images), rtol=1e-12)
    assert {name: len(kept) for name, kept in network.kept().items()} == {"conv1": 3, "conv2": 6, "conv3": 8}
    with pytest.raises(ValueError, match=r"filters \[3\] of 'conv1' are removed already"):
        network.remove(np.array([3]))


def test_values_are_laid_out_by_filter_number(images):
    network = PrunedNetwork(miniature_vgg(), images[:1])
    network.remove(np.array([1, 6]))
    by_layer = {
        "conv3": torch.arange(10.0) + 14,
        "conv1": torch.tensor([0.0, 2, 3, 4, 5]),
        "conv2": torch.arange(7.0) + 7,
    }
    expected = np.arange(24.0)
    expected[[1, 6]] = np.nan
    np.testing.assert_array_equal(network.flat(by_layer), expected)
