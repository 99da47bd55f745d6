"""Reconstruction without training: fit the weights of every layer so that its output stays close to the original one.

A layer of the unpruned network outputs z. In the pruned network the same layer reads x: fewer channels, with changed
values, because earlier layers are pruned too. Its weights W, with all taps of the kernel, become

    W' = W + D,    D = R X^T (X X^T + penalty * I)^-1

W holds the original weights of the remaining channels, X the centred samples of the inputs that the kernel covers
(positions of the calibration images), and R the centred samples of z - W x. The bias makes the means equal and is not
penalised. The penalty is ``strength`` times the mean of the eigenvalues of X X^T that can differ from 0. So scaling or
shifting the activations does not change what the pruned network computes.

If the layer ends the branch of a residual block, it also compensates for changes in the shortcut: their difference is
added to z, through the batch normalisation in between. Layers are fitted from input to output, each on the outputs of
the layers already fitted. No labels are used.

Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, sec. 3.1 to 3.3 (least
squares on sampled outputs, asymmetric, branches towards the sum). The ridge towards the original weights, and refitting
for every set of removed filters, are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.batchnorm import affine
from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import BATCH_NORMS, Layer, Sum, readers
from lrp_core.graph.padding import padding
from lrp_core.graph.tracing import trace
from lrp_core.pruning.dependency import Coupling
from lrp_core.utils.devices import device_of
from lrp_core.utils.draws import generators
from lrp_core.utils.sites import AllReduce, single_site

STRENGTH = 0.1  # chosen on development seeds, which no result uses
SAMPLES = 3072  # positions per layer, over all images, drawn once
_WIDEST = 8192  # with several sites, layers with more inputs keep their weights


@dataclass(frozen=True)
class _Shortcut:
    """The shortcut that is added to the output of a layer.

    Attributes:
        norm: the batch normalisation in between; None if there is none.
        name: of the layer that outputs the shortcut.
        samples: of the shortcut in the unpruned network, (S, C).
    """

    norm: nn.BatchNorm2d | nn.SyncBatchNorm | None
    name: str
    samples: torch.Tensor


@dataclass(frozen=True)
class _Target:
    """The output of a layer in the unpruned network.

    Attributes:
        positions: the sampled positions of the output maps, by image, (N, P); None for a dense layer.
        width: of the output maps.
        samples: outputs at these positions, (S, C).
        shortcut: the shortcut that is added to them, if any.
    """

    positions: torch.Tensor | None
    width: int
    samples: torch.Tensor
    shortcut: _Shortcut | None


class Reconstruction:
    """Stores the layer outputs of an unpruned network, and fits the weights of smaller networks to them.

    Grouped convolutions, including depthwise ones, stay unchanged: in our measurements, fitting them gained nothing. A
    convolution without a bias gets one. A dense layer without a bias gets none, and its samples are not centred.
    """

    def __init__(
        self, model: nn.Module, images: torch.Tensor, strength: float = STRENGTH, all_reduce: AllReduce = single_site
    ):
        """Run the unpruned network over the calibration images.

        Args:
            model: made of supported layers; not changed here, and must not change later.
            images: (N, C, H, W), normalised.
            strength: of the ridge, relative to the mean eigenvalue of the second moments of a layer's inputs.
            all_reduce: sums over images, over all sites.

        Raises:
            ValueError: a strength of 0 or less.
        """
        if strength <= 0:
            raise ValueError(f"the ridge needs a strength above 0, got {strength}")
        self._strength, self._all_reduce = strength, all_reduce
        layers, self._targets = trace(model), {}
        shortcuts, n_images = _shortcuts(layers), self._summed(torch.tensor([float(len(images))])).item()
        per_image = math.ceil(SAMPLES / n_images)

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if _is_fitted(layer.module):
                self._targets[layer.name] = _target(layer, lives, shortcuts.get(layer.name), images, per_image)

        with torch.no_grad():
            run_together(layers, batched(images, device_of(model)), visit)

    def compensation(
        self, coupling: Coupling, kept_groups: np.ndarray
    ) -> Callable[[Layer, list[dict[str, torch.Tensor]]], None]:
        """Return a visitor that fits the weights of each layer of a smaller network right before it is run.

        Args:
            coupling: of the unpruned network, or of a part of it (:func:`lrp_core.graph.truncation.truncated`).
            kept_groups: which groups are kept, (n_groups,), boolean.
        """
        kept_groups, names = np.append(kept_groups, True), list(self._targets)  # group -1
        changes = (name not in coupling.channels or not kept_groups[coupling.channels[name]].all() for name in names)
        first = next((i for i, changed in enumerate(changes) if changed), len(names))
        changed = set(names[first:])  # all layers from the first one that lost inputs, or was itself removed

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in changed:
                filters = coupling.filters.get(layer.name)
                outputs = slice(None) if filters is None else torch.from_numpy(kept_groups[filters])
                self._fit(layer, lives, outputs)

        return visit

    def _fit(self, layer: Layer, lives: list[dict[str, torch.Tensor]], outputs: torch.Tensor | slice) -> None:
        """Fit a layer, in place, to its original values at these outputs."""
        target, module = self._targets[layer.name], layer.module
        z = target.samples[:, outputs]
        if target.shortcut is not None and target.shortcut.name in lives[0]:
            z = z + _change_of_shortcut(target, lives, outputs)
        x = _patches(layer, lives, target.positions, target.width)
        centred = module.bias is not None or isinstance(module, nn.Conv2d)
        weight, bias = self._ridge(x, z, module.weight.detach().flatten(1), centred)
        laid_out = torch.empty_like(module.weight)  # same memory layout as the unpruned weight
        module.weight = nn.Parameter(laid_out.copy_(weight.view_as(laid_out)), requires_grad=False)
        if centred:
            module.bias = nn.Parameter(bias.to(module.weight), requires_grad=False)

    def _ridge(
        self, x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, centred: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights (O, I) near the given ones that map x (S, I) to z (S, O), and the bias (O,).

        Products are computed in the dtype of the network, at least in float32, and the linear system is solved in
        float64.
        """
        if x.dtype.itemsize < 4:  # products of large values overflow
            x, z, weight = x.float(), z.float(), weight.float()
        several = self._all_reduce is not single_site
        n = self._summed(x.new_tensor([len(x)])).item()
        x_mean, z_mean = (self._summed(part.sum(dim=0)) / n if centred else 0 * part[0].double() for part in (x, z))
        if several and x.shape[1] > _WIDEST:  # the weights stay; the bias makes the means equal
            return weight, z_mean - weight.double() @ x_mean
        x, z = x - x_mean.to(x), z - z_mean.to(z)
        rest = z - x @ weight.T
        if several or x.shape[1] <= len(x):
            moments, right = self._summed(x.T @ x), self._summed(x.T @ rest)
        else:  # the same solution, in the span of the samples
            moments, right = (x @ x.T).double(), rest.double()
        # Rounding gives constant channels a small variance; the second term keeps the fit from using it.
        penalty = self._strength * moments.diagonal().sum() / min(n, x.shape[1])
        moments.diagonal().add_(penalty + torch.finfo(x.dtype).eps ** 2 * n * x_mean.square().mean() + 1e-30)
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(moments))
        change = solution.T if len(solution) == x.shape[1] else (x.double().T @ solution).T
        weight = weight.double() + change
        return weight, z_mean - weight @ x_mean

    def _summed(self, part: torch.Tensor) -> torch.Tensor:
        return self._all_reduce(part.double())


