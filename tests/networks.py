"""Small and large networks with random parameters, for tests: what the architectures do, not what they know."""

import copy
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.truncation import classifier
from lrp_core.study.data.pretrained import load_backbone

BACKBONES = [
    "vgg11",
    "vgg16",
    "vgg19",
    "vgg11_bn",
    "vgg16_bn",
    "vgg19_bn",
    "alexnet",
    "resnet18",
    "resnet34",
    "resnet50",
]
BACKBONES += ["mobilenet_v2", "densenet121", "efficientnet-lite0", "squeezenet1_1"]
IMAGE_SIZE = {"alexnet": 64}  # others: 32


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters and running statistics so that signals neither die nor explode; eval mode, frozen."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data.uniform_(low, high, generator=generator)

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
            if layer.bias is not None:
                draw(layer.bias, -0.1, 0.1)
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
            draw(layer.weight, 0.5, 1.5)
            draw(layer.bias, -0.1, 0.1)
            draw(layer.running_mean, -0.1, 0.1)
            draw(layer.running_var, 0.5, 1.5)
        if hasattr(layer, "inplace"):
            layer.inplace = False
    return model.eval().requires_grad_(False)


def without_biases(model: nn.Module) -> nn.Module:
    """Set to 0 whatever adds a constant, in place."""
    for layer in model.modules():
        for name in ("bias", "running_mean"):
            if getattr(layer, name, None) is not None:
                getattr(layer, name).zero_()
    return model


def network(name: str, n_classes: int = 4) -> nn.Module:
    """A backbone with a linear head on pooled features, float32."""
    with torch.random.fork_rng():
        backbone = load_backbone(name, "random")
        size = backbone(torch.zeros(1, 3, 64, 64)).shape[1]
        return settle(classifier(backbone, torch.zeros(n_classes, size)))


def draw_images(name: str, n: int = 2) -> torch.Tensor:
    size = IMAGE_SIZE.get(name, 32)
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def depthwise_network() -> nn.Module:
    """As in MobileNetV1, with a linear bottleneck (no activation) in the middle; float64."""
    layers = [
        ("stem", nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)),
        ("norm0", nn.BatchNorm2d(8)),
        ("relu0", nn.ReLU6()),
        ("depth1", nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)),
        ("norm1", nn.BatchNorm2d(8)),
        ("relu1", nn.ReLU6()),
        ("point1", nn.Conv2d(8, 12, 1, bias=False)),
        ("norm2", nn.BatchNorm2d(12)),
        ("expand", nn.Conv2d(12, 24, 1)),
        ("relu2", nn.ReLU()),
        ("depth2", nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24)),
        ("relu3", nn.ReLU()),
        ("grouped", nn.Conv2d(24, 16, 3, padding=1, groups=4)),
        ("relu4", nn.ReLU()),
        ("pool", nn.AvgPool2d(2)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(256, 4)),
    ]
    return settle(nn.Sequential(OrderedDict(layers))).double()


class Branches(nn.Module):
    """A block with every way for channels to meet, functional calls among them; float64.

    ``a`` and ``b`` are concatenated; ``c`` is added to the whole; ``own`` reads both with a batch normalisation first.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 4, 3, padding=1)
        self.b = nn.Conv2d(6, 5, 1)
        self.c = nn.Conv2d(6, 9, 3, padding=1)
        self.norm = nn.BatchNorm2d(9)
        self.own = nn.Conv2d(9, 7, 3, padding=1)
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        joined = torch.cat([self.a(x), self.b(x)], 1)
        joined += self.c(x)
        x = F.relu(self.own(F.relu(self.norm(joined))))
        return self.head(x.mean((2, 3)))


class Repeating(nn.Module):
    """A network that reads values twice, in a sum and side by side; float64 once settled and doubled.

    ``doubled`` is added to itself; ``beside`` is concatenated with itself before ``joined`` reads it.
    """

    def __init__(self):
        super().__init__()
        self.doubled, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.beside = nn.Conv2d(6, 5, 3, padding=1)
        self.joined = nn.Conv2d(10, 7, 3)
        self.head = nn.Linear(14, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.doubled(x)))
        x = x + x
        x = F.relu(self.beside(x))
        x = F.relu(self.joined(torch.cat([x, x], dim=1)))
        x = x.mean((2, 3))
        return self.head(torch.cat([x, x], 1))

    def read_once(self) -> nn.Module:
        """Return the plain network that computes the same: weights doubled or added up instead."""
        plain = nn.Sequential(
            OrderedDict(
                doubled=copy.deepcopy(self.doubled),
                norm=copy.deepcopy(self.norm),
                relu1=nn.ReLU(),
                beside=copy.deepcopy(self.beside),
                relu2=nn.ReLU(),
                joined=nn.Conv2d(5, 7, 3),
                relu3=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                head=nn.Linear(7, 4),
            )
        )
        plain.beside.weight.data *= 2
        for name in ("joined", "head"):
            both = getattr(self, name)
            getattr(plain, name).weight.data = sum(both.weight.detach().chunk(2, dim=1))
            getattr(plain, name).bias.data = both.bias.detach()
        return plain.eval().requires_grad_(False)
