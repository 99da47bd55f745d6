"""Convolutions and dense layers as linear maps, forward and transposed, for the rules of LRP."""

from functools import cached_property

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.layers import PointwiseConv
from lrp_core.graph.padding import padding


class LinearMap:
    """A convolution or dense layer without its bias, and with the possible signs of its inputs and outputs.

    Attributes:
        weight, positive, negative: the weight, its positive and its negative part; parts are computed on first use.
        bias: (C_out,) or None.
        signed: whether inputs can be negative.
        rectified: whether an activation follows, so that negative outputs carry no relevance.
    """

    def __init__(self, layer: nn.Module, signed: bool, rectified: bool):
        """Take a convolution or dense layer; nothing is copied."""
        self._layer, self.signed, self.rectified = layer, signed, rectified
        self.weight = layer.weight.detach()
        self.bias = None if layer.bias is None else layer.bias.detach()

    @cached_property
    def positive(self) -> torch.Tensor:
        """The positive part of the weight."""
        return self.weight.clamp(min=0)

    @cached_property
    def negative(self) -> torch.Tensor:
        """The negative part of the weight."""
        return self.weight.clamp(max=0)

    def __call__(self, weight: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Map inputs to outputs with these weights."""
        if isinstance(self._layer, nn.Linear):
            return F.linear(a, weight)
        if isinstance(self._layer, PointwiseConv):
            return F.linear(a.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)
        alike, extra = padding(self._layer, a)
        return F.conv2d(F.pad(a, extra) if any(extra) else a, weight, None, padding=alike, **self._geometry)

    def transposed(self, weight: torch.Tensor, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Map outputs back to inputs of the shape of ``a``, with these weights."""
        if isinstance(self._layer, nn.Linear):
            return s @ weight
        if isinstance(self._layer, PointwiseConv):
            return (s.movedim(1, -1) @ weight.flatten(1)).movedim(-1, 1)
        alike, (left, right, top, bottom) = padding(self._layer, a)
        height, width = a.shape[2] + top + bottom, a.shape[3] + left + right
        # Rows and columns at the end that no stride reached: F.conv_transpose2d has to be told about them.
        rest = [
            size + 2 * pad - dilation * (kernel - 1) - 1 - (outputs - 1) * stride
            for size, pad, dilation, kernel, outputs, stride in zip(
                (height, width),
                alike,
                self._layer.dilation,
                self._layer.kernel_size,
                s.shape[2:],
                self._layer.stride,
                strict=True,
            )
        ]
        back = F.conv_transpose2d(s, weight, None, padding=alike, output_padding=rest, **self._geometry)
        return back[:, :, top : height - bottom, left : width - right]

    def unbiased(self, output: torch.Tensor) -> torch.Tensor:
        """Subtract the bias from the layer's output; always a new tensor."""
        if self.bias is None:
            return output.clone()
        return output - (self.bias if output.dim() == 2 else self.bias.view(-1, 1, 1))

    @property
    def _geometry(self) -> dict:
        return {"stride": self._layer.stride, "dilation": self._layer.dilation, "groups": self._layer.groups}
