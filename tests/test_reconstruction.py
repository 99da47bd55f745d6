"""Reconstruction: against a library's ridge regression, and where channels can stand in for others exactly."""

import copy

import numpy as np
import pytest
import torch
from conftest import miniature_vgg
from networks import depthwise_network, draw_images, network, settle
from sklearn.linear_model import Ridge
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import SqueezeExcitation

from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT
from lrp_core.graph.tracing import trace
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair import reconstruction
from lrp_core.repair.reconstruction import Reconstruction


def pruned(model, images, filters, strength=1e-3, reconstruct=True):
    """Return the model without filters, by number."""
    network = PrunedNetwork(model, images, [Reconstruction(model, images, strength)] if reconstruct else [])
    network.remove(np.asarray(filters, dtype=int))
    return network.model


def covered(layer, a):
    """What the layer's kernel covers, a row an output: the layer itself, with kernels that have a single 1."""
    if isinstance(layer, nn.Linear):
        return a
    one_hot = copy.deepcopy(layer)
    n = layer.weight[0].numel()
    one_hot.weight = nn.Parameter(torch.eye(n, dtype=a.dtype).view(n, *layer.weight.shape[1:]))
    one_hot.bias = None
    return rows(one_hot(a))


def rows(maps):
    """A row a position of an image."""
    return maps.movedim(1, -1).flatten(0, -2).detach()


def ridge_towards(weight, x, z, strength, constant):
    """The weights nearest to the given ones that map x to z, and the constant, by scikit-learn's ridge regression."""
    x, rest = x.numpy(), (z - x @ weight.T).numpy()
    centred = x - x.mean(axis=0) if constant else x
    penalty = strength * np.square(centred).sum() / min(x.shape)
    ridge = Ridge(penalty, fit_intercept=constant, solver="svd").fit(x, rest)
    return weight + torch.from_numpy(ridge.coef_), torch.as_tensor(ridge.intercept_)


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


def test_neighbouring_positions_of_another_channel_can_stand_in():
    """A channel that is another one, moved by a pixel: the other taps of the kernel take over."""
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, (1, 2), bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)
    ).double()
    with torch.no_grad():
        model[0].weight[:2, :, :, 2], model[0].weight[1, :, :, 0] = 0, 0
        model[0].weight[0, :, :, 1] = 0
        model[0].weight[1, :, :, 1] = model[0].weight[0, :, :, 0]
        model[0].bias[1] = model[0].bias[0]
        model[2].weight[:, 1, :, 1] = 0  # of the moved channel, what is at the left: of the other, at the right
        expected = model(images := torch.randn(40, 3, 8, 9, dtype=torch.float64))
        feature_maps = F.relu(model[0](images))
        torch.testing.assert_close(feature_maps[:, 1, :, :-1], feature_maps[:, 0, :, 1:])
        torch.testing.assert_close(pruned(model, images, [1], strength=1e-12)(images), expected, rtol=0, atol=1e-8)
        assert (pruned(model, images, [1], reconstruct=False)(images) - expected).abs().max() > 0.01


KERNELS = {
    "3 x 3": lambda **options: nn.Conv2d(6, 7, 3, **options),
    "padded": lambda **options: nn.Conv2d(6, 7, 3, padding=(1, 2), **options),
    "of stride 2": lambda **options: nn.Conv2d(6, 7, (3, 2), stride=2, padding=(1, 0), **options),
    "dilated": lambda **options: nn.Conv2d(6, 7, 3, stride=(1, 2), padding=2, dilation=(2, 1), **options),
    "same": lambda **options: nn.Conv2d(6, 7, (2, 4), padding="same", **options),
    "valid": lambda **options: nn.Conv2d(6, 7, 2, stride=2, padding="valid", **options),
    "TensorFlow's": lambda **options: Conv2dSame(6, 7, 3, stride=2, **options),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_images", [30, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_are_those_of_ridge_regression_on_what_the_kernel_covers(kernel, n_images, bias, monkeypatch):
    """Layer by layer, at all positions; of two small images there are fewer samples than inputs."""
    monkeypatch.setattr(reconstruction, "SAMPLES", 10**6)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), KERNELS[kernel](bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(7, 4, bias=bias),
    ).double().requires_grad_(False)  # fmt: skip
    side = (9, 8) if n_images == 30 else (5, 5)
    images = torch.randn(n_images, 3, *side, dtype=torch.float64)
    rebuilt = pruned(model, images, [1, 4, 6, 11])
    assert torch.equal(rebuilt[0].weight, model[0].weight[[0, 2, 3, 5]])  # has lost no inputs
    assert torch.equal(rebuilt[0].bias, model[0].bias[[0, 2, 3, 5]])
    # By layer: its position, the channels that it reads and which are kept, its kept filters, if it has a constant.
    for index, kept, outputs, constant in (
        (2, [0, 2, 3, 5], [1, 2, 3, 4, 6], True),
        (6, [1, 2, 3, 4, 6], [0, 1, 2, 3], bias),
    ):
        z = rows(model[: index + 1](images))[:, outputs]
        x = covered(rebuilt[index], rebuilt[:index](images))  # behind layers that are fitted already
        assert (len(x) < x.shape[1]) == (n_images == 2)
        before = model[index].weight[outputs][:, kept].flatten(1)
        weight, intercept = ridge_towards(before, x, z, 1e-3, constant)
        torch.testing.assert_close(rebuilt[index].weight.flatten(1), weight, rtol=1e-8, atol=1e-10)
        assert not torch.allclose(weight, before, rtol=1e-6)
        if constant:
            torch.testing.assert_close(rebuilt[index].bias, intercept, rtol=1e-8, atol=1e-10)
        else:
            assert rebuilt[index].bias is None


