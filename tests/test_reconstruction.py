"""Reconstruction: against a library's ridge regression, and where channels can stand in for others exactly."""

import copy

import numpy as np
import pytest
import torch
from conftest import miniature_vgg
from networks import depthwise_network, draw_images, network
from sklearn.linear_model import Ridge
from torch import nn

from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair import reconstruction
from lrp_core.repair.reconstruction import Reconstruction


def pruned(model, images, filters, strength=1e-3, reconstruct=True):
    """Return the model without filters, by number."""
    network = PrunedNetwork(model, images, [Reconstruction(model, images, strength)] if reconstruct else [])
    network.remove(np.asarray(filters, dtype=int))
    return network.model


def test_a_channel_that_others_can_stand_in_for_is_not_missed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 4, bias=False)
    ).double()
    first, second = model[0], model[2]
    with torch.no_grad():
        first.weight[1], first.bias[1] = 2.5 * first.weight[0], 2.5 * first.bias[0]  # twins behind the ReLU too
        second.weight[4], second.bias[4] = 0.5 * second.weight[2], 0.5 * second.bias[2]
        first.weight[3], first.bias[3] = 0, 0.7  # a constant, which the bias can give
    images = torch.randn(40, 3, 8, 8, dtype=torch.float64)
    expected = model(images)
    rebuilt = pruned(model, images, [1, 3, 8], strength=1e-12)
    assert [layer.out_channels for layer in rebuilt if isinstance(layer, nn.Conv2d)] == [2, 4]
    assert torch.allclose(rebuilt(images), expected, rtol=1e-6)
    assert not torch.allclose(pruned(model, images, [1, 3, 8], reconstruct=False)(images), expected, rtol=0.1)


@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_those_of_ridge_regression(bias, monkeypatch):
    monkeypatch.setattr(reconstruction, "POSITIONS", 25)  # all of them
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 3, padding=1, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(7, 4, bias=bias),
    ).double()  # fmt: skip
    images = torch.randn(30, 3, 7, 7, dtype=torch.float64)
    rebuilt = pruned(model, images, [1, 4, 6, 11])
    # By layer: its position, the channels that it reads and which are kept, its kept filters, if it has a constant.
    for index, kept, outputs, constant in (
        (2, [0, 2, 3, 5], [1, 2, 3, 4, 6], True),
        (6, [1, 2, 3, 4, 6], range(4), bias),
    ):
        outputs = list(outputs)
        with torch.no_grad():
            y = model[:index](images).transpose(0, 1).flatten(1).T.numpy()
            x = rebuilt[:index](images).transpose(0, 1).flatten(1).T.numpy()  # behind layers that are updated already
        handed_on = np.zeros_like(y)
        handed_on[:, kept] = x
        # Ridge penalises sums of squares where the module's moments are sums as well.
        squares = np.square(y - y.mean(axis=0) if constant else y).sum(axis=0)
        ridge = Ridge(1e-3 * squares.mean(), fit_intercept=constant, solver="cholesky").fit(x, y - handed_on)
        mix = ridge.coef_.copy()  # (C, K)
        mix[kept, range(len(kept))] += 1
        weight = model[index].weight.detach()[outputs].flatten(2) if index == 2 else model[index].weight[..., None]
        expected = torch.einsum("oct,ck->okt", weight, torch.from_numpy(mix))
        got = rebuilt[index].weight.flatten(2) if index == 2 else rebuilt[index].weight[..., None]
        assert torch.allclose(got, expected, rtol=1e-8)
        if constant:
            before = model[index].bias.detach()[outputs] if bias else 0
            intercept = weight.sum(dim=2) @ torch.from_numpy(ridge.intercept_)
            assert torch.allclose(rebuilt[index].bias, before + intercept, rtol=1e-8)
        else:
            assert rebuilt[index].bias is None