def _is_fitted(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _shortcuts(layers: list[Layer]) -> dict[str, tuple[nn.BatchNorm2d | nn.SyncBatchNorm | None, str]]:
    """Return, for each layer that ends a branch, the batch normalisation after it and the shortcut that is added.

    Of two branches that meet in a sum, the one that is run last compensates: only then is the other one known.
    """
    found, read_by, order = {}, readers(layers), {layer.name: i for i, layer in enumerate(layers)}
    for layer in layers:
        norm, last = None, layer
        if _is_fitted(layer.module) and len(read_by[layer.name]) == 1:
            (reader,) = read_by[layer.name]
            if isinstance(reader.module, BATCH_NORMS) and len(read_by[reader.name]) == 1:
                norm, last = reader.module, reader
                (reader,) = read_by[reader.name]
            others = [name for name in reader.inputs if name != last.name]
            if isinstance(reader.module, Sum) and len(others) == 1 and order.get(others[0], -1) < order[layer.name]:
                found[layer.name] = norm, others[0]
    return found


def _target(
    layer: Layer,
    lives: list[dict[str, torch.Tensor]],
    shortcut: tuple[nn.BatchNorm2d | nn.SyncBatchNorm | None, str] | None,
    images: torch.Tensor,
    per_image: int,
) -> _Target:
    """Return the output of a layer at so many random positions of each image, drawn once."""
    outputs = [layer.module(live[layer.inputs[0]]) for live in lives]
    if outputs[0].dim() == 2:
        return _Target(None, 0, torch.cat(outputs), None)
    n_positions, device = outputs[0][0, 0].numel(), outputs[0].device
    if n_positions > per_image:
        drawn = [torch.randperm(n_positions, generator=each)[:per_image] for each in generators(images, 0)]
        positions = torch.stack(drawn).to(device)
    else:
        positions = torch.arange(n_positions, device=device).expand(len(images), -1)
    added = None
    if shortcut is not None and lives[0][shortcut[1]].shape == outputs[0].shape:  # else the sum repeats one of them
        norm, name = shortcut
        added = _Shortcut(norm, name, _at([live[name] for live in lives], positions))
    return _Target(positions, outputs[0].shape[3], _at(outputs, positions), added)


def _at(maps: list[torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    """Return the values of maps, (N, C, H, W) by batch, at positions (N, P) of each image, (N * P, C)."""
    chosen = positions.split([len(part) for part in maps])
    parts = [
        part.flatten(2).gather(2, index[:, None].expand(-1, part.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        for part, index in zip(maps, chosen, strict=True)
    ]
    return torch.cat(parts)


def _patches(
    layer: Layer, lives: list[dict[str, torch.Tensor]], positions: torch.Tensor | None, width: int
) -> torch.Tensor:
    """Return the inputs that a layer's kernel covers at positions of its output, (S, inputs * taps)."""
    maps, module = [live[layer.inputs[0]] for live in lives], layer.module
    if positions is None:
        return torch.cat(maps)
    (above, beside), extra = padding(module, maps[0])
    around = [more + alike for more, alike in zip(extra, (beside, beside, above, above), strict=True)]
    if any(around):
        maps = [F.pad(part, around) for part in maps]
    rows, columns = positions // width * module.stride[0], positions % width * module.stride[1]
    if module.kernel_size == (1, 1):
        return _at(maps, rows * maps[0].shape[3] + columns)
    height, width = maps[0].shape[2:]
    pixels = torch.cat([part.permute(0, 2, 3, 1).flatten(0, 2) for part in maps])  # channels side by side in memory
    corners = torch.arange(len(positions), device=positions.device)[:, None] * height * width + rows * width + columns
    taps = [
        pixels[corners.flatten() + i * module.dilation[0] * width + j * module.dilation[1]]
        for i in range(module.kernel_size[0])
        for j in range(module.kernel_size[1])
    ]
    return torch.stack(taps, dim=2).flatten(1)


def _change_of_shortcut(
    target: _Target, lives: list[dict[str, torch.Tensor]], outputs: torch.Tensor | slice
) -> torch.Tensor:
    """Return what the layer's output must gain, (S, O), to offset the change of the shortcut."""
    shortcut = target.shortcut
    change = shortcut.samples[:, outputs] - _at([live[shortcut.name] for live in lives], target.positions)
    if shortcut.norm is None:
        return change
    scale = affine(shortcut.norm)[0][outputs]
    return torch.where(scale.abs() > 1e-3 * scale.abs().mean(), change / scale, 0.0)
