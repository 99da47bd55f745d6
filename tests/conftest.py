"""Miniature networks whose numbers can be worked out by hand, and the real one."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from lrp_core.relevance import rules
from lrp_core.study.data.pretrained import load_backbone


def miniature_vgg(seed: int = 0, flatten_positions: bool = False) -> nn.Module:
    """A VGG-like classifier of three convolutions, 8x8 pixels to 4 classes, float64.

    With ``flatten_positions`` the head reads every position of every channel, else their average.
    """
    torch.manual_seed(seed)
    layers = [
        ("conv1", nn.Conv2d(3, 6, 3, padding=1)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(6, 8, 3, padding=1)),
        ("relu2", nn.ReLU(inplace=True)),
        ("conv3", nn.Conv2d(8, 10, 3, stride=2, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("drop", nn.Dropout(0.5)),
    ]
    if not flatten_positions:
        layers.append(("pool", nn.AdaptiveAvgPool2d(1)))
    layers += [("flatten", nn.Flatten()), ("head", nn.Linear(40 if flatten_positions else 10, 4))]
    return nn.Sequential(OrderedDict(layers)).double().eval().requires_grad_(False)


@pytest.fixture
def no_stabiliser(monkeypatch):
    """Closed forms have no epsilon in the denominator."""
    monkeypatch.setattr(rules, "EPSILON", 1e-15)


@pytest.fixture
def images() -> torch.Tensor:
    """Five signed images (5, 3, 8, 8), float64."""
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def targets() -> torch.Tensor:
    """Their classes."""
    return torch.tensor([0, 1, 2, 3, 1])


@pytest.fixture(scope="session")
def vgg16() -> nn.Module:
    """The pre-trained backbone, as users get it."""
    return load_backbone("vgg16", "hed-bsds500")
