"""Relevance through layers without weights and through gates: by hand, against zennit, and gradient times input."""

from collections import OrderedDict

import pytest
import torch
import zennit.composites
from networks import settle, without_biases
from oracle import zennit_relevance
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.ops.misc import SqueezeExcitation
from zennit.canonizers import SequentialMergeBatchNorm

from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.execution import run
from lrp_core.graph.layers import ACTIVATIONS, INPUT, ChannelConv
from lrp_core.graph.signs import nonnegative
from lrp_core.graph.tracing import trace
from lrp_core.relevance import lrp

EPSILON = {"low": "epsilon", "mid": "epsilon", "high": "epsilon"}
ONE = torch.tensor([0])


class Middle(nn.Module):
    """A convolution of one tap, something in the middle, and a dense layer on all that comes of it; float64."""

    def __init__(self, middle, n_channels, n_inputs):
        super().__init__()
        self.conv, self.middle = nn.Conv2d(1, n_channels, 1, bias=False), middle
        self.head = nn.Linear(n_inputs, 1, bias=False)
        self.double().requires_grad_(False).eval()
        self.conv.weight[:, 0, 0, 0] = torch.arange(1.0, n_channels + 1)
        self.head.weight[0] = torch.arange(1.0, n_inputs + 1)

    def forward(self, x):
        return self.head(torch.flatten(self.middle(self.conv(x)), 1))


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def relevance_behind(middle, n_channels, n_inputs, image):
    """Relevance at the output of the convolution, summed over positions, (C,)."""
    return lrp.explain(Middle(middle, n_channels, n_inputs), image, ONE, EPSILON).filters["conv"][0]


# The image has one pixel, 1, so that the channels are 1, 2, 3, 4; the head's weights are 1, 2, 3, ...
REARRANGING = {
    "slices": (lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), 4, [2, 6, 12, 4]),  # 4 1 2 3 times 1 2 3 4
    "half": (lambda x: x.chunk(2, 1)[1], 2, [0, 0, 3, 8]),
    "shuffle": (nn.ChannelShuffle(2), 4, [1, 6, 6, 16]),  # 1 3 2 4
    "zeros": (lambda x: F.pad(x, (0, 1, 0, 0)), 8, [1, 6, 15, 28]),  # each channel, then a zero
    "copies": (lambda x: F.pad(x, (0, 1, 0, 0), mode="replicate"), 8, [1 + 2, 6 + 8, 15 + 18, 28 + 32]),
    "another size": (lambda x: F.interpolate(x, (1, 2)), 8, [1 + 2, 6 + 8, 15 + 18, 28 + 32]),
    "flip": (lambda x: x.flip(1), 4, [4, 6, 6, 4]),  # 4 3 2 1 times 1 2 3 4
    "scale": (lambda x: 3 * x, 4, [3, 12, 27, 48]),
    "scale and shift": (lambda x: 2 * x + 1, 4, [3, 10, 21, 36]),  # the constant takes none
}


