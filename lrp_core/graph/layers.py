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


class SquarePool(nn.AvgPool2d):
    """``F.avg_pool2d(x, x.size(3))``: average pooling by a square as wide as the input."""

    def __init__(self):
        """Take nothing: the size comes with the input."""
        super().__init__(1)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Pool (N, C, H, W)."""
        return F.avg_pool2d(a, a.shape[3])


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

WEIGHTED = (nn.Conv2d, nn.Linear)  # kinds (with their subclasses) that hold a weight
ACTIVATIONS = (nn.ReLU, nn.ReLU6)  # not negative, by channel and position
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, SquarePool)
STATEFUL = (*WEIGHTED, nn.BatchNorm2d, PadChannels)  # differ between a network and a smaller one
VIEWS = (nn.Flatten, Subsample)  # of the memory of what they read
IDENTITIES = (nn.Dropout, nn.Identity)  # do nothing in a network that predicts
SUPPORTED = (*STATEFUL, *ACTIVATIONS, *POOLING, nn.Flatten, Subsample, Sum, Concat, *IDENTITIES)


def readers(layers: list[Layer]) -> dict[str, list[Layer]]:
    """Return the layers that read each layer, and the network's input, by name; one that reads it twice, twice."""
    found: dict[str, list[Layer]] = {name: [] for name in (INPUT, *(layer.name for layer in layers))}
    for layer in layers:
        for source in layer.inputs:
            found[source].append(layer)
    return found
