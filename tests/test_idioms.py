"""Code as people write it: it is read as what it does, also where the network gets smaller, or it is refused."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from masked import masked_run
from networks import settle
from torch import nn
from torch.nn import functional as F

import lrp_core
from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT
from lrp_core.graph.tracing import check_trace, trace
from lrp_core.pruning.network import PrunedNetwork


class Net(nn.Module):
    """Two convolutions, something in between, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.beside = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 3)
        self.last, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def between(self, x):
        return F.relu(self.second(x))

    def forward(self, x):
        return self.head(F.relu(self.last(self.between(F.relu(self.first(x))))).mean((2, 3)))


class Branches(Net):
    """What a smaller network would decide otherwise."""

    def between(self, x):
        y = self.second(x)
        return F.relu(y) if x.shape[1] > 7 else y


class Projected(Net):
    """Shapes that differ in the number of channels, as where a residual block changes it."""

    def between(self, x):
        y = self.second(x)
        return y + (self.beside(x) if x.shape != y.shape else x)


class Products(Net):
    def between(self, x):
        x = self.second(x)
        b, _, h, w = x.shape
        return x.view(b, 6 * h, w).view(b, 6, h, w)


class Joined(Net):
    def between(self, x):
        x = self.second(x)
        return x.flatten(2).view(x.shape[:1] + (6,) + x.shape[2:])


class Named(Net):
    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.last(self.between(F.relu(self.first(x)))), 1)
        return self.head(torch.reshape(x, shape=(-1, 5)))


class Listed(Net):
    """Modules that a list holds, too."""

    def __init__(self):
        super().__init__()
        self.convolutions = [self.first, self.second, self.last]

    def forward(self, x):
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return self.head(x.mean((2, 3)))


class Bound(Net):
    """A method that is chosen when the network is made."""

    def __init__(self):
        super().__init__()
        self.chosen = self.between

    def forward(self, x):
        return self.head(F.relu(self.last(self.chosen(F.relu(self.first(x))))).mean((2, 3)))


class Defaults(Net):
    def forward(self, x, return_features=False, scale=1.0, mask=None):
        x = self.between(F.relu(self.first(x)))
        return x if return_features else self.head(F.relu(self.last(x)).mean((2, 3)))


class Keeps(Net):
    """Feature maps in an attribute, as for Grad-CAM."""

    def __init__(self):
        super().__init__()
        self.features = None

    def between(self, x):
        self.features = F.relu(self.second(x))
        return self.features


class Conv2dSame(nn.Module):
    """No convolution itself, though timm has one of this name."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(8, 6, 3))

    def forward(self, x):
        return self.net(x)


class Same(Net):
    def __init__(self):
        super().__init__()
        self.second = Conv2dSame()


def rectified():
    """A convolution that does more than its name says."""

    class Conv2dSame(nn.Conv2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    net = Net()
    net.second = Conv2dSame(8, 6, 3)
    return Between(net)


class Between(nn.Module):
    """The same network, without a rectifier in between."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        net = self.net
        return net.head(F.relu(net.last(net.second(F.relu(net.first(x))))).mean((2, 3)))


class Sliced(Net):
    """Parts of a sequence, which the code makes on the spot."""

    def __init__(self):
        super().__init__()
        self.second = nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))

    def between(self, x):
        return self.second[1:](self.second[:1](x))


class Casts(Net):
    """What a network for mixed precision does between its layers; all values have one type."""

    def between(self, x):
        y = self.second(x.to(self.second.weight.dtype)).type_as(x)
        y = y.to(x.device, x.dtype, copy=True)
        return F.relu(y if y.dtype == x.dtype else y.half()).double()


class InPlace(Net):
    def between(self, x):
        return torch.relu_(self.second(x))


class Synchronised(Net):
    """As torch.nn.SyncBatchNorm.convert_sync_batchnorm makes it of a network that several GPUs train."""

    def __init__(self):
        super().__init__()
        second = nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6))
        self.second = nn.SyncBatchNorm.convert_sync_batchnorm(second)
        self.head = nn.Sequential(nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(5)), nn.Linear(5, 4))


class Checks(Net):
    """Images are checked, as by Hugging Face's networks, and their colours put in another order."""

    n_colours = 3

    def forward(self, x, labels=None, *args, scale=1.0, **options):
        if x.shape[1] != self.n_colours or x.size(1) == 1 or len(x.shape) != 4:
            raise ValueError("give images in colour")
        return super().forward(x[:, [2, 1, 0]].flip(1) if labels is None else x)


