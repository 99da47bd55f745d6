"""How a convolution pads what it reads."""

import math

import torch
from torch import nn


def padding(layer: nn.Conv2d, a: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return the zeros around an input (N, C, H, W): those alike on both sides, and what else is needed.

    Returns:
        ``(rows, columns), (left, right, top, bottom)``, as ``F.conv2d`` and ``F.pad`` take them.
    """
    if isinstance(layer.padding, tuple) and type(layer) is nn.Conv2d:
        return layer.padding, (0, 0, 0, 0)
    extra = []
    for axis in (1, 0):  # the width first, as F.pad wants it
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        if layer.padding == "valid":
            total = 0
        else:  # as many outputs as strides fit into the input
            size, stride = a.shape[2 + axis], layer.stride[axis]
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        extra += [total // 2, total - total // 2]
    return (0, 0), tuple(extra)
