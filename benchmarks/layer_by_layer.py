"""The plainest alternative: choose filters layer by layer, then fit the weights that read them by least squares.

Every layer keeps the same share of its filters. Greedy forward selection chooses them (orthogonal matching pursuit over
channels, a channel with all its kernel taps at a time), so that what reads them can best rebuild its outputs, as in El
Halabi et al., Data-Efficient Structured Pruning via Submodular Optimization, NeurIPS 2022. Then, from input to output,
each reader's weights are fitted to its outputs in the unpruned network, on what it reads in the pruned one, as in He
et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, sec. 3.1 and 3.2. Channels that meet in a
residual sum stay. No label is read, nothing is trained.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.control.cost import LayerCost, cost_kept, layer_costs
from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import Layer, PadChannels, Sum, readers
from lrp_core.pruning.dependency import Coupling
from lrp_core.pruning.network import Compensation, PrunedNetwork
from lrp_core.pruning.surgery import replace_tensor
from lrp_core.utils.devices import device_of

SAMPLES = 4096  # positions of all images that a layer is fitted to
STRENGTH = 1e-2  # of the ridge, relative to the mean variance of what is read
Costs = Callable[[PrunedNetwork, torch.Tensor], list[LayerCost]]  # from a network and an image, (1, C, H, W)


@dataclass(frozen=True)
class ChannelSet:
    """Channels among which filters are chosen: all that the same layers read, and that meet in no residual sum.

    Attributes:
        behind: by convolution that makes some of the channels, the layers that they pass on their way.
        readers: names of the convolutions and dense layers that read them.
    """

    behind: dict[str, tuple[Layer, ...]]
    readers: tuple[str, ...]


def channel_sets(layers: list[Layer]) -> list[ChannelSet]:
    """Return the sets of channels of a network that can be removed filter by filter, from input to output."""
    read_by, found = readers(layers), {}
    for layer in layers:
        if _combines(layer.module):
            passed, names = _way(layer, read_by)
            if names and not any(isinstance(other.module, Sum | PadChannels) for other in passed):
                found.setdefault(names, {})[layer.name] = passed
    return [ChannelSet(behind, names) for names, behind in found.items()]


def _combines(module: nn.Module) -> bool:
    """Tell whether a layer is a convolution that combines all its channels."""
    return isinstance(module, nn.Conv2d) and module.groups == 1


def _way(layer: Layer, read_by: dict[str, list[Layer]]) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Return the layers that a convolution's channels pass, and the names of those that combine them."""
    passed, ends, todo = {}, {}, list(read_by[layer.name])
    while todo:
        other = todo.pop(0)
        if _combines(other.module) or isinstance(other.module, nn.Linear):
            ends[other.name] = other
        else:
            passed[other.name] = other
            todo += read_by[other.name]
    return tuple(passed.values()), tuple(ends)