class Elsewhere(Net):
    """The convolution that comes first in the list of modules does not read the images."""

    def __init__(self):
        super().__init__()
        self._modules = {"last": self.last} | self._modules


class Stems(Net):
    """A convolution for each colour; the first one reads one channel."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(n, 8, 3) for n in (1, 2))

    def forward(self, x):
        y = self.first[0](x[:, 0:1]) + self.first[1](x[:, 1:3]) + self.first[0].bias.shape[0] / 8
        return self.head(F.relu(self.last(self.between(F.relu(y)))).mean((2, 3)))


class Statistics(Net):
    """Parameters and buffers are taken apart, and their sizes are asked for."""

    def __init__(self):
        super().__init__()
        self.register_buffer("statistics", torch.rand(2, 3, 1, 1) + 1)

    def forward(self, x):
        mean, std = self.statistics
        return super().forward((x - mean) / std)

    def between(self, x):
        _, n_inputs, height, _ = self.second.weight.shape
        assert n_inputs == self.second.weight.size(1)
        return F.relu(F.conv2d(x, self.second.weight, self.second.bias, padding=height // 2))


class Parted(Net):
    """Parts in a loop, put together in another order, and maps of another size."""

    def between(self, x):
        x = F.interpolate(self.second(x), scale_factor=2, mode="bilinear")
        b, c = x.shape[:2]
        x = x.view(b, 2, c // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return torch.cat([F.relu(part) for part in x.flip(1).split(2, 1)], 1).clamp(0, 1)


READ = (Net, Branches, Projected, Products, Joined, Named, Listed, Bound, Defaults, Keeps, Same, rectified)
READ += (Sliced, Casts, InPlace, Synchronised, Checks, Elsewhere, Stems, Statistics, Parted)


def images(n=8, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, 12, 12, generator=generator, dtype=torch.float64), torch.arange(n) % 2


def made(kind):
    torch.manual_seed(0)
    return settle(kind()).double()


@pytest.mark.parametrize("kind", READ)
def test_a_smaller_network_is_what_the_whole_one_is_when_masked(kind):
    model, (x, _) = made(kind), images()
    attributes = {name: vars(module).copy() for name, module in model.named_modules()}
    torch.testing.assert_close(run(trace(model), {INPUT: x}), model(x), rtol=1e-10, atol=1e-12)
    model = made(kind)  # without what it keeps
    pruned = PrunedNetwork(model, x)
    gone = [0, 3, 9, 15]
    expected = masked_run(model, pruned.coupling, np.isin(np.arange(pruned.n_filters), gone), x)
    torch.testing.assert_close(pruned.without(gone)(x), expected, rtol=1e-10, atol=1e-10)
    assert (expected - model(x)).abs().max() > 1e-4
    assert {name: [*vars(module)] for name, module in model.named_modules()} == {
        name: [*kept] for name, kept in attributes.items()
    }


@pytest.mark.parametrize("kind", [Branches, Listed, Bound, Keeps, Sliced, Synchronised, Checks, Parted])
def test_such_a_network_is_pruned_and_stays_as_it_was(kind):
    model, (x, y) = made(kind), images()
    whole = made(kind)(x)
    pruned = lrp_core.prune(model, x, y, multiply_adds=0.5, folds=0, progress=False, method="px-static")
    assert pruned.model(x).shape == whole.shape
    assert torch.equal(model(x), whole)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(torch.nan)  # nothing of the smaller network is the whole one's
    assert pruned.model(x).isfinite().all()


class Residual(Net):
    """A batch normalisation between the end of a branch and the sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))  # the shortcut changes
        self.branch = nn.Sequential(nn.Conv2d(8, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 8, 1), nn.BatchNorm2d(8))

    def between(self, x):
        return F.relu(self.second(F.relu(x + self.branch(x))))


def test_synchronised_batch_normalisation_is_pruned_like_the_usual_one():
    model, (x, y) = made(Residual), images()
    options = {"multiply_adds": 0.6, "folds": 0, "progress": False}
    usual = lrp_core.prune(model, x, y, **options)
    other = lrp_core.prune(nn.SyncBatchNorm.convert_sync_batchnorm(model), x, y, **options)
    assert other.kept == usual.kept
    norm = other.model.branch[3]
    assert (type(norm), norm.num_features) == (nn.SyncBatchNorm, len(norm.weight))
    assert len(usual.kept["first.0"]) < 16
    torch.testing.assert_close(other.model(x), usual.model(x), rtol=1e-12, atol=1e-12)


