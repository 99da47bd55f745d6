"""The layers that a traced network is made of: their kinds, and who reads whom."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


class Sum(nn.Module):
    """The sum of its inputs, as at the end of a residual block."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Add inputs of one shape."""
        return sum(inputs[1:], inputs[0])


class Concat(nn.Module):
    """Its inputs side by side along the channels, as in a dense block."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Concatenate along dimension 1."""
        return torch.cat(inputs, dim=1)


class Subsample(nn.Module):
    """Every so many rows and columns of its input, as in the parameter-free shortcut of He et al. (2016, option A)."""

    def __init__(self, rows: int, columns: int):
        """Take the steps."""
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W) apart."""
        return a[:, :, :: self.rows, :: self.columns]


class PadChannels(nn.Module):
    """Channels of zeros before and behind those of its input, as in the same shortcut.

    Attributes:
        before, behind: how many; removal makes them fewer.
    """

    def __init__(self, before: int, behind: int):
        """Take the numbers of channels."""
        super().__init__()
        self.before, self.behind = before, behind

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Pad (N, C, H, W)."""
        return F.pad(a, (0, 0, 0, 0, self.before, self.behind))


class Resize(nn.Upsample):
    """Bilinear interpolation to a fixed size, with antialiasing, as images are made smaller."""

    def __init__(self, size: tuple[int, int]):
        """Take height and width."""
        super().__init__(size=tuple(size), mode="bilinear")

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Resize (N, C, H, W)."""
        wide = a if a.dtype == torch.float64 else a.float()  # on a CPU torch does it in these precisions only
        return F.interpolate(wide, self.size, mode=self.mode, antialias=True).to(a.dtype)


class SquarePool(nn.AvgPool2d):
    """``F.avg_pool2d(x, x.size(3))``: average pooling by a square as wide, or as high, as the input.

    Attributes:
        axis: 3 for the width, 2 for the height.
    """

    def __init__(self, axis: int):
        """Take the axis: the size comes with the input."""
        super().__init__(1)
        self.axis = axis

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Pool (N, C, H, W)."""
        return F.avg_pool2d(a, a.shape[self.axis])


class Product(nn.Module):
    """The product of two inputs, position by position, as where a gate scales feature maps."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Multiply maps (N, C, H, W); one of the two may have one position only, (N, C, 1, 1)."""
        return a * b


class ChannelScale(nn.Module):
    """Each channel times a number, plus a number, as by the LayerScale of ConvNeXt; they do not depend on the input.

    Attributes:
        weight: (C,), a parameter or buffer.
        bias: of the same kind, or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        """Take the numbers; a parameter stays one, another tensor becomes a buffer."""
        super().__init__()
        for name, tensor in (("weight", weight), ("bias", bias)):
            keep = self.register_parameter if isinstance(tensor, nn.Parameter) else self.register_buffer
            keep(name, tensor)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Scale and shift (N, C, H, W) or (N, C)."""
        shape = (-1, *[1] * (a.dim() - 2))
        scaled = a * self.weight.view(shape)
        return scaled if self.bias is None else scaled + self.bias.view(shape)


class ChannelSlice(nn.Module):
    """Some channels of its input, as one part of ``x.chunk(2, 1)``.

    Attributes:
        start, stop: the first channel, and the one behind the last; removal moves them.
    """

    def __init__(self, start: int, stop: int):
        """Take the bounds."""
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Take channels of (N, C, H, W)."""
        return a[:, self.start : self.stop]


class ChannelPermutation(nn.Module):
    """The channels of its input in another order, as by the shuffle of ShuffleNet.

    Attributes:
        index: by channel of the output, that of the input, (C,).
    """

    def __init__(self, index: torch.Tensor):
        """Take the order."""
        super().__init__()
        self.register_buffer("index", index, persistent=False)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Reorder the channels of (N, C, H, W)."""
        if a.shape[1] != len(self.index):
            raise ValueError(f"{len(self.index)} channels are expected here, and there are {a.shape[1]}")
        return a[:, self.index.to(a.device)]


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels at each position, as in ConvNeXt.

    Attributes:
        weight, bias: (C,) each, or None.
        eps: is added to the variance.
    """

    def __init__(self, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float):
        """Take the parameters of a layer normalisation."""
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, eps

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W)."""
        last = a.movedim(1, -1)
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps).movedim(-1, 1)