def test_a_dense_layer_without_a_bias_is_not_centred():
    """Its features lie around 3: with a mean taken off, another ridge would be fitted."""
    torch.manual_seed(8)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, False))
    model.double().requires_grad_(False)[0].bias += 3
    images = torch.randn(30, 3, 7, 7, dtype=torch.float64)
    rebuilt = pruned(model, images, [1, 4], strength=0.1)
    x, before = rebuilt[:4](images), model[4].weight[:, [0, 2, 3, 5]]
    as_it_is, centred = (ridge_towards(before, x, model(images), 0.1, constant)[0] for constant in (False, True))
    torch.testing.assert_close(rebuilt[4].weight, as_it_is, rtol=1e-8, atol=1e-10)
    assert rebuilt[4].bias is None
    assert not torch.allclose(as_it_is, centred, rtol=1e-2)


class MadeUp(nn.Module):
    """A sum of a grouped convolution, which is not fitted, and a branch that reads what the grouped one reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, groups=2)
        self.branch, self.norm, self.head = nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.grouped(x) + self.norm(self.branch(x))).mean((2, 3)))


def test_the_end_of_a_branch_makes_up_for_what_the_shortcut_has_lost(monkeypatch):
    """Channels 1 and 4 are twins of 0 and 3: the branch can give what the grouped convolution no longer gives."""
    model, images = settle(MadeUp()).double(), torch.randn(20, 3, 8, 8, dtype=torch.float64)
    for twin, of in ((1, 0), (4, 3)):
        model.stem.weight[twin], model.stem.bias[twin] = 2 * model.stem.weight[of], 2 * model.stem.bias[of]
    assert PrunedNetwork(model, images).n_filters == 3 + 2  # alike in both groups; the sum couples the others
    rebuilt = pruned(model, images, [1], strength=1e-13)
    assert rebuilt.stem.out_channels == 4
    torch.testing.assert_close(rebuilt(images), model(images), rtol=0, atol=1e-7)
    assert (pruned(model, images, [1], reconstruct=False)(images) - model(images)).abs().max() > 0.1
    monkeypatch.setattr(reconstruction, "_shortcuts", lambda layers: {})
    assert (pruned(model, images, [1], strength=1e-13)(images) - model(images)).abs().max() > 0.01


class Blocks(nn.Module):
    """Two residual blocks, the second with or without a batch normalisation at the end of its branch."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a1, self.b1 = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.a2, self.b2 = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Linear(6, 4)

    def streams(self, x):
        """Return what the blocks read, and what the last convolution of the second reads."""
        first = F.relu(self.stem(x))
        second = F.relu(first + self.b1(F.relu(self.a1(first))))
        return first, second, F.relu(self.a2(second))

    def forward(self, x):
        _, x, inner = self.streams(x)
        return self.head(F.relu(x + self.norm(self.b2(inner))).mean((2, 3)))