def kept_at(
    fractions: Iterable[float],
    network: PrunedNetwork,
    order: dict[str, np.ndarray],
    image: torch.Tensor,
    costs: Costs = layer_costs,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield for each fraction of the cost the one that is reached, at most that, and the groups to keep.

    Every layer keeps the same share of its filters, as large as possible. Layers round their share up or down by
    turns, so that it takes small steps.

    Args:
        fractions: descending; the first that is out of reach ends it.
        network: unpruned.
        order: by convolution, the groups of its filters, the first to keep first.
        image: (1, C, H, W).
        costs: what is counted; multiply-adds by default.

    Yields:
        The fraction and a mask, (n_groups,).
    """
    counted = costs(network, image)
    whole = cost_kept(counted, network.active)

    def at(share: float) -> tuple[float, np.ndarray]:
        kept = network.active.copy()
        for i, groups in enumerate(order.values()):
            rounding = (i + 1) * 0.618 % 1  # spread over 0..1, whatever the number of layers
            kept[groups[max(1, int(share * len(groups) + rounding)) :]] = False
        return cost_kept(counted, kept) / whole, kept

    for fraction in fractions:
        low, high = 0.0, 1.0
        if at(low)[0] > fraction:
            return
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle)[0] <= fraction else (low, middle)
        yield at(low)


class Readers:
    """What the readers of channel sets give in the unpruned network, and the weights that this gives a smaller one.

    A :class:`lrp_core.pruning.network.Compensation`.

    Attributes:
        moments: by reader, of what it reads, C channels of T taps each, and of its outputs, all less their means:
            (C * T, C * T) and (C * T, n_outputs), float64, on the host.
    """

    def __init__(self, network: PrunedNetwork, images: torch.Tensor, sets: list[ChannelSet]):
        """Run the unpruned network over the calibration images, (N, C, H, W)."""
        self.moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._layers = {layer.name: layer.module for layer in network.layers(network.model)}
        self._positions: dict[str, torch.Tensor] = {}
        self._outputs: dict[str, torch.Tensor] = {}
        names = {name for each in sets for name in each.readers}
        generator = torch.Generator().manual_seed(0)

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in names:
                outputs = torch.cat([layer.module(live[layer.inputs[0]]) for live in lives])
                outputs = outputs.reshape(*outputs.shape[:2], -1)  # a dense layer has one position
                drawn = torch.rand(len(images), outputs.shape[2], generator=generator).argsort(dim=1)
                self._positions[layer.name] = drawn[:, : max(1, SAMPLES // len(images))].to(outputs.device)
                self._outputs[layer.name] = y = _at(outputs, self._positions[layer.name])
                x = self._read(layer, lives)
                self.moments[layer.name] = _products(x, x).cpu(), _products(x, y).cpu()

        with torch.no_grad():
            run_together(network.layers(network.model), batched(images, device_of(network.model)), visit)

    def _read(self, layer: Layer, lives: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Return what a reader reads for its outputs at the positions, (samples, C * T)."""
        module, parts = layer.module, []
        read = [live[layer.inputs[0]] for live in lives]
        for x, positions in zip(read, self._positions[layer.name].split(len(read[0])), strict=True):
            if isinstance(module, nn.Linear):
                x = x[..., None]
            else:
                x = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
            parts.append(_at(x, positions))
        return torch.cat(parts)

    def compensation(
        self, coupling: Coupling, kept_groups: np.ndarray
    ) -> Callable[[Layer, list[dict[str, torch.Tensor]]], None]:
        """Return what fits the readers' weights when they are about to be run."""
        kept_groups = np.append(kept_groups, True)  # group -1

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name in self._outputs:
                y = self._outputs[layer.name]
                if layer.name in coupling.filters:
                    y = y[:, torch.from_numpy(kept_groups[coupling.filters[layer.name]])]
                _fit(layer.module, self._read(layer, lives), y, self._layers[layer.name].weight)

        return visit


def _at(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return values, (N, D, L), at positions of each image, (N, P), as samples, (N * P, D)."""
    return values.gather(2, positions[:, None].expand(-1, values.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def _products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the sum over samples of products of x, (n, D), and y, (n, M), less their means, (D, M), float64."""
    return (x - x.mean(dim=0)).double().T @ (y - y.mean(dim=0)).double()


def _ridge(moments: torch.Tensor) -> torch.Tensor:
    """Return second moments, (D, D), with the ridge on the diagonal."""
    return moments + STRENGTH * (moments.diagonal().mean() + 1e-12) * torch.eye(len(moments)).to(moments)


def _fit(module: nn.Module, x: torch.Tensor, y: torch.Tensor, original: torch.Tensor) -> None:
    """Fit weight and bias of a layer to samples of what it reads, (n, D), and should give, (n, M).

    The ridge penalises the change of the weights. ``original`` shows how they lie in memory.
    """
    weight = module.weight.detach().flatten(1)
    missing = _products(x, y - x @ weight.T)
    change = torch.cholesky_solve(missing, torch.linalg.cholesky(_ridge(_products(x, x))))
    weight = weight + change.T.to(weight)
    bias = y.mean(dim=0) - weight @ x.mean(dim=0)
    replace_tensor(module, "weight", weight.reshape(module.weight.shape), original)
    module.bias = nn.Parameter(bias, requires_grad=False)


class _Selection:
    """Forward selection of channels, as far as one reader goes: a Cholesky factorisation by blocks, pivoted.

    Attributes:
        missing: what moments of the outputs the selected channels cannot explain, (K, T, n_outputs).
    """

    def __init__(self, moments: tuple[torch.Tensor, torch.Tensor], columns: torch.Tensor):
        """Take a reader's moments, and the columns of K channels of T taps in them, (K, T)."""
        n, taps = columns.shape
        self._gram = _ridge(moments[0])[columns.flatten()][:, columns.flatten()]
        self.missing = moments[1][columns]
        at = torch.arange(n)
        self._blocks = self._gram.view(n, taps, n, taps)[at, :, at]  # of each channel what selected ones leave of it
        self._factor, self._done = torch.zeros_like(self._gram), 0  # columns, of which so many are known

    def gains(self) -> torch.Tensor:
        """Return by how much each channel would make the squared error smaller, (K,)."""
        return (self.missing * torch.linalg.solve(self._blocks, self.missing)).sum(dim=(1, 2))

    def take(self, channel: int) -> None:
        """Select a channel."""
        n, taps, _ = self._blocks.shape
        own = slice(channel * taps, (channel + 1) * taps)
        known = self._factor[:, : self._done]
        left = self._gram[:, own] - known @ known[own].T
        lower = torch.linalg.cholesky(left[own])
        new = torch.linalg.solve_triangular(lower.T, left, upper=True, left=False)
        self._factor[:, self._done : self._done + taps] = new
        self._done += taps
        new = new.view(n, taps, taps)
        self.missing = self.missing - new @ torch.linalg.solve_triangular(lower, self.missing[channel], upper=False)
        self._blocks = self._blocks - new @ new.transpose(1, 2)
        self._blocks[channel] = torch.eye(taps).to(new)  # nothing is left of it, which cannot be solved for


def greedy_order(channels: ChannelSet, coupling: Coupling, fitted: Readers) -> dict[str, np.ndarray]:
    """Return, by convolution that makes some of the channels, the groups of its filters, the most useful first."""
    made = {name: coupling.filters[name] for name in channels.behind}
    groups = np.concatenate(list(made.values()))
    selections = []
    for name in channels.readers:
        read = coupling.channels[name]
        of = np.repeat(read, len(fitted.moments[name][0]) // len(read))  # by column
        columns = np.stack([np.flatnonzero(of == group) for group in groups])
        selections.append(_Selection(fitted.moments[name], torch.from_numpy(columns)))
    left, rank = torch.ones(len(groups), dtype=torch.bool), {}
    while left.any():
        gains = sum(selection.gains() for selection in selections)
        best = int(torch.where(left, gains, -torch.inf).argmax())
        left[best], rank[groups[best]] = False, len(rank)
        for selection in selections:
            selection.take(best)
    return {name: np.array(sorted(of, key=rank.get)) for name, of in made.items()}


def layer_by_layer(
    model: nn.Module,
    images: torch.Tensor,
    fractions: Iterable[float],
    costs: Costs = layer_costs,
    repair: Compensation | None = None,
) -> Iterator[tuple[float, nn.Module]]:
    """Yield smaller networks, each with the fraction of the cost that it needs.

    Args:
        model: made of supported layers; untouched.
        images: for calibration, normalised, (N, C, H, W).
        fractions: at most so much of the cost, descending; the first that is out of reach ends it.
        costs: what is counted; multiply-adds by default.
        repair: fits the weights of smaller networks; by default only those of layers that read removed channels.
    """
    network = PrunedNetwork(model, images)
    sets = channel_sets(network.layers(network.model))
    fitted = Readers(network, images, sets)
    order = {}
    for channels in sets:
        order |= greedy_order(channels, network.coupling, fitted)
    network = PrunedNetwork(model, images, [repair or fitted])
    for fraction, kept in kept_at(fractions, network, order, images[:1], costs):
        yield fraction, network.without(np.flatnonzero(~kept))
