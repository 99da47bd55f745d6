"""Reconstruction without training: the channels that are kept take over the part of those that are pruned.

A layer reads channels y in the unpruned network. In the pruned network it reads x: fewer channels, and not what they
were, since the layers before it are pruned too. Its stand-in for y is affine, and only a correction D is penalised:

    y ~ mean(y) + (P + D) (x - mean(x)),    D = R X^T (X X^T + strength * n * variance * I)^-1

P hands on the channels that are kept. X and R hold the n samples (positions of all calibration images) of x and of
y - P x, less their means, and ``variance`` is that of a channel of y, averaged over channels. So D is a ridge
regression with a free intercept: neither the scale of the activations nor a constant added to them changes what the
pruned network computes. The layer's weights W become W' = W (P + D), tap by tap, and its bias gains the sum over
taps of W mean(y) - W' mean(x). (Where a convolution pads with zeros, that is an approximation at the border.) Layers
are updated from input to output, each on what the updated ones before it give. No label is read, nothing is trained.

Ours. The nearest in the literature fits the weights of one layer after the other to sampled outputs, those of the
unpruned network (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, sec. 3.1 and 3.2).
Here inputs stand in for inputs, so that one solution of the size of the channels serves all taps and all filters.
"""

from collections.abc import Callable
from dataclasses import dataclass

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

STRENGTH = 1e-3  # chosen on development seeds, which no result uses
POSITIONS = 16  # of a feature map that are looked at, drawn once
CHUNK = 4096  # samples that are in float64 at a time


@dataclass(frozen=True)
class _Target:
    """What a layer reads in the unpruned network.

    Attributes:
        samples: (C, S), of this site.
        mean: of the samples of all sites, (C,), float64; 0 for a layer that has no bias to put a mean into.
        n: how many samples all sites have.
        penalty: what is added to the diagonal of the moments.
    """

    samples: torch.Tensor
    mean: torch.Tensor
    n: float
    penalty: float


