"""One small network of each family, through everything: relevance, contributions, reconstruction, the whole pruning.

Weights are random, so that what is tested is arithmetic: that relevance is conserved, that a contribution is what a
logit loses, that a fit is no worse than none, that the pruned network is smaller.
"""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from networks import settle, without_biases
from torch import nn
from torchvision.models import get_model
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.ops.misc import SqueezeExcitation

import lrp_core
from lrp_core.control.cost import cost_kept, parameter_costs
from lrp_core.graph.layers import ACTIVATIONS, Layer
from lrp_core.importance.contribution import Contribution
from lrp_core.metrics.cost import size
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.relevance import lrp
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.study.show.export import write_exported

EPSILON = {"low": "epsilon", "mid": "epsilon", "high": "epsilon"}
FAMILIES = [
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "mnasnet0_5",
    "squeezenet1_1",
    "googlenet",
]
MAKERS = {
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, 64, 2)], num_classes=3),
    "googlenet": lambda: get_model("googlenet", num_classes=3, aux_logits=True, init_weights=False),
}
LABELS = torch.arange(12) % 3


def network(name):
    """A network of a family with three classes; scales of branches are as large as trained ones."""
    with torch.random.fork_rng():
        model = MAKERS.get(name, lambda: get_model(name, num_classes=3))()
    for key, parameter in model.named_parameters():
        if "layer_scale" in key:
            parameter.data.fill_(0.3)
    return settle(model)


def draw_images(n=12, size=32):
    """Images of three classes, each around a picture of its own."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(3, 3, size, size, generator=generator)
    return torch.randn(n, 3, size, size, generator=generator) + pictures[LABELS[:n]]


@pytest.mark.parametrize("name", FAMILIES)
def test_pruning_goes_through(name, tmp_path):
    """To half of the multiply-adds; the file gives the same network again."""
    model, images = network(name), draw_images()
    state = copy.deepcopy(model.state_dict())
    pruned = lrp_core.prune(model, images, LABELS, multiply_adds=0.5, folds=0, progress=False)
    assert 0.3 < pruned.after.multiply_adds / pruned.before.multiply_adds <= 0.5
    assert pruned.model(images).isfinite().all()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    pruned.save(tmp_path / "pruned.safetensors")
    loaded = lrp_core.load_pruned(tmp_path / "pruned.safetensors", lambda: network(name))
    assert torch.equal(loaded(images), pruned.model(images))


def test_what_never_runs_is_not_counted():
    """GoogLeNet's auxiliary heads: as in the network without them."""
    model, image = network("googlenet"), draw_images(1)
    with_heads = size(model, image)
    plain = get_model("googlenet", num_classes=3, aux_logits=False, init_weights=False).eval()
    convolutions = [layer for layer in plain.modules() if isinstance(layer, nn.Conv2d)]
    assert with_heads.filters == sum(layer.out_channels for layer in convolutions)
    assert with_heads.parameters == sum(parameter.numel() for parameter in plain.parameters())
    whole = PrunedNetwork(model, image)
    every = np.ones(whole.n_filters, dtype=bool)
    assert cost_kept(parameter_costs(whole, adds_biases=False), every) == with_heads.parameters


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_what_others_read_gives_the_same_logits(name, tmp_path):
    """ONNX and torch.export: of networks with gates, with maps that have channels last, with shuffles, with fire."""
    model, images = network(name), draw_images()
    pruned = lrp_core.prune(model, images, LABELS, method="px-static", multiply_adds=0.5, folds=0, progress=False).model
    reported = write_exported(pruned, images[:2], tmp_path)
    expected = pruned(images)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    others = torch.from_numpy(logits), torch.export.load(tmp_path / "network.pt2").module()(images)
    for got in others:  # of twelve images, where two were exported
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert reported <= 1e-5


@pytest.mark.parametrize("method", ["joint-cost+reconstruction", "joint", "px-iterative-abs-taper"])
def test_a_softmax_at_the_end_changes_no_choice(method):
    """The filters that are kept are those of the network of the logits."""
    with torch.random.fork_rng():
        gated = SqueezeExcitation(16, 8, scale_activation=nn.Hardsigmoid)
        layers = nn.Conv2d(3, 16, 3), nn.SiLU(), gated, nn.Conv2d(16, 12, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1)
        plain = settle(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)))
    models = plain, nn.Sequential(*plain, nn.Softmax(dim=1)).eval(), nn.Sequential(*plain, nn.LogSoftmax(dim=-1)).eval()
    settings = {"method": method, "multiply_adds": 0.5, "folds": 0, "progress": False}
    first, *others = (lrp_core.prune(model, draw_images(size=16), LABELS, **settings).kept for model in models)
    assert first["0"] == first["2.fc2"]
    assert others == [first, first]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "squeezenet1_1"])  # its last ReLU gives 0 here