def shifted_network(bias: bool = True) -> nn.Sequential:
    """Two convolutions with a ReLU and a normalisation between them, and a head; float64."""
    torch.manual_seed(6)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 7, 3), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4, bias=bias)
    return nn.Sequential(*layers, *head).double().eval().requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_scale_of_activations_changes_nothing(scale, bias):
    """One layer times s, the next one over s: the same function, so it is pruned to the same function."""
    model, images = shifted_network(bias), torch.randn(30, 3, 8, 8, dtype=torch.float64)
    scaled = copy.deepcopy(model)
    scaled[0].weight *= scale
    scaled[0].bias *= scale
    scaled[2].running_mean *= scale
    scaled[2].bias *= scale
    scaled[3].weight /= scale * scale
    scaled[3].bias /= scale
    scaled[7].weight *= scale
    torch.testing.assert_close(scaled(images), model(images))
    gone = [1, 4, 6, 11]
    expected = pruned(model, images, gone)(images)
    assert not torch.allclose(expected, model(images), rtol=1e-3)
    torch.testing.assert_close(pruned(scaled, images, gone)(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("offset", [-3.0, 100.0])
def test_a_constant_added_to_activations_changes_nothing(offset):
    """Pixels of Caffe and Keras lie around 100: what one layer adds and the next takes off is not shrunk."""
    model, images = shifted_network(), torch.randn(30, 3, 8, 8, dtype=torch.float64)
    shifted = copy.deepcopy(model)
    shifted[2].bias += offset
    shifted[3].bias -= offset * shifted[3].weight.sum(dim=(1, 2, 3))
    torch.testing.assert_close(shifted(images), model(images))
    gone = [1, 4, 6, 11]
    expected = pruned(model, images, gone)(images)
    torch.testing.assert_close(pruned(shifted, images, gone)(images), expected, rtol=1e-9, atol=1e-9)


def test_float32_is_enough_where_activations_are_large():
    """Moments are formed in float64: activations of 100 and more, that vary by 1, lose nothing but their own digits."""
    model, images = shifted_network(), torch.randn(30, 3, 8, 8, dtype=torch.float64)
    model[2].bias += 300
    model[3].bias -= 300 * model[3].weight.sum(dim=(1, 2, 3))
    expected = pruned(model, images, [1, 4, 6, 11])(images)
    rebuilt = pruned(copy.deepcopy(model).float(), images.float(), [1, 4, 6, 11])(images.float())
    torch.testing.assert_close(rebuilt.double(), expected, rtol=0, atol=1e-3 * expected.std().item())


def test_maps_larger_than_the_sample_are_looked_at_in_part(monkeypatch):
    """Where a linear stand-in is exact, any sample of positions that is large enough finds it."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)
    ).double()  # six channels, all of them linear in three colours and a constant
    images = torch.randn(8, 3, 20, 20, dtype=torch.float64)
    looked = []
    for n in (10, 400):
        monkeypatch.setattr(reconstruction, "POSITIONS", n)
        rebuilt = pruned(model, images, [0, 3], strength=1e-13)
        assert torch.allclose(rebuilt(images), model(images), rtol=1e-6)
        looked.append(rebuilt[1].weight)
    assert not torch.equal(*looked)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenet_v2", "densenet121", "depthwise"])
def test_outputs_stay_nearer_to_those_of_the_unpruned_network(name):
    """With residual sums, batch normalisation, depthwise filters, concatenation."""
    model = (depthwise_network() if name == "depthwise" else network(name)).float()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(24, *draw_images(name).shape[1:], generator=generator)
    before = copy.deepcopy(model.state_dict())
    n_filters = PrunedNetwork(model, images[:1]).n_filters
    gone = np.sort(np.random.default_rng(0).permutation(n_filters)[: n_filters // 4])
    with torch.no_grad():
        expected = model(images)
        plain, rebuilt = (pruned(model, images, gone, reconstruct=wanted)(images) for wanted in (False, True))
    assert (rebuilt - expected).square().mean() < (plain - expected).square().mean()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_nothing_removed_changes_nothing_and_the_way_there_does_not_matter():
    torch.manual_seed(2)
    model, images = miniature_vgg(), torch.randn(12, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(pruned(model, images, [])(images), model(images))
    steps = PrunedNetwork(model, images, [Reconstruction(model, images)])
    for filters in ([3], [9, 1], [5]):
        steps.remove(np.array(filters))
    assert torch.equal(steps.model(images), pruned(model, images, [1, 3, 5, 9])(images))


def test_a_ridge_without_strength_is_refused():
    with pytest.raises(ValueError, match="needs a strength above 0, got 0"):
        Reconstruction(miniature_vgg(), torch.zeros(1, 3, 8, 8), 0)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_channels_that_do_not_vary_are_no_obstacle(value):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=value > 0)
    ).requires_grad_(False)
    images = torch.randn(9, 3, 6, 6)
    for alive in (1, 0):
        model[0].weight[alive:], model[0].bias[alive:] = 0, value or -1  # dead, or the same for all images
        for gone in ([0, 1], [2, 3]):
            rebuilt = pruned(model, images, gone)
            assert rebuilt[-1].weight.isfinite().all()
            assert rebuilt[-1].weight.abs().max() < 10
