"""Removal of filters: the pruned network is a smaller network, not a masked one.

Filters whose channels meet go together: partners in a residual sum, a depthwise filter with the channel that it reads,
the channels of a grouped convolution that stand at the same place in each group. Such a set is a group; in a chain
of convolutions each group is one filter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from lrp_core.devices import device_of
from lrp_core.graph import INPUT, WEIGHTED, Add, Concat, Layer, rebind, run, run_together, trace

if TYPE_CHECKING:
    from lrp_core.reconstruction import Reconstruction


@dataclass(frozen=True)
class Coupling:
    """Which filters go together. A channel is known by the number of its group, -1 for a channel that has to stay.

    Attributes:
        n_groups: number of groups.
        filters: by convolution, the groups of its output channels, (C_out,).
        channels: by layer with a weight or a batch normalisation, the groups of the channels that it reads, (C_in,);
            for a dense layer, of its inputs.
    """

    n_groups: int
    filters: dict[str, np.ndarray]
    channels: dict[str, np.ndarray]


class _Groups:
    """Union-find over channels; channel 0 stands for all that have to stay."""

    def __init__(self):
        self._parent = [0]

    def new(self, n: int) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + n))
        return np.arange(first, first + n)

    def root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = channel = self._parent[self._parent[channel]]
        return channel

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        for a, b in zip(one, other, strict=True):
            a, b = sorted((self.root(a), self.root(b)))
            self._parent[b] = a


def couple(model: nn.Module, example_input: torch.Tensor) -> Coupling:
    """Find out which filters go together.

    Groups are numbered by their first filter, from the input to the output.

    Args:
        model: made of supported layers.
        example_input: one input (1, C, H, W); its size tells how many positions a flattened channel has.
    """
    layers = trace(model)
    positions: dict[str, int] = {}
    with torch.no_grad():
        run(
            layers,
            {INPUT: example_input.to(device_of(model))},
            lambda layer, live: positions.update({name: live[name][0, 0].numel() for name in layer.inputs}),
        )
    groups = _Groups()
    outputs = {INPUT: np.zeros(example_input.shape[1], dtype=int)}
    for layer in layers:
        outputs[layer.name] = _outputs(layer, [outputs[name] for name in layer.inputs], positions, groups)
    last = outputs[layers[-1].name]
    groups.join(last, np.zeros_like(last))  # the network's outputs stay
    number = {0: -1}

    def numbered(channels: np.ndarray) -> np.ndarray:
        return np.array([number.setdefault(groups.root(channel), len(number) - 1) for channel in channels])

    filters = {layer.name: numbered(outputs[layer.name]) for layer in layers if isinstance(layer.module, nn.Conv2d)}
    channels = {
        layer.name: numbered(outputs[layer.inputs[0]])
        for layer in layers
        if isinstance(layer.module, (*WEIGHTED, nn.BatchNorm2d))
    }
    return Coupling(len(number) - 1, filters, channels)


def _outputs(layer: Layer, inputs: list[np.ndarray], positions: dict[str, int], groups: _Groups) -> np.ndarray:
    """Return the channels of a layer's output, after joining those that the layer makes go together."""
    module, (first, *others) = layer.module, inputs
    if isinstance(module, Add):
        for other in others:
            groups.join(first, other)
        return first
    if isinstance(module, Concat):
        return np.concatenate(inputs)
    if isinstance(module, nn.Flatten):
        return np.repeat(first, positions[layer.inputs[0]])
    if isinstance(module, nn.Linear):
        return np.zeros(module.out_features, dtype=int)
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels and module.groups > 1:  # depthwise
            return np.repeat(first, module.out_channels // module.in_channels)
        made = groups.new(module.out_channels)
        for channels in (first, made):
            alike = channels.reshape(module.groups, -1)
            for other in alike[1:]:
                groups.join(alike[0], other)
        return made
    return first


def remove_filters(model: nn.Module, filters: Mapping[str, Iterable[int]], example_input: torch.Tensor) -> nn.Module:
    """Return a copy of the network without some filters, and without those that go with them.

    Whatever reads their channels shrinks too: convolutions, batch normalisations, dense layers.

    Args:
        model: made of supported layers; untouched.
        filters: by name of a convolution, the indices of its output channels to remove.
        example_input: one input (1, C, H, W); its size tells how many positions a flattened channel has.

    Raises:
        ValueError: an unknown layer, an index out of range, a filter that has to stay (its channel is the network's
            input or output), a layer that would lose its last filter, or an unsupported layer.
    """
    coupling = couple(model, example_input)
    gone = np.zeros(coupling.n_groups, dtype=bool)
    for name, indices in filters.items():
        if name not in coupling.filters:
            raise ValueError(f"{name!r} is no convolution of this network; it has: {', '.join(coupling.filters)}")
        groups = coupling.filters[name]
        for index in indices:
            if not 0 <= index < len(groups):
                raise ValueError(f"layer {name!r} has filters 0..{len(groups) - 1}, not {index}")
            if groups[index] < 0:
                raise ValueError(
                    f"filter {index} of {name!r} has to stay: its channel is the network's input or output"
                )
            gone[groups[index]] = True
    for name, groups in coupling.filters.items():
        if (gone[groups] & (groups >= 0)).all():
            raise ValueError(f"layer {name!r} would lose all of its {len(groups)} filters; leave at least one")
    # What is about to be cut is shared with the copy until then, not copied whole.
    modules = [model.get_submodule(name) for name in coupling.channels]
    tensors = [getattr(module, name, None) for module in modules for name in _TENSORS]
    smaller = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if tensor is not None})
    _cut(smaller, coupling, ~gone)
    return smaller