class Reconstruction:
    """What the layers of an unpruned network read, and the weights that this gives a smaller one.

    Convolutions with groups, depthwise ones among them, stay as they are: no other channel can stand in for the one
    that a filter reads. A convolution without a bias gets one. A dense layer without a bias gets none: nothing is
    centred there, and the second moment takes the place of the variance.
    """

    def __init__(
        self, model: nn.Module, images: torch.Tensor, strength: float = STRENGTH, all_reduce: AllReduce = single_site
    ):
        """Run the unpruned network over the calibration images.

        Args:
            model: made of supported layers; untouched, and expected not to change.
            images: (N, C, H, W), normalised.
            strength: of the ridge, relative to the variance of a channel that the layer reads, averaged over channels.
            all_reduce: sums over images, over all sites.

        Raises:
            ValueError: a strength of 0 or less.
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
        self._targets: dict[str, _Target] = {}
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
                self._targets[layer.name] = self._target(layer, self._samples(layer, lives, n_channels))

        with torch.no_grad():
            run_together(layers, batched(images, device), visit)

    def compensation(
        self, coupling: Coupling, kept_groups: np.ndarray
    ) -> Callable[[Layer, list[dict[str, torch.Tensor]]], None]:
        """Return what updates the weights of a smaller network's layers when they are about to be run.

        Args:
            coupling: of the unpruned network, or of a part of it (:func:`lrp_core.graph.truncation.truncated`).
            kept_groups: which groups are kept, (n_groups,), boolean.
        """
        kept_groups = np.append(kept_groups, True)  # group -1
        kept = {
            name: kept_groups[coupling.channels[name]].reshape(len(target.mean), -1)[:, 0]
            for name, target in self._targets.items()
            if name in coupling.channels
        }
        names = list(self._targets)
        first = next((i for i, name in enumerate(names) if name not in kept or not kept[name].all()), len(names))
        changed = set(names[first:])  # all that comes after the first layer that lost inputs, or was lost itself

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in changed:
                inputs = torch.from_numpy(kept[layer.name])
                x = self._samples(layer, lives, int(inputs.sum()))
                filters = coupling.filters.get(layer.name)
                outputs = slice(None) if filters is None else torch.from_numpy(kept_groups[filters])
                self._update(layer, x, inputs.to(x.device), outputs)

        return visit

    def _samples(self, layer: Layer, lives: list[dict[str, torch.Tensor]], n_channels: int) -> torch.Tensor:
        """Return what a layer reads, (n_channels, samples): positions count as samples, before and after flattening."""
        maps = (live[layer.inputs[0]].unflatten(1, (n_channels, -1)).flatten(2) for live in lives)
        return torch.cat([a[..., self._positions[layer.name]].transpose(0, 1).flatten(1) for a in maps], dim=1)

    def _mean(self, layer: Layer, samples: torch.Tensor, n: float) -> torch.Tensor:
        """Return the mean over all sites, (C,); 0 if the layer has no constant to put it into."""
        if isinstance(self._originals[layer.name], nn.Linear) and self._originals[layer.name].bias is None:
            return samples.new_zeros(len(samples), dtype=torch.float64)
        return self._all_reduce(_summed(lambda y: y.sum(dim=1), samples)) / n

    def _target(self, layer: Layer, samples: torch.Tensor) -> _Target:
        n = self._all_reduce(torch.tensor([float(samples.shape[1])], dtype=torch.float64, device=samples.device)).item()
        mean = self._mean(layer, samples, n)
        squares = self._all_reduce(_summed(lambda y: (y - mean[:, None]).square().sum(dim=1), samples))
        # Of channels that are constant on these images rounding leaves a variance, to which nothing is to be fitted.
        rounding = torch.finfo(samples.dtype).eps ** 2 * mean.square().mean().item()
        # Any penalty will do if all that is read is 0.
        penalty = self._strength * n * (squares.mean().item() / n + rounding or 1.0)
        return _Target(samples, mean, n, penalty)

    def _update(self, layer: Layer, x: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor | slice) -> None:
        """Set weight and bias of a layer that reads x, (K, S), in the place of its target, (C, S).

        ``inputs``, (C,), and ``outputs``, (C_out,), are masks of what is kept.
        """
        module, original, target = layer.module, self._originals[layer.name], self._targets[layer.name]
        mean = self._mean(layer, x, target.n)
        lost = target.samples.clone()  # y - P x
        lost[inputs] -= x
        lost_mean = target.mean.clone()
        lost_mean[inputs] -= mean

        def products(x: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
            x = x - mean[:, None]
            return x @ torch.cat([x, lost - lost_mean[:, None]]).T

        moments, missing = self._all_reduce(_summed(products, x, lost)).split([len(x), len(lost)], dim=1)
        factor = torch.linalg.cholesky(moments + target.penalty * torch.eye(len(x)).to(moments))
        weight = original.weight.detach()[outputs]
        taps = weight.unflatten(1, (len(lost), -1)).flatten(2)  # (C_out, C, taps)
        each = taps.transpose(0, 1).flatten(1)  # (C, C_out * taps)
        if each.shape[1] < len(lost):  # the fewer columns to solve for, the better
            new = torch.cholesky_solve(missing @ each.double(), factor).to(each)
        else:
            new = torch.cholesky_solve(missing, factor).to(each) @ each
        new += each[inputs]
        new = new.unflatten(1, (len(taps), -1)).transpose(0, 1)  # (C_out, K, taps)
        replace_tensor(module, "weight", new.reshape(len(weight), -1, *weight.shape[2:]), original.weight)
        if original.bias is not None or isinstance(original, nn.Conv2d):
            bias = taps.sum(dim=2).double() @ target.mean - new.sum(dim=2, dtype=torch.float64) @ mean
            bias = bias if original.bias is None else bias + original.bias.detach()[outputs]
            module.bias = nn.Parameter(bias.to(weight), requires_grad=False)


def _summed(term: Callable[..., torch.Tensor], *samples: torch.Tensor) -> torch.Tensor:
    """Return the sum of a term of samples, (C, S) each, over chunks of them in float64."""
    chunks = zip(*(part.split(CHUNK, dim=1) for part in samples), strict=True)
    return sum(term(*(part.double() for part in parts)) for parts in chunks)
