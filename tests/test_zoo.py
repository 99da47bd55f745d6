"""The convolutional classifiers of three libraries: read, grouped and pruned, against the masked network."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from masked import masked_run
from torch import nn
from torchvision.models import get_model
from zoo import CLASSIFIERS, FAMILIES, HEADS, HUGGING_FACE, TIMM, classifiers, drawn, hugging_face, side

from lrp_core.graph.execution import run, shapes
from lrp_core.graph.explicit import with_modules
from lrp_core.graph.layers import INPUT
from lrp_core.graph.tracing import trace
from lrp_core.metrics.cost import n_parameters
from lrp_core.pruning.dependency import couple
from lrp_core.pruning.network import PrunedNetwork


@contextmanager
def without_memory():
    """Make modules whose parameters and buffers have shapes, but no values."""
    register, register_buffer = nn.Module.register_parameter, nn.Module.register_buffer

    def parameter(module, name, tensor):
        register(module, name, tensor if tensor is None else nn.Parameter(tensor.to("meta"), tensor.requires_grad))

    def buffer(module, name, tensor, persistent=True):
        register_buffer(module, name, tensor if tensor is None else tensor.to("meta"), persistent)

    nn.Module.register_parameter, nn.Module.register_buffer = parameter, buffer
    try:
        yield
    finally:
        nn.Module.register_parameter, nn.Module.register_buffer = register, register_buffer


def test_there_are_68_classifiers():
    assert len(CLASSIFIERS) == 68


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_of_torchvision_is_traced_and_grouped(name):
    """Most filters can be removed, those of ConvNeXt's streams apart."""
    with without_memory():
        model = get_model(name, **HEADS.get(name, {})).eval()
    image = torch.zeros(1, 3, 224, 224)
    layers = trace(model)
    coupling = couple(model, image)
    assert shapes(layers, image)[layers[-1].name] == (1, 1000)
    filters = np.concatenate(list(coupling.filters.values()))
    assert set(filters) >= set(range(coupling.n_groups))
    few = 0.4 if name.startswith(("squeezenet", "convnext")) else 0.01 if name.startswith("shufflenet") else 0
    assert (filters < 0).mean() <= few
    explicit = with_modules(model)
    assert [(layer.name, layer.inputs) for layer in trace(explicit)] == [(layer.name, layer.inputs) for layer in layers]
    assert (explicit is model) == (not name.startswith(("shufflenet", "convnext")))


def check(model, size):
    """The trace computes what the network does, and the smaller network what the masked one does."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = model(x)
    scale = expected.abs().max()
    assert (run(trace(model), {INPUT: x}) - expected).abs().max() <= 1e-9 * scale
    whole, generator = PrunedNetwork(model, x[:1]), np.random.default_rng(0)
    layers = [np.flatnonzero(whole.layer_of == layer) for layer in range(len(whole.layer_names))]
    pruned = [generator.choice(of, min(int(0.4 * len(of)), len(of) - 1), replace=False) for of in layers]
    smaller = whole.without(np.concatenate(pruned))
    masked = masked_run(model, whole.coupling, np.isin(np.arange(whole.n_filters), np.concatenate(pruned)), x)
    assert (smaller(x) - masked).abs().max() <= 1e-9 * masked.abs().max()
    assert (masked - expected).abs().max() > 1e-3 * scale
    assert n_parameters(smaller) < 0.8 * n_parameters(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_smaller_network_is_what_the_whole_one_is_when_masked(name):
    """Of each family of torchvision; where its input is transformed, with that."""
    keywords = HEADS.get(name, {})
    with torch.random.fork_rng(), warnings.catch_warnings():
        model = get_model(name, num_classes=4, **keywords | {"transform_input": True} if keywords else keywords)
    check(drawn(model.eval(), side(name)).double(), side(name))


@pytest.mark.parametrize("name", TIMM)
def test_so_it_is_of_networks_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        model = timm.create_model(name, num_classes=4)
    check(drawn(model.eval(), 64).double(), 64)


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_so_it_is_of_networks_of_hugging_face(family):
    with torch.random.fork_rng():
        model = hugging_face(family, num_classes=4)
    check(drawn(model.eval(), 64).double(), 64)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("ConvNextV2", r"unsupported kind linalg_vector_norm\("),
        ("MobileNetV1", "cannot trace Logits.forward"),  # asks how large the maps are, to pad them
        ("MobileNetV2", "is not known before the network is run"),
    ],
)
def test_what_is_not_read_of_hugging_face_is_refused_by_name(family, message):
    with without_memory():
        model = hugging_face(family, num_classes=4)
    with pytest.raises(ValueError, match=message):
        trace(model)


def test_what_returns_more_than_logits_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"ResNetForImageClassification .* return self.network\(x\).logits"):
        trace(hugging_face("ResNet", num_classes=4).network)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnextv2_atto", r"unsupported kind norm\("),
        ("gcresnext26ts", r"unsupported kind softmax\("),
        ("resnest14d", r"unsupported kind sum\("),
        ("skresnet18", r"unsupported kind stack\("),
        ("vgg11", "cannot trace VGG.forward"),  # asks how large the maps are
    ],
)
def test_what_is_not_read_is_refused_by_name(name, message):
    timm = pytest.importorskip("timm")
    with without_memory():
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=message):
        trace(model)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "res2net50_26w_4s"])
def test_no_slice_loses_all_of_its_channels(name):
    """Every convolution is left one filter, of those that come last: none of what reads a part has nothing to read."""
    model = {source[1]: make for source, make in classifiers().items()}[name](num_classes=4).double().eval()
    network = PrunedNetwork(model, torch.randn(1, 3, 64, 64, dtype=torch.float64))
    for last in (1, -1):
        layers = [np.flatnonzero(network.layer_of == layer)[::last] for layer in range(len(network.layer_names))]
        smallest = network.without(np.concatenate([of[1:] for of in layers]))
        assert smallest(torch.randn(1, 3, 64, 64, dtype=torch.float64)).isfinite().all()
