"""Reconstruction without training: the channels that stay take over the part of those that are gone.

A layer read channels y in the unpruned network; in the pruned one it reads x, fewer of them, and not what they were,
since the layers before it are pruned too. The best linear stand-in for y is a ridge regression on x and a constant,
over positions and calibration images, that leaves alone what needs no mending: with P the matrix that hands on what stayed,
M = P + (Y - P X) X^T (X X^T + strength * mean(Y^2) * I)^-1. The layer's weights W then become W M, tap by tap, and
its bias gains the constant's part. Layers are mended in their order, each on what the mended ones before it give. No
label is read and nothing is trained.

Ours. The nearest in the literature fits the weights of one layer after the other to sampled outputs, those of the
unpruned network (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, sec. 3.1 and 3.2);
here inputs stand in for inputs, so that one solution of the size of the channels serves all taps and all filters.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import Layer
from lrp_core.graph.tracing import trace
from lrp_core.pruning.dependency import Coupling
from lrp_core.pruning.surgery import replace_tensor
from lrp_core.utils.devices import device_of
from lrp_core.utils.sites import AllReduce, single_site

STRENGTH = 1e-3  # chosen on development seeds, that no result uses
POSITIONS = 16  # of a feature map that are looked at, drawn once


class Reconstruction:
    """What the layers of an unpruned network read, and the weights that this gives a smaller one.

    Convolutions with groups, depthwise ones among them, stay as they are: no other channel can stand in for the one
    that a filter reads. A dense layer without a bias gets none.
    """

    def __init__(
        self, model: nn.Module, images: torch.Tensor, strength: float = STRENGTH, all_reduce: AllReduce = single_site
    ):
        """Run the unpruned network over the calibration images.

        Args:
            model: made of supported layers; untouched, and expected not to change.
            images: (N, C, H, W), normalised.
            strength: of the ridge, relative to the mean second moment of the channels that the layer reads.
            all_reduce: sums over images, over all places.
        """
        if strength <= 0:
            raise ValueError(f"the ridge needs a strength above 0, got {strength}")
        self._strength, self._all_reduce = strength, all_reduce
        layers, device = trace(model), device_of(model)
        self._originals = {
            layer.name: layer.module
            for layer in layers
            if isinstance(layer.module, nn.Linear) or (isinstance(layer.module, nn.Conv2d) and layer.module.groups == 1)
        }
        self._positions: dict[str, torch.Tensor] = {}
        self._read: dict[str, torch.Tensor] = {}
        channels = {}

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            maps = lives[0][layer.inputs[0]]
            if isinstance(layer.module, nn.Flatten):
                channels[layer.name] = maps.shape[1]
            if layer.name in self._originals:
                n_channels = channels.get(layer.inputs[0], maps.shape[1])
                generator = torch.Generator().manual_seed(0)
                chosen = torch.randperm(maps[0].numel() // n_channels, generator=generator)[:POSITIONS]
                self._positions[layer.name] = chosen.to(device)
                self._read[layer.name] = self._samples(layer, lives, n_channels)

        with torch.no_grad():
            run_together(layers, batched(images, device), visit)

    def compensation(
        self, coupling: Coupling, kept_groups: np.ndarray
    ) -> Callable[[Layer, list[dict[str, torch.Tensor]]], None]:
        """Return what gives layers of a smaller network weights that make up for what is gone, when they are run.

        Args:
            coupling: of the unpruned network, or of a part of it (:func:`lrp_core.graph.truncation.truncated`).
            kept_groups: which groups are left, (n_groups,), boolean.
        """
        kept_groups = np.append(kept_groups, True)  # group -1
        kept = {
            name: kept_groups[coupling.channels[name]].reshape(len(y), -1)[:, 0]
            for name, y in self._read.items()
            if name in coupling.channels
        }
        names = list(self._read)
        first = next((i for i, name in enumerate(names) if name not in kept or not kept[name].all()), len(names))
        changed = set(names[first:])  # all that comes after the first layer that lost inputs, or was lost itself

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in changed:
                inputs = torch.from_numpy(kept[layer.name])
                x = self._samples(layer, lives, int(inputs.sum()))
                filters = coupling.filters.get(layer.name)
                outputs = slice(None) if filters is None else torch.from_numpy(kept_groups[filters])
                original, y = self._originals[layer.name], self._read[layer.name]
                self._compensate(layer.module, original, x, y, inputs.to(x.device), outputs)

        return visit

    def _samples(self, layer: Layer, lives: list[dict[str, torch.Tensor]], n_channels: int) -> torch.Tensor:
        """Return what a layer reads, (n_channels, samples): positions count as samples, before and after flattening."""
        maps = (live[layer.inputs[0]].unflatten(1, (n_channels, -1)).flatten(2) for live in lives)
        return torch.cat([a[..., self._positions[layer.name]].transpose(0, 1).flatten(1) for a in maps], dim=1)

    def _compensate(
        self,
        module: nn.Module,
        original: nn.Module,
        x: torch.Tensor,
        y: torch.Tensor,
        inputs: torch.Tensor,
        outputs: torch.Tensor | slice,
    ) -> None:
        """Set weight and bias of a layer that reads x, (K, samples), in place of y, (C, samples).

        ``inputs``, (C,), and ``outputs``, (C_out,), are masks of what stayed.
        """
        n_kept = len(x)
        if has_constant := isinstance(original, nn.Conv2d) or original.bias is not None:
            x = torch.cat([x, torch.ones_like(x[:1])])
        moments = self._all_reduce((x @ x.T).double())
        missing = self._all_reduce((x @ y.T).double())
        missing[:, inputs] -= moments[:, :n_kept]
        # What is read may be dead on these images. Any strength will do if all of it is.
        scale = self._all_reduce(y.square().sum(dim=1)).mean().item() or 1.0
        moments.diagonal().add_(self._strength * scale)
        weight = original.weight.detach()[outputs]
        taps = weight.unflatten(1, (len(y), -1)).flatten(2)  # (C_out, C, taps)
        each = taps.transpose(0, 1).flatten(1)  # (C, C_out * taps)
        factor = torch.linalg.cholesky(moments)
        if each.shape[1] < len(y):  # the fewer columns to solve for, the better
            change = torch.cholesky_solve(missing @ each.double(), factor).to(each)
        else:
            change = torch.cholesky_solve(missing, factor).to(each) @ each
        change[:n_kept] += each[inputs]
        mended = change.unflatten(1, (len(taps), -1)).transpose(0, 1)  # (C_out, K, taps), the constant last
        replace_tensor(
            module, "weight", mended[:, :n_kept].reshape(len(weight), -1, *weight.shape[2:]), original.weight
        )
        if has_constant:
            bias = mended[:, -1].sum(dim=1)
            bias = bias if original.bias is None else bias + original.bias.detach()[outputs]
            module.bias = nn.Parameter(bias, requires_grad=False)