_TENSORS = ("weight", "bias", "running_mean", "running_var")  # of the layers that shrink


def _cut(model: nn.Module, coupling: Coupling, stays: np.ndarray) -> None:
    """Leave these groups only, (n_groups,), boolean, in an unpruned network, in place."""
    stays = np.append(stays, True)  # group -1
    for name, channels in coupling.channels.items():
        module = model.get_submodule(name)
        filters = torch.from_numpy(stays[coupling.filters[name]]) if name in coupling.filters else None
        _keep(module, filters, torch.from_numpy(stays[channels]))


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Return a network with modules of its own and the tensors of the given one."""
    other = type(module).__new__(type(module))
    other.__dict__ = module.__dict__ | {
        "_parameters": module._parameters.copy(),
        "_buffers": module._buffers.copy(),
        "_modules": {name: child and _shallow_copy(child) for name, child in module._modules.items()},
    }
    return other


def _take_over(module: nn.Module, other: nn.Module, outputs: torch.Tensor | slice) -> None:
    """Give a layer the weights of these outputs of another one."""
    replace_tensor(module, "weight", other.weight.detach()[outputs])
    module.bias = None if other.bias is None else nn.Parameter(other.bias.detach()[outputs], requires_grad=False)


def _channels(maps: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Return these channels, boolean (C,), of feature maps (N, C, H, W), laid out as they were."""
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return maps[:, left].contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _keep(module: nn.Module, outputs: torch.Tensor | None, inputs: torch.Tensor) -> None:
    """Keep these outputs (None: all) and inputs, boolean masks, of a layer, in place."""
    if isinstance(module, nn.BatchNorm2d):
        for name in _TENSORS:
            if (tensor := getattr(module, name)) is not None:
                replace_tensor(module, name, tensor.detach()[inputs])
        module.num_features = int(inputs.sum())
        return
    if outputs is None:
        outputs = torch.ones(len(module.weight), dtype=torch.bool)
    weight = module.weight.detach()[outputs]
    if isinstance(module, nn.Linear):
        weight = weight[:, inputs]
        module.in_features = weight.shape[1]
    else:
        if module.groups == module.in_channels:  # depthwise, or one input channel
            module.groups = int(inputs.sum()) if module.groups > 1 else 1
        else:
            weight = weight[:, inputs.view(module.groups, -1)[0]]
        module.out_channels, module.in_channels = len(weight), int(inputs.sum())
    if module.bias is not None:
        replace_tensor(module, "bias", module.bias.detach()[outputs])
    replace_tensor(module, "weight", weight)