def test_only_timms_padding_is_known_by_its_name():
    """The activation inside is a layer of its own, as relevance needs it."""
    assert [type(layer.module) for layer in trace(made(rectified))].count(nn.ReLU) == 3


class Adds(Net):
    """An attribute that there was not before."""

    def between(self, x):
        self.seen = self.second.seen = x
        return F.relu(self.second(x))


def test_tracing_leaves_no_trace_in_the_model():
    model = made(Keeps)
    trace(model)
    assert model.features is None
    model = made(Adds)
    trace(model)
    assert not hasattr(model, "seen")
    assert not hasattr(model.second, "seen")


class Unknown(Net):
    """Shapes that may differ in positions."""

    def between(self, x):
        x, y = self.second(x), self.beside(x)
        return x + (y if x.shape != y.shape else 2 * y)


class Expanded(Net):
    """A gate that is made as large as the maps, and used without them."""

    def between(self, x):
        x = self.second(x)
        return x.mean((2, 3))[:, :, None, None].expand_as(x) * 0.5


class Inside(Net):
    def between(self, x):
        return F.relu(self.second(x)) if isinstance(x, torch.Tensor) else self.second(x)


class ReadAgain(Net):
    """The rectifier has overwritten what is read once more."""

    def between(self, x):
        y = self.second(x)
        return torch.relu_(y) + y


class Several(Net):
    def forward(self, x, mask):
        return super().forward(x) * mask


class Output(Net):
    """A dictionary, as Hugging Face's networks return it."""

    def forward(self, x):
        return OrderedDict(logits=super().forward(x))


class Grey(Net):
    """A check that fails for images with as many channels as the first convolution reads."""

    def forward(self, x):
        if x.shape[1] != 1:
            raise ValueError("give grey images")
        return super().forward(x)


class Frames(Stems):
    """How many parts there are depends on the images."""

    def forward(self, x):
        y = sum(conv(part) for conv, part in zip([self.first[0]] * 3, x.split(1, 1), strict=False))
        return self.head(F.relu(self.last(self.between(F.relu(y)))).mean((2, 3)))


class Last(Stems):
    """Which channel is the last depends on the images."""

    def forward(self, x):
        y = self.first[0](x[:, -1:])
        return self.head(F.relu(self.last(self.between(F.relu(y)))).mean((2, 3)))


class ElsewhereChecked(Elsewhere):
    def forward(self, x):
        return super().forward(x.flip(1))


