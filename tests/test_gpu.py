"""On a GPU everything comes out as on the CPU, in float64, where both round alike; skipped where there is no GPU."""

import copy

import pytest
import torch
from layer_by_layer import layer_by_layer
from networks import settle
from neuron_merging import neuron_merging
from torch import nn
from torch.nn import functional as F

import lrp_core
from lrp_core.control import methods
from lrp_core.metrics.accuracy import predict
from lrp_core.repair.reconstruction import Reconstruction

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

METHODS = (
    *methods.PLAIN,
    *methods.COMPLETE,
    "joint-cost+reconstruction",
    "joint-cost+reconstruction+distillation",
    "px-iterative-abs+reconstruction",
    "dynamic+reconstruction+refit",
    "early-exit+taylor+reconstruction",
)


class Blocks(nn.Module):
    """A residual sum, a depthwise convolution, batch normalisation, PReLU, a shortcut of more channels, a concat."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.PReLU(12)
        self.wide, self.thin = nn.Conv2d(12, 18, 3, padding=1, bias=False), nn.Conv2d(18, 12, 1)
        self.deep, self.point = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 20, 1)
        self.left, self.right, self.head = nn.Conv2d(20, 9, 1), nn.Conv2d(20, 9, 3, padding=1), nn.Linear(18, 3)

    def forward(self, x):
        x = F.max_pool2d(self.act(self.norm(self.stem(x))), 2)
        x = x + self.thin(F.relu(self.wide(x)))
        x = F.relu(self.point(F.relu6(self.deep(x)))) + F.pad(x, (0, 0, 0, 0, 4, 4))
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network, images and the classes that it gives most of them."""
    torch.manual_seed(0)
    model, images = settle(Blocks()).double(), torch.randn(30, 3, 16, 16, dtype=torch.float64)
    labels = predict(model, images).argmax(dim=1)
    labels[::5] = torch.arange(6) % 3
    return model, images, labels


def on_both(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return copy.deepcopy(model), copy.deepcopy(model).cuda()


def alike(found: nn.Module, expected: nn.Module, images: torch.Tensor) -> bool:
    """Tell whether a network on the GPU gives what one on the CPU gives."""
    assert all(tensor.is_cuda for tensor in (*found.parameters(), *found.buffers()))
    return torch.allclose(predict(found, images), predict(expected, images), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_pruning(task, method):
    model, *samples = task
    expected, found = (
        lrp_core.prune(one, *samples, method=method, multiply_adds=0.5, folds=0, progress=False)
        for one in on_both(model)
    )
    assert found.kept == expected.kept
    assert [row.multiply_adds for row in found.path] == [row.multiply_adds for row in expected.path]
    for asked in ({"multiply_adds": 0.5}, {"pruning_ratio": 0.3}):
        assert alike(found.select(**asked).model, expected.select(**asked).model, samples[0])


def test_estimates(task):
    model, *samples = task
    expected, found = (
        lrp_core.prune(one, *samples, multiply_adds=0.5, folds=3, progress=False).estimate for one in on_both(model)
    )
    assert found.accuracy == pytest.approx(expected.accuracy)
    assert found.accuracy_interval == pytest.approx(expected.accuracy_interval)


def test_images_that_are_on_the_gpu(task):
    model, images, labels = task
    expected, found = (
        lrp_core.prune(one, *samples, multiply_adds=0.5, folds=0, progress=False)
        for one, samples in zip(on_both(model), ((images, labels), (images.cuda(), labels.cuda())), strict=True)
    )
    assert found.kept == expected.kept


def test_what_was_saved_comes_back_on_either(task, tmp_path):
    model, images, labels = task
    found = lrp_core.prune(on_both(model)[1], images, labels, multiply_adds=0.5, folds=0, progress=False)
    found.save(tmp_path / "pruned.safetensors")
    loaded = lrp_core.load_pruned(tmp_path / "pruned.safetensors", lambda: settle(Blocks()).double())
    on_gpu = lrp_core.load_pruned(tmp_path / "pruned.safetensors", lambda: settle(Blocks()).double().cuda())
    assert alike(found.model, loaded, images)
    assert alike(on_gpu, loaded, images)


@pytest.mark.parametrize("composite", ["epsilon-zplus", "epsilon-alpha2-beta1"])
def test_relevance(task, composite):
    model, images, labels = task
    expected, found = (lrp_core.filter_relevance(one, images, labels, composite) for one in on_both(model))
    assert all(torch.allclose(found[name].cpu(), relevance, rtol=1e-6) for name, relevance in expected.items())


def test_relevance_in_float32(task, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, images, labels = task
    cpu, gpu = on_both(model.float())
    model.double()
    expected, found = (lrp_core.filter_relevance(one, images.float(), labels) for one in (cpu, gpu))
    assert all(
        torch.allclose(found[name].cpu(), relevance, rtol=1e-3, atol=1e-5) for name, relevance in expected.items()
    )


def test_alternatives(task):
    model, images, _ = task
    cpu, gpu = on_both(model)
    for merge in (neuron_merging, layer_by_layer):
        pairs = zip(merge(gpu, images, [0.7, 0.5]), merge(cpu, images, [0.7, 0.5]), strict=True)
        assert all(found[0] == expected[0] and alike(found[1], expected[1], images) for found, expected in pairs)
    found, expected = (
        next(iter(layer_by_layer(one, images, [0.5], repair=Reconstruction(one, images))))[1] for one in (gpu, cpu)
    )
    assert alike(found, expected, images)