def replace_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a new tensor in the place of a parameter or buffer, frozen and laid out as that was."""
    old = getattr(module, name)
    if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.clone(memory_format=torch.channels_last)  # sets the strides of 1 x 1 kernels too
    is_parameter = isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor)


def filters_at(rate: float, n_filters: int) -> int:
    """Return how many filters are gone at a pruning rate: the least number that reaches it."""
    return int(np.ceil(round(rate * n_filters, 6)))  # 0.95 * 20 is 19, not a hair more


class PrunedNetwork:
    """A network that loses filters step by step, numbered 0..n_filters-1 from input to output.

    Filters that only go together (see :class:`Coupling`) count as one; where no two are coupled, as in VGG, a number is
    one filter. A layer, here, is the set of convolutions that a group has filters in.

    Attributes:
        model: the network as it is now.
        example_shape: of one input, (1, C, H, W).
        coupling: which filters go together, in the network before any was removed.
        layer_names: by layer, the name of its first convolution, from input to output.
        layer_of: by filter number, the index of its layer in ``layer_names``, (n_filters,).
        active: by filter number, whether it is still there, (n_filters,).
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: torch.Tensor,
        reconstruction: Reconstruction | None = None,
    ):
        """Take a network.

        Args:
            model: made of supported layers; untouched, and expected not to change.
            example_input: one input (1, C, H, W).
            reconstruction: makes up for what is gone, in every smaller network.
        """
        self.model = self._full = model
        self._layers = trace(model)
        self._reconstruction = reconstruction
        self._tried: tuple[bytes, nn.Module] | None = None  # what stays, and the network
        self.example_shape = tuple(example_input.shape)
        self.coupling = couple(model, example_input)
        members: list[list[str]] = [[] for _ in range(self.coupling.n_groups)]
        for name, groups in self.coupling.filters.items():
            for group in np.unique(groups[groups >= 0]):
                members[group].append(name)
        layers = list(dict.fromkeys(tuple(names) for names in members))
        self.layer_names = [names[0] for names in layers]
        self.layer_of = np.array([layers.index(tuple(names)) for names in members])
        self.active = np.ones(self.coupling.n_groups, dtype=bool)

    @property
    def n_filters(self) -> int:
        """The number of filters before any was removed, coupled ones counted once."""
        return len(self.active)

    def without(self, filters: np.ndarray) -> nn.Module:
        """Return the present network without these filters (by number); the present one stays.

        Raises:
            ValueError: a filter is removed already, or a layer would lose its last one.
        """
        stays = self._stays(filters)
        if self._tried is None or self._tried[0] != stays.tobytes():  # what is removed has often been tried just before
            smaller = self._cut(stays)
            if self._reconstruction is not None:
                self._reconstruction.mend(self.layers(smaller), self.coupling, stays)
            self._tried = stays.tobytes(), smaller
        return self._tried[1]

    def first_of(self, filters: np.ndarray) -> str:
        """Return the name of the first convolution that loses one of these filters (by number)."""
        return self.layer_names[self.layer_of[filters].min()]

    def outputs_without(
        self,
        filters: np.ndarray,
        values: list[dict[str, torch.Tensor]],
        visit: Callable[[Layer, list[dict]], None] | None = None,
    ) -> list[torch.Tensor]:
        """Return what the present network would give without these filters (by number), batch by batch.

        Only what lies behind the first convolution that loses filters is run. That network is the one that
        :meth:`without` returns then, and that :meth:`remove` leaves.

        Args:
            filters: one or more that are there.
            values: by batch, what the layers behind that convolution read of the present network; with
                reconstruction, for the images that it was made with.
            visit: as for :func:`lrp_core.graph.run_together`.

        Raises:
            ValueError: as :meth:`without`.
        """
        stays, first = self._stays(filters), self.first_of(filters)
        smaller = self._cut(stays)
        layers = self.layers(smaller)
        behind = [layer.name for layer in layers].index(first) + 1
        groups = self.coupling.filters[first]
        left = torch.from_numpy(~np.isin(groups[(groups < 0) | self.active[groups]], filters))
        values = [live | {first: _channels(live[first], left)} for live in values]
        with torch.no_grad():
            if self._reconstruction is None:
                outputs = run_together(layers[behind:], values, visit)
            else:  # what lies before is mended already
                for layer, present in zip(layers[:behind], self.layers(self.model), strict=False):
                    if isinstance(layer.module, WEIGHTED):
                        _take_over(layer.module, present.module, left if layer.name == first else slice(None))
                outputs = self._reconstruction.mend(layers[behind:], self.coupling, stays, values, visit)
        self._tried = stays.tobytes(), smaller
        return outputs

    def _stays(self, filters: np.ndarray) -> np.ndarray:
        """Return which filters would be left without these."""
        filters = np.asarray(filters, dtype=int)
        if len(lost := filters[~self.active[filters]]):
            names = sorted({self.layer_names[self.layer_of[filter_]] for filter_ in lost})
            raise ValueError(f"filters {lost.tolist()} of {', '.join(map(repr, names))} are removed already")
        stays = self.active.copy()
        stays[filters] = False
        for layer in np.unique(self.layer_of[filters]):
            if not stays[self.layer_of == layer].any():
                raise ValueError(f"layer {self.layer_names[layer]!r} would lose its last filter; leave at least one")
        return stays

    def _cut(self, stays: np.ndarray) -> nn.Module:
        """Return the unpruned network without the filters that do not stay."""
        smaller = _shallow_copy(self._full)  # a deep copy would take longer than a try takes on a small network
        _cut(smaller, self.coupling, stays)
        return smaller

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the trace of a network that came from this one, without tracing it anew."""
        return rebind(self._layers, model)

    def remove(self, filters: np.ndarray) -> None:
        """Take these filters (by number) out for good."""
        self.model = self.without(filters)
        self.active[filters] = False

    def flat(self, by_layer: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Lay values (..., C) of the present convolutions out by filter number, summed over coupled filters.

        Returns:
            (..., n_filters), float64; NaN where a filter is gone.
        """
        shape = next(iter(by_layer.values())).shape[:-1]
        result = np.zeros((*shape, self.n_filters))
        for name, groups in self.coupling.filters.items():
            present = groups[(groups < 0) | self.active[groups]]
            values = by_layer[name].double().cpu().numpy()
            np.add.at(result, (..., present[present >= 0]), values[..., present >= 0])
        result[..., ~self.active] = np.nan
        return result

    def kept_by_layer(self) -> dict[str, int]:
        """By convolution, how many of its filters are left."""
        return {name: int(((groups < 0) | self.active[groups]).sum()) for name, groups in self.coupling.filters.items()}