@pytest.mark.parametrize("norm", [True, False])
def test_the_target_of_a_branch_has_the_change_of_its_shortcut(norm):
    """Over the scale of the normalisation; where that is 0, nothing can be made up."""
    model, images = settle(Blocks(norm)).double(), torch.randn(20, 3, 7, 7, dtype=torch.float64)
    scale = torch.ones(6, dtype=torch.float64)
    if norm:
        model.norm.weight[3] = 0
        scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    stream, a1, a2 = [1, 4], [0, 3], [2]
    network = PrunedNetwork(model, images)
    assert network.layer_names == ["stem", "a1", "a2"]
    gone = [*stream, *(6 + i for i in a1), *(11 + i for i in a2)]
    rebuilt = pruned(model, images, gone)
    kept = [i for i in range(6) if i not in stream]
    inner = [i for i in range(5) if i not in a2]
    (_, whole, whole_inner), (_, smaller, smaller_inner) = model.streams(images), rebuilt.streams(images)
    change = rows(whole)[:, kept] - rows(smaller)
    z = rows(model.b2(whole_inner))[:, kept]
    wanted = z + torch.where(scale[kept] == 0, 0, change / scale[kept])
    x = covered(rebuilt.b2, smaller_inner)
    before = model.b2.weight[kept][:, inner].flatten(1)
    weight, intercept = ridge_towards(before, x, wanted, 1e-3, True)
    torch.testing.assert_close(rebuilt.b2.weight.flatten(1), weight, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(rebuilt.b2.bias, intercept, rtol=1e-8, atol=1e-10)
    without_change, _ = ridge_towards(before, x, z, 1e-3, True)
    assert not torch.allclose(weight, without_change, rtol=0.05)


class Dense(nn.Module):
    """Dense layers on the channels of maps, as in ConvNeXt, behind a gate that has convolutions of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 6, 3), SqueezeExcitation(6, 4, scale_activation=nn.Hardsigmoid)
        self.expand, self.project, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 4)

    def hidden(self, x):
        return F.gelu(self.expand(self.gate(F.silu(self.stem(x))).permute(0, 2, 3, 1)))

    def forward(self, x):
        return self.head(F.elu(self.project(self.hidden(x)).permute(0, 3, 1, 2)).mean((2, 3)))


class Context(nn.Module):
    """A branch of one pixel that is added to every position of its shortcut, or the other way round."""

    def __init__(self, on_a_pixel: bool):
        super().__init__()
        self.on_a_pixel = on_a_pixel
        self.first, self.branch, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        maps = F.relu(self.first(x))
        pixel = F.avg_pool2d(maps, 6)
        both = maps + self.branch(pixel) if self.on_a_pixel else pixel + self.branch(maps)
        return self.head(F.relu(both).mean((2, 3)))


@pytest.mark.parametrize("on_a_pixel", [True, False])
def test_a_shortcut_of_another_size_is_not_made_up_for(on_a_pixel):
    """The branch is fitted to its own output alone, by ridge regression."""
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Context(on_a_pixel).eval().requires_grad_(False)
    branch = pruned(model, images, [0, 1], strength=0.1).branch
    maps = F.relu(model.first(images))
    read = F.adaptive_avg_pool2d(maps, 1) if on_a_pixel else maps
    x, z = rows(read)[:, 2:].double(), rows(model.branch(read))[:, 2:].double()
    weight, _ = ridge_towards(model.branch.weight[2:, 2:].flatten(1).double(), x, z, 0.1, constant=True)
    torch.testing.assert_close(branch.weight.flatten(1).double(), torch.as_tensor(weight), rtol=1e-4, atol=1e-5)


def test_dense_layers_on_maps_are_fitted_as_the_convolutions_that_they_are(monkeypatch):
    """And those of a gate to what the gate gave before its sigmoid."""
    monkeypatch.setattr(reconstruction, "SAMPLES", 10**6)
    model, images = settle(Dense()).double(), torch.randn(20, 3, 7, 7, dtype=torch.float64)
    network = PrunedNetwork(model, images)
    names = ["stem", "gate.fc1", "expand", "project"]
    assert network.layer_names == names  # the stem's filters go with those of fc2
    first = [np.flatnonzero(network.layer_of == layer)[0] for layer in range(4)]
    rebuilt = pruned(model, images, [first[0] + 1, first[1] + 2, first[2] + 3, first[2] + 5, first[3]])
    hidden = [0, 1, 2, 4, 6, 7]
    read = {}

    def keep(layer, lives):
        read[layer.name] = lives[layer.inputs[0]]

    run(trace(rebuilt), {INPUT: images}, keep)
    squeezed = F.silu(model.stem(images)).mean((2, 3), keepdim=True)
    gate = model.gate.fc2(F.relu(model.gate.fc1(squeezed)))
    of_gate, of_stem = [0, 1, 3], [0, 2, 3, 4, 5]
    for name, z, before in (
        ("gate.fc2", rows(gate)[:, of_stem], model.gate.fc2.weight[of_stem][:, of_gate].flatten(1)),
        ("project", model.project(model.hidden(images)).flatten(0, 2)[:, 1:], model.project.weight[1:][:, hidden]),
    ):
        layer = rebuilt.get_submodule(name)
        weight, intercept = ridge_towards(before, rows(read[name]), z, 1e-3, True)
        torch.testing.assert_close(layer.weight.flatten(1), weight, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(layer.bias, intercept, rtol=1e-8, atol=1e-10)
        assert not torch.allclose(weight, before, rtol=1e-6)


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
    """Means are taken off in time: activations of 100 and more, that vary by 1, lose nothing but their own digits."""
    model, images = shifted_network(), torch.randn(30, 3, 8, 8, dtype=torch.float64)
    model[2].bias += 300
    model[3].bias -= 300 * model[3].weight.sum(dim=(1, 2, 3))
    expected = pruned(model, images, [1, 4, 6, 11])(images)
    rebuilt = pruned(copy.deepcopy(model).float(), images.float(), [1, 4, 6, 11])(images.float())
    torch.testing.assert_close(rebuilt.double(), expected, rtol=0, atol=1e-3 * expected.std().item())


def test_half_precision_is_enough_where_activations_are_large():
    """Squares of 300 overflow in float16. The layer that lost half of its inputs is fitted as in float32."""
    images = 300 * torch.rand(16, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
    with torch.no_grad():
        settle(layers)[0].weight.mul_(0.3)
        layers[2].weight.mul_(0.1)
    layers.half()
    found = {}
    for kind in (torch.float16, torch.float32):
        model, given = copy.deepcopy(layers).to(kind), images.half().to(kind)
        pruned = PrunedNetwork(model, given, [Reconstruction(model, given)])
        pruned.remove(np.arange(0, 8, 2))
        found[kind] = pruned.model[2].weight.float()
    torch.testing.assert_close(found[torch.float16], found[torch.float32], rtol=0.1, atol=0.02)


def test_maps_larger_than_the_sample_are_looked_at_in_part(monkeypatch):
    """A linear stand-in for 27 taps and a constant is found by 80 samples, and by 16 it is not."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)
    ).double()  # six channels, all of them linear in three colours and a constant
    images, off = torch.randn(8, 3, 20, 20, dtype=torch.float64), {}
    with torch.no_grad():
        for n in (16, 80, 8 * 18 * 18):
            monkeypatch.setattr(reconstruction, "SAMPLES", n)
            rebuilt = pruned(model, images, [0, 3], strength=1e-13)
            off[n] = (rebuilt[:2](images) - model[:2](images)).abs().max().item()
    assert off[16] > 0.05
    assert max(off[80], off[8 * 18 * 18]) < 1e-6


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenet_v2", "densenet121", "depthwise"])
def test_outputs_stay_nearer_to_those_of_the_unpruned_network(name):
    """With residual sums, batch normalisation, depthwise filters, concatenation."""
    model = (depthwise_network() if name == "depthwise" else network(name)).float()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(12, *draw_images(name).shape[1:], generator=generator)
    before = copy.deepcopy(model.state_dict())
    n_filters = PrunedNetwork(model, images[:1]).n_filters
    gone = np.sort(np.random.default_rng(0).permutation(n_filters)[: n_filters // 4])
    with torch.no_grad():
        expected = model(images)
        plain, rebuilt = (pruned(model, images, gone, reconstruct=wanted)(images) for wanted in (False, True))
    assert (rebuilt - expected).square().mean() < (plain - expected).square().mean()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_convolutions_with_groups_stay_as_they_are():
    model = depthwise_network()
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gone = [0, 9, 21]
    plain, rebuilt = (pruned(model, images, gone, reconstruct=wanted) for wanted in (False, True))
    for name in ("depth1", "depth2", "grouped"):
        for kind in ("weight", "bias"):
            pair = [getattr(each.get_submodule(name), kind) for each in (plain, rebuilt)]
            assert pair == [None, None] or torch.equal(*pair), name
    assert rebuilt.point1.bias is not None
    assert not any(
        torch.equal(getattr(plain, name).weight, getattr(rebuilt, name).weight) for name in ("point1", "head")
    )


def test_nothing_removed_changes_nothing_and_the_way_there_does_not_matter():
    torch.manual_seed(2)
    model, images = miniature_vgg(), torch.randn(12, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(pruned(model, images, [])(images), model(images))
    steps = PrunedNetwork(model, images, [Reconstruction(model, images, 1e-3)])
    for filters in ([3], [9, 1], [5]):
        steps.remove(np.array(filters))
    assert torch.equal(steps.model(images), pruned(model, images, [1, 3, 5, 9])(images))


@pytest.mark.parametrize("strength", [0, -1.0])
def test_a_ridge_without_strength_is_refused(strength):
    with pytest.raises(ValueError, match=f"needs a strength above 0, got {strength}"):
        Reconstruction(miniature_vgg(), torch.zeros(1, 3, 8, 8), strength)


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