class PointwiseConv(nn.Conv2d):
    """A dense layer on the channels of maps: the convolution with a kernel of 1 x 1, computed as the dense layer.

    That is one product of matrices for all images. On one thread torch makes one for each image of small batches of a
    convolution, which reads the whole weight for a few positions.
    """

    def __init__(self, layer: nn.Linear):
        """Take a dense layer; its parameters are shared."""
        super().__init__(layer.in_features, layer.out_features, 1, device="meta")
        self.weight = nn.Parameter(layer.weight.detach()[:, :, None, None], layer.weight.requires_grad)
        self.bias = layer.bias
        self.train(layer.training)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        return F.linear(a.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class ChannelConv(nn.Module):
    """A convolution along the channels of a pooled map, as in the gate of Efficient Channel Attention (ECA).

    Attributes:
        weight: (K,), shared by all channels.
        bias: (1,) or None.
        index: by channel, those that it reads, (C, K); -1 where there is none. Removal leaves the others in place.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, channels: int):
        """Take the kernel, which is centred on the channel, and the number of channels."""
        super().__init__()
        self.weight, self.bias = weight, bias
        index = torch.arange(channels)[:, None] + torch.arange(len(weight)) - len(weight) // 2
        self.register_buffer("index", index.masked_fill((index < 0) | (index >= channels), -1), persistent=False)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Convolve the channels of (N, C, 1, 1)."""
        zero = torch.zeros_like(a[:, :1])
        read = torch.cat([a, zero], dim=1)[:, self.index.to(a.device)]  # (N, C, K, 1, 1); -1 is the zero
        result = (read * self.weight.view(-1, 1, 1)).sum(dim=2)
        return result if self.bias is None else result + self.bias


@dataclass(frozen=True)
class Layer:
    """One operation of a traced network.

    Attributes:
        name: as in ``named_modules()``; for a bare function, its name in the trace.
        module: what it computes, never in place; shares its parameters with the traced model.
        inputs: names of the layers that it reads, in the order of the module's arguments, ``"input"`` being the
            network's input. A name occurs as often as the module reads it: twice for ``x + x``.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


INPUT = "input"

WEIGHTED = (nn.Conv2d, PointwiseConv, nn.Linear)  # kinds (with their subclasses) that hold a weight
RECTIFIERS = (nn.ReLU, nn.ReLU6)  # activations that lose what is negative
NONNEGATIVE = (*RECTIFIERS, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)  # whose outputs cannot be negative
ACTIVATIONS = (  # by channel and position
    *NONNEGATIVE,
    *(nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Tanh, nn.Hardtanh),
)
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, SquarePool)
PADDING = (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)  # of positions
RESIZING = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, Resize)  # by averages of positions
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)  # of maps; they predict alike
NORMS = (*BATCH_NORMS, nn.GroupNorm, ChannelNorm)
REARRANGED = (ChannelSlice, ChannelPermutation, PadChannels)  # channels go elsewhere, or come from nowhere
STATEFUL = (*WEIGHTED, *NORMS, ChannelScale, ChannelConv, nn.PReLU, *REARRANGED)  # differ in a smaller network
VIEWS = (nn.Flatten, Subsample, ChannelSlice)  # of the memory of what they read
IDENTITIES = (nn.Dropout, nn.Dropout2d, nn.Identity)  # do nothing in a network that predicts
OUTPUTS = (nn.Softmax, nn.LogSoftmax)  # only at the network's end
SUPPORTED = (
    *(*STATEFUL, *ACTIVATIONS, *POOLING, *PADDING, *RESIZING, nn.Flatten, Subsample),
    *(Sum, Product, Concat, *IDENTITIES, *OUTPUTS),
)


def pads_like_tensorflow(module: nn.Module) -> bool:
    """Return whether a module is timm's convolution with TensorFlow's padding: apart from that, a plain one."""
    kind = type(module)
    return isinstance(module, nn.Conv2d) and kind.__name__ == "Conv2dSame" and kind.__module__.startswith("timm.")


def readers(layers: list[Layer]) -> dict[str, list[Layer]]:
    """Return the layers that read each layer, and the network's input, by name; one that reads it twice, twice."""
    found: dict[str, list[Layer]] = {name: [] for name in (INPUT, *(layer.name for layer in layers))}
    for layer in layers:
        for source in layer.inputs:
            found[source].append(layer)
    return found


def needed(layers: list[Layer], output: str) -> list[Layer]:
    """Return those layers that a layer's output depends on, itself included, in their order."""
    names = {output}
    for layer in reversed(layers):
        if layer.name in names:
            names.update(layer.inputs)
    return [layer for layer in layers if layer.name in names]