@pytest.mark.parametrize("kind", REARRANGING)
def test_what_moves_values_moves_relevance_back(kind, no_stabiliser):
    function, n_inputs, contributions = REARRANGING[kind]
    expected = torch.tensor(contributions, dtype=torch.float64) / sum(contributions)
    got = relevance_behind(Of(function), 4, n_inputs, torch.ones(1, 1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(got, expected)


def test_what_lies_between_two_positions_shares_by_contribution(no_stabiliser):
    """Between 1 and 3 lies 2; the three outputs, times 1, 2, 3, are 1, 1 + 3 and 9."""
    image = torch.tensor([[[[1.0, 3.0]]]], dtype=torch.float64)
    model = Middle(nn.Upsample((1, 3), mode="bilinear", align_corners=True), 1, 3)
    got = lrp.explain(model, image, ONE, EPSILON, pixels=True).pixels
    torch.testing.assert_close(got, torch.tensor([[[[2 / 14, 12 / 14]]]], dtype=torch.float64))


GATES = {
    "sigmoid": lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "hard sigmoid": lambda x: F.hardsigmoid(x),
    "scaled": lambda x: 2 * torch.sigmoid(x),
    "of one position": lambda x: torch.tanh(x.mean((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("kind", GATES)
def test_the_signal_takes_all(kind, no_stabiliser):
    """Each channel at two positions, 1 and 3 times as large: the gate counts as a number."""
    factor, image = GATES[kind], torch.tensor([1.0, 3.0], dtype=torch.float64).view(1, 1, 1, 2)
    signal = image * torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 2, 1, 1)
    passed = (signal * factor(signal)).flatten() * torch.arange(1.0, 5, dtype=torch.float64)
    for product in (lambda x: x * factor(x), lambda x: factor(x) * x):
        got = relevance_behind(Of(product), 2, 4, image)
        torch.testing.assert_close(got, (passed / passed.sum()).view(2, 2).sum(dim=1))


def test_a_signal_of_one_position_takes_what_its_gate_spreads(no_stabiliser):
    """Means of 2 and 4, times sigmoids of two positions each."""
    image = torch.tensor([1.0, 3.0], dtype=torch.float64).view(1, 1, 1, 2)
    got = relevance_behind(Of(lambda x: x.mean((2, 3), keepdim=True) * torch.sigmoid(x)), 2, 4, image)
    gates = torch.sigmoid(torch.tensor([[1.0, 3.0], [2.0, 6.0]], dtype=torch.float64))
    passed = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * torch.tensor([[2.0], [4.0]]) * gates).sum(dim=1)
    torch.testing.assert_close(got, passed / passed.sum())


def test_two_signals_share_half_and_half(no_stabiliser):
    class Star(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.head(torch.flatten(F.relu6(self.a(x)) * self.b(x), 1))

    model = without_biases(Star().double().requires_grad_(False))
    model.a.weight[:], model.head.weight[:] = model.a.weight.abs(), 1.0
    image = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    product = (model.a.weight * model.b.weight).flatten()
    got = lrp.filter_relevance(model, image, ONE, EPSILON)
    for name in ("a", "b"):
        torch.testing.assert_close(got[name][0], product / product.sum() / 2)


def test_filters_of_a_gate_get_none(no_stabiliser):
    model = Middle(SqueezeExcitation(2, 1), 2, 2)
    image = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    got = lrp.explain(model, image, ONE, pixels=True)
    assert got.filters["middle.fc1"].tolist() == [[0]]
    assert got.filters["middle.fc2"].tolist() == [[0, 0]]
    assert got.totals["middle.fc2"].tolist() == [0]
    torch.testing.assert_close(got.pixels.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_winner_of_all_positions_takes_all(no_stabiliser):
    image = torch.tensor([1.0, 5.0, 2.0, -7.0], dtype=torch.float64).view(1, 1, 2, 2)
    got = lrp.explain(Middle(nn.AdaptiveMaxPool2d(1), 2, 2), image, ONE, EPSILON, pixels=True)
    assert got.pixels.flatten().tolist() == pytest.approx([0, 1, 0, 0])
    assert got.filters["conv"][0].tolist() == pytest.approx([5 / 25, 20 / 25])


def test_a_convolution_of_channels_shares_by_contribution(no_stabiliser):
    weight, bias = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), torch.tensor([9.0], dtype=torch.float64)
    layer = ChannelConv(nn.Parameter(weight, False), nn.Parameter(bias, False), 3)
    # Channels 1 2 3 make 2 + 8, 1 + 4 + 12, 2 + 6; with the constant the head sees 19, 26, 17.
    (got,) = lrp._norm(layer, [torch.arange(1.0, 4, dtype=torch.float64).view(1, 3, 1, 1)], torch.ones(1, 3, 1, 1))
    assert got.flatten().tolist() == pytest.approx([2 / 10 + 1 / 17, 8 / 10 + 4 / 17 + 2 / 8, 12 / 17 + 6 / 8])


@pytest.mark.parametrize("softmax", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_what_is_explained_is_the_logit_before_a_softmax(softmax):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().requires_grad_(False)
    images, targets = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 2])
    expected, got = (lrp.explain(model, images, targets) for model in (plain, nn.Sequential(*plain, softmax)))
    assert torch.equal(got.filters["0"], expected.filters["0"])
    assert torch.equal(got.logits, plain(images))


class Passing(nn.Module):
    """What a module gives, with the gradient of the identity: zennit passes relevance on."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return x + (self.module(x) - x).detach()


def gate(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def mobile(wrapped=lambda module: module):
    """Convolutions of all kinds, behind activations that let negative values pass; norms that cannot be folded."""
    layers = [
        ("stem", nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)),
        ("norm0", nn.BatchNorm2d(8)),
        ("hardswish", nn.Hardswish()),
        ("depth", nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        ("silu", nn.SiLU()),
        ("gate", wrapped(Of(gate))),
        ("point", nn.Conv2d(8, 12, 1, bias=False)),
        ("norm1", nn.BatchNorm2d(12)),
        ("expand", nn.Conv2d(12, 16, 1)),
        ("norm2", wrapped(nn.GroupNorm(4, 16))),
        ("gelu", nn.GELU()),
        ("last", nn.Conv2d(16, 8, 3, padding=1)),
        ("leaky", nn.LeakyReLU(0.2)),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(8, 4)),
    ]
    model = settle(nn.Sequential(OrderedDict(layers))).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-12  # zennit leaves eps in a batch normalisation that it has merged
    return model


@pytest.mark.parametrize("composite", ["epsilon-zplus", "epsilon-alpha2-beta1", "epsilon-gamma-box"])
def test_relevance_agrees_with_zennit_behind_activations_that_let_negative_values_pass(composite):
    """Normalisations over channels and gates pass it on: of every filter and of every pixel."""
    kinds = {
        "epsilon-zplus": zennit.composites.EpsilonPlus,
        "epsilon-alpha2-beta1": zennit.composites.EpsilonAlpha2Beta1,
        "epsilon-gamma-box": zennit.composites.EpsilonGammaBox,
    }
    bounds = {"low": -3.0, "high": 3.0} if composite == "epsilon-gamma-box" else {}
    theirs = kinds[composite](
        zero_params="bias",
        canonizers=[SequentialMergeBatchNorm()],
        **bounds,
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp(-3, 3)
    targets = torch.tensor([1, 3])
    expected, pixels = zennit_relevance(mobile(Passing), images, targets, theirs)
    got = lrp.explain(mobile(), images, targets, composite, pixels=True, box=(-3.0, 3.0))
    assert got.filters.keys() == expected.keys()
    for name, relevance in expected.items():
        assert (got.filters[name] - relevance).abs().max() <= 1e-6 * relevance.abs().max(), name
    assert (got.pixels - pixels).abs().max() <= 1e-6 * pixels.abs().max()


def constant_gates(monkeypatch):
    """Make the gates of torchvision constants for autograd."""
    monkeypatch.setattr(SqueezeExcitation, "forward", lambda self, x: self._scale(x).detach() * x)


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_epsilon_everywhere_is_input_times_gradient_with_constant_gates(name, no_stabiliser, monkeypatch):
    """Of networks without biases; where an activation has no corners but bends, with a leaky ReLU in its place."""
    with torch.random.fork_rng():
        model = without_biases(settle(get_model(name, num_classes=4)).double())
    for module in list(model.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, nn.Hardswish):
                setattr(module, child, nn.LeakyReLU(0.1))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = lrp.explain(model, images, torch.tensor([2]), EPSILON, pixels=True)
    constant_gates(monkeypatch)
    images.requires_grad_()
    logit = model(images)[:, 2]
    (gradient,) = torch.autograd.grad(logit.sum(), images)
    expected = images.detach() * gradient / logit.detach()
    assert (got.pixels - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert got.pixels.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_what_is_taken_for_nonnegative_is(kind):
    """Behind every activation, the inputs of a convolution are taken for signed where they can be negative."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), kind(), nn.Conv2d(4, 2, 1))
    layers = fold_batchnorm(trace(model))
    with torch.no_grad():
        model[0].weight.fill_(1).div_(torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1))
        values = run(layers[:2], {INPUT: torch.linspace(-9, 9, 181).view(1, 1, 1, -1)})
    assert (layers[1].name in nonnegative(layers)) == bool((values >= 0).all())