class Bounded(Net):
    """Bounds that a file of the pruned network would not hold."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bound", torch.tensor(0.1))

    def between(self, x):
        return self.second(x).clamp(0.0, self.bound)


class Leaky(Bounded):
    def between(self, x):
        return F.leaky_relu(self.second(x), self.bound)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Frames, r"unsupported kind split\(x, 1"),
        (Last, r"unsupported kind getitem\(x, .* slice\(-1, None"),
        (ElsewhereChecked, "taken to be the 6 of its first convolution; but layer 'first' reads 3 channels, not 6"),
        (Bounded, r"unsupported kind clamp\("),
        (Leaky, r"unsupported kind leaky_relu\("),
        (Several, "Several takes several inputs; one image tensor is supported"),
        (Output, r"Output must return the tensor .* wrap it in a module .*: return self.network\(x\).logits"),
        (Grey, "cannot trace Grey.forward: give grey images"),
        (Unknown, "cannot trace Unknown.forward"),
        (Expanded, "unsupported kind expand_as"),
        (ReadAgain, "'relu_' works in place on a tensor that 'add' reads afterwards"),
    ],
)
def test_what_is_not_known_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        trace(made(kind))


def test_code_that_does_something_else_while_it_is_traced_is_refused():
    model, (x, y) = made(Inside), images()
    for call in (
        lambda: check_trace(model, x[:1]),
        lambda: lrp_core.explain(model, x, y),
        lambda: lrp_core.prune(model, x, y, multiply_adds=0.5, folds=0, progress=False),
    ):
        with pytest.raises(ValueError, match=r"read from Inside give another output .* isinstance\(x, torch.Tensor\)"):
            call()


def test_images_that_the_code_treats_otherwise_are_refused():
    class Coloured(Net):
        def forward(self, x):
            return super().forward(torch.cat([x, x, x], 1) if x.shape[1] == 1 else x)

    model, (x, y) = made(Coloured), images(channels=1)
    assert model(x).shape == (8, 4)
    with pytest.raises(ValueError, match=r"cannot be run on images \(1, 1, 12, 12\): does its code treat these"):
        lrp_core.prune(model, x, y, multiply_adds=0.5, folds=0, progress=False)


def test_a_reordering_of_other_images_is_refused():
    model, (x, _) = made(Checks), images()
    smaller = lrp_core.remove_filters(model, {"first": [0]}, x[:1])
    with pytest.raises(ValueError, match="3 channels are expected here, and there are 4"):
        smaller(torch.cat([x, x[:, :1]], 1))


def test_a_network_that_takes_its_maps_shape_apart_stays_what_it_is():
    class Apart(Net):
        def forward(self, x):
            x = F.relu(self.last(self.between(F.relu(self.first(x)))))
            n, _, height, width = x.shape
            return self.head(F.max_pool2d(x, (height, width)).view(n, -1))

    model, (x, _) = made(Apart), images()
    smaller = lrp_core.remove_filters(model, {"first": [0]}, x[:1])
    assert type(smaller) is Apart
    assert smaller.first.out_channels == 7


def test_random_outputs_are_not_compared():
    """Dropout that stays on is read as nothing."""

    class Dropped(Net):
        def between(self, x):
            return F.dropout(F.relu(self.second(x)))

    check_trace(made(Dropped), images()[0][:1])


@pytest.mark.parametrize("name", ["", "first", "head"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_refused(name, kind):
    model = made(Net)
    handle = getattr(model.get_submodule(name), kind)(lambda *_: None)
    with pytest.raises(ValueError, match=rf"a {type(model.get_submodule(name)).__name__} has a forward hook"):
        trace(model)
    handle.remove()
    trace(model)


def test_a_module_named_like_the_images_is_refused():
    layers = {
        "input": nn.Conv2d(3, 4, 3),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(4, 2),
    }
    with pytest.raises(ValueError, match="a module of Sequential is named 'input', as the images are; rename it"):
        trace(nn.Sequential(OrderedDict(layers)))


def test_what_cannot_be_copied_is_refused():
    model, (x, y) = made(Keeps).requires_grad_(True), images()
    model(x)
    with pytest.raises(ValueError, match="cannot copy Keeps: does an attribute hold a tensor that it computed"):
        lrp_core.prune(model, x, y, multiply_adds=0.5, folds=0, progress=False)
    normed = Net()
    normed.second = nn.utils.weight_norm(normed.second)
    with pytest.raises(ValueError, match="whose weight a hook computes"):
        lrp_core.prune(normed, x.float(), y, multiply_adds=0.5, folds=0, progress=False)


def test_images_have_the_channels_that_the_networks_own_numbers_expect():
    class Normalises(Net):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))

        def forward(self, x):
            return super().forward(x - self.mean)

    model, (x, y) = made(Normalises), images(channels=1)
    with pytest.raises(ValueError, match="scales 3 channels, and its input has 1: give images that have as many"):
        lrp_core.prune(model, x, y, multiply_adds=0.5, folds=0, progress=False)


def test_bfloat16_is_pruned_by_the_default():
    model, (x, y) = made(Net).bfloat16(), images()
    pruned = lrp_core.prune(model, x, y, multiply_adds=0.5, folds=0, progress=False)
    assert pruned.model(x.bfloat16()).dtype == torch.bfloat16


def test_a_layer_below_the_name_of_another_leaves_that_one_alone():
    """``relu.1``, a flattening, is put below a copy of ``relu``."""

    class Reads(Net):
        def __init__(self):
            super().__init__()
            self.relu, self.flat, self.wide = nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)
            self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))

        def forward(self, x):
            return self.wide(self.relu(self.flat(self.second(F.relu(self.first(x)) * self.scale))))

    model, (x, _) = made(Reads), images()
    before = copy.deepcopy(model)
    smaller = lrp_core.remove_filters(model, {"first": [0]}, x[:1])
    assert repr(model) == repr(before)
    assert smaller(x).shape == (8, 4)