def test_relevance_is_conserved(name, no_stabiliser):
    """By the epsilon rule without biases, all of it reaches the pixels; all convolutions have theirs."""
    model = without_biases(network(name).double())
    images, targets = draw_images(2).double(), torch.tensor([0, 2])
    found = lrp.explain(model, images, targets, EPSILON, pixels=True)
    assert torch.allclose(found.logits, model(images), rtol=1e-9)
    ones = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(found.pixels.sum(dim=(1, 2, 3)), ones, rtol=0, atol=1e-4)
    assert found.filters.keys() == PrunedNetwork(model, images).coupling.filters.keys()
    for layer, relevance in found.filters.items():
        torch.testing.assert_close(relevance.sum(dim=1), found.totals[layer], rtol=1e-9, atol=1e-6)


class Faded(nn.Module):
    """A layer one of whose channels, which lie along some dimension, is a little smaller."""

    def __init__(self, layer, dim, channel, part):
        super().__init__()
        self.layer, self.dim, self.channel, self.part = layer, dim, channel, part

    def forward(self, x):
        x = self.layer(x).clone()
        x.select(self.dim, self.channel).mul_(1 - self.part)
        return x


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "convnext", "shufflenet_v2_x0_5"])
def test_contributions_are_what_centred_logits_lose(name):
    """To first order, when a filter's channel fades: behind the activation that follows, unless it is a sigmoid."""
    model, part, images = network(name).double(), 1e-5, draw_images(3).double()
    contributions = Contribution()(model, images, torch.arange(3)).filters
    layers = {layer.name: layer for layer in lrp_core.trace(model)}
    rng, checked = np.random.default_rng(0), set()
    for convolution in rng.permutation(list(contributions))[:20]:
        end, behind = convolution, _reader(layers, convolution)
        if isinstance(layers[behind].module, nn.BatchNorm2d):
            end, behind = behind, _reader(layers, behind)
        kind = type(layers[behind].module)
        if kind in ACTIVATIONS and kind not in (nn.Sigmoid, nn.Hardsigmoid):
            end = behind
        checked.add(kind)
        channel, other = int(rng.integers(contributions[convolution].shape[2])), copy.deepcopy(model)
        parent, _, child = end.rpartition(".")
        dim = -1 if isinstance(model.get_submodule(convolution), nn.Linear) else 1
        setattr(other.get_submodule(parent), child, Faded(other.get_submodule(end), dim, channel, part))
        lost = (model(images) - other(images)) / part
        expected = lost - lost.mean(dim=1, keepdim=True)
        got = contributions[convolution][:, :, channel]
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3 * contributions[convolution].abs().max().item())
    assert len(checked) > 1


def _reader(layers, name):
    return next((layer.name for layer in layers.values() if name in layer.inputs), name)


class Checked(Reconstruction):
    """Notes each fitted layer's squared error towards its target, before and after."""

    def _fit(self, layer: Layer, lives, outputs):
        before = self._error(layer, lives, outputs)
        super()._fit(layer, lives, outputs)
        self.errors = [*getattr(self, "errors", []), (layer.name, before, self._error(layer, lives, outputs))]

    def _error(self, layer, lives, outputs):
        target, module = self._targets[layer.name], layer.module
        x = torch.cat([module(live[layer.inputs[0]]) for live in lives])
        if target.positions is not None:
            x = x.flatten(2).transpose(1, 2)[torch.arange(len(x))[:, None], target.positions].flatten(0, 1)
        return (x - target.samples[:, outputs]).square().sum().item()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fit_is_no_worse_than_none(name, monkeypatch):
    """Of every layer that is fitted, towards what it gave; and where nothing is removed, nothing changes."""
    monkeypatch.setattr("lrp_core.repair.reconstruction._shortcuts", lambda layers: {})
    model, images = network(name).double(), draw_images().double()
    network_ = PrunedNetwork(model, images, [fitted := Checked(model, images)])
    network_.remove(np.array([], dtype=int))
    torch.testing.assert_close(network_.model(images), model(images), rtol=1e-9, atol=1e-9)
    layer_of, rng = network_.layer_of, np.random.default_rng(0)
    of_each = [np.flatnonzero(layer_of == layer) for layer in np.unique(layer_of)]
    network_.remove(np.concatenate([rng.choice(of, len(of) // 4, replace=False) for of in of_each]))
    assert len(fitted.errors) > 5
    for layer, before, after in fitted.errors:
        assert after <= before * (1 + 1e-9) + 1e-9, layer
    assert sum(after < 0.9 * before for _, before, after in fitted.errors) >= len(fitted.errors) / 2
