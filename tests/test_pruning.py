import copy

import numpy as np
import pytest
import torch
from conftest import miniature_vgg
from torch import nn

from lrp_core.evaluation import multiply_adds, n_parameters
from lrp_core.heads import classifier
from lrp_core.pruning import PrunedNetwork, remove_filters


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
    model = classifier(vgg16, torch.randn(1, 4, 512, generator=generator) / 512)
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
    assert network.kept_by_layer() == {"conv1": 3, "conv2": 6, "conv3": 8}
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
