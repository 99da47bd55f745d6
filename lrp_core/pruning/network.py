"""A network from which filters are removed step by step, and the layers of each smaller network."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.explicit import with_modules
from lrp_core.graph.layers import WEIGHTED, Layer
from lrp_core.graph.sharing import shallow_copy
from lrp_core.graph.tracing import rebind, trace
from lrp_core.pruning.dependency import Coupling, couple
from lrp_core.pruning.surgery import copy_weights, slice_channels
from lrp_core.utils.devices import device_of, layout_of

_Visit = Callable[[Layer, list[dict[str, torch.Tensor]]], None]


class Compensation(Protocol):
    """Compensates for pruned filters (:mod:`lrp_core.repair.reconstruction`, :mod:`lrp_core.repair.refit`)."""

    def compensation(self, coupling: Coupling, kept_groups: np.ndarray) -> _Visit:
        """Return a visitor that updates each layer of a smaller network, in place, right before it runs on the images.

        Args:
            coupling: of the unpruned network.
            kept_groups: which groups are kept, (n_groups,), boolean.

        Returns:
            A ``visit`` for :func:`lrp_core.graph.execution.run_together`.
        """


class PrunedNetwork:
    """A network from which filters are removed step by step; they are numbered 0..n_filters-1 from input to output.

    Coupled filters (:class:`lrp_core.pruning.dependency.Coupling`) form a group and count as one. Without coupling, as
    in VGG, each number is one filter. A layer here is the set of convolutions that contain the filters of a group.

    Attributes:
        model: the network as it is now.
        example_shape: of one input, (1, C, H, W).
        coupling: which filters are coupled, in the unpruned network.
        layer_names: by layer, the name of its first convolution, from input to output.
        layer_of: by filter number, the index of its layer in ``layer_names``, (n_filters,).
        active: by filter number, whether it is kept so far, (n_filters,).
    """

    def __init__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        compensations: Sequence[Compensation] = (),
        ignored: Collection[str] = (),
    ):
        """Take a network.

        Args:
            model: made of supported layers; not changed here, and must not change later.
            images: inputs (N, C, H, W), one or more; with compensations, the images that these were made with.
            compensations: applied to every smaller network, in this order.
            ignored: convolutions that keep all of their filters.
        """
        self.model = self._full = model = with_modules(model)
        self._layers = trace(model)
        self._images, self._compensations = images, tuple(compensations)
        self.example_shape = tuple(images[:1].shape)
        self.coupling = couple(model, images[:1], ignored)
        members: list[list[str]] = [[] for _ in range(self.coupling.n_groups)]
        for name, groups in self.coupling.filters.items():
            for group in np.unique(groups[groups >= 0]):
                members[group].append(name)
        layers = list(dict.fromkeys(tuple(names) for names in members))
        self.layer_names = [names[0] for names in layers]
        self.layer_of = np.array([layers.index(tuple(names)) for names in members])
        self.active = np.ones(self.coupling.n_groups, dtype=bool)
        self._starts = self._first_changes()

    def _first_changes(self) -> np.ndarray:
        """Return, by filter number, the index in ``layer_names`` from which on values change without it, (n_filters,).

        A shortcut that adds channels of zeros has the channels of a filter that is computed later.
        """
        starts, last = self.layer_of.copy(), -1
        for layer in self._layers:
            if layer.name in self.layer_names:
                last = self.layer_names.index(layer.name)
            for groups in self.coupling.padded.get(layer.name, ()):
                of = groups[groups >= 0]
                starts[of] = np.minimum(starts[of], last)
        return starts

    @property
    def n_filters(self) -> int:
        """The number of filters of the unpruned network, coupled ones counted once."""
        return len(self.active)

    def without(self, filters: np.ndarray) -> nn.Module:
        """Return the current network without these filters (by number); the current one is not changed.

        Raises:
            ValueError: a filter is already removed, or a layer would lose its last one.
        """
        return self.compensated_without(filters)[0] if self._compensations else self._sliced(self._kept_groups(filters))

    def compensated_without(self, filters: np.ndarray) -> tuple[nn.Module, list[torch.Tensor]]:
        """Return the current network without these filters (by number), and its outputs for the images, by batch.

        Raises:
            ValueError: as :meth:`without`.
        """
        kept_groups = self._kept_groups(filters)
        smaller = self._sliced(kept_groups)
        batches = batched(self._images, device_of(smaller))
        with torch.no_grad():
            return smaller, run_together(self.layers(smaller), batches, self._compensating(kept_groups))

    def first_of(self, filters: np.ndarray) -> str | None:
        """Return the convolution up to which nothing changes without these filters (by number), but that it loses some.

        None if the first convolution comes too late: channels of zeros are added to the image.
        """
        start = self._starts[filters].min()
        return self.layer_names[start] if start >= 0 else None

    def outputs_without(
        self,
        filters: np.ndarray,
        values: list[dict[str, torch.Tensor]],
        visit: _Visit | None = None,
    ) -> tuple[nn.Module, list[torch.Tensor]]:
        """Return the current network without these filters (by number), and its outputs, batch by batch.

        Only the layers after :meth:`first_of` are run. The network is that of :meth:`without`.

        Args:
            filters: one or more active ones, for which there is such a convolution.
            values: by batch, the values of the current network that the layers after that convolution read; with
                compensations, for the images that these were made with.
            visit: as for :func:`lrp_core.graph.execution.run_together`; sees each layer before it is compensated.

        Raises:
            ValueError: as :meth:`without`.
        """
        kept_groups, first = self._kept_groups(filters), self.first_of(filters)
        smaller = self._sliced(kept_groups)
        layers = self.layers(smaller)
        behind = [layer.name for layer in layers].index(first) + 1
        groups = self.coupling.filters[first]
        kept = torch.from_numpy(~np.isin(groups[(groups < 0) | self.active[groups]], filters))
        values = [live | {first: _channels(live[first], kept)} for live in values]
        if self._compensations:  # the layers before were already compensated, in the current network
            for layer, present in zip(layers[:behind], self.layers(self.model), strict=False):
                if isinstance(layer.module, WEIGHTED):
                    copy_weights(layer.module, present.module, kept if layer.name == first else slice(None))
        with torch.no_grad():
            return smaller, run_together(layers[behind:], values, self._compensating(kept_groups, visit))

    def _compensating(self, kept_groups: np.ndarray, first: _Visit | None = None) -> _Visit:
        """Return a visitor that applies ``first``, then all compensations, to a layer of a smaller network."""
        visits = [first] if first is not None else []
        visits += [each.compensation(self.coupling, kept_groups) for each in self._compensations]

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            for each in visits:
                each(layer, lives)

        return visit

    def _kept_groups(self, filters: np.ndarray) -> np.ndarray:
        """Return which groups remain when these filters (by number) are removed too, (n_filters,), boolean."""
        filters = np.asarray(filters, dtype=int)
        if len(pruned := filters[~self.active[filters]]):
            names = sorted({self.layer_names[self.layer_of[filter_]] for filter_ in pruned})
            raise ValueError(f"filters {pruned.tolist()} of {', '.join(map(repr, names))} are removed already")
        kept_groups = self.active.copy()
        kept_groups[filters] = False
        for layer in np.unique(self.layer_of[filters]):
            if not kept_groups[self.layer_of == layer].any():
                raise ValueError(f"layer {self.layer_names[layer]!r} would lose its last filter; leave at least one")
        return kept_groups

    def _sliced(self, kept_groups: np.ndarray) -> nn.Module:
        """Return the unpruned network with only these groups."""
        smaller = shallow_copy(self._full)  # a deep copy would take longer than an evaluation of a small network
        slice_channels(smaller, self.coupling, kept_groups)
        return smaller

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the layers of a network that was made from this one, without tracing it again."""
        return rebind(self._layers, model)

    def remove(self, filters: np.ndarray, smaller: nn.Module | None = None) -> None:
        """Remove these filters (by number) from the current network.

        Args:
            filters: active ones.
            smaller: the current network without them, if it was already made.

        Raises:
            ValueError: as :meth:`without`.
        """
        self.model = self.without(filters) if smaller is None else smaller
        self.active[filters] = False

    def smaller(self, filters: np.ndarray, model: nn.Module | None = None) -> "PrunedNetwork":
        """Return this network without these filters (by number), ready for more removals; this one is not changed.

        Args:
            filters: active ones.
            model: the current network without them, if it was already made.
        """
        other = copy.copy(self)
        other.active = self.active.copy()
        other.remove(filters, model)
        return other

    def flat(self, by_layer: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Arrange values (..., C) of the current convolutions by filter number, summed over coupled filters.

        Returns:
            (..., n_filters), float64; NaN for pruned filters.
        """
        shape = next(iter(by_layer.values())).shape[:-1]
        result = np.zeros((*shape, self.n_filters))
        for name, groups in self.coupling.filters.items():
            present = groups[(groups < 0) | self.active[groups]]
            values = by_layer[name].double().cpu().numpy()
            np.add.at(result, (..., present[present >= 0]), values[..., present >= 0])
        result[..., ~self.active] = np.nan
        return result

    def kept(self) -> dict[str, list[int]]:
        """Return the remaining filters of each convolution, by their indices in the unpruned network."""
        groups = self.coupling.filters
        return {name: np.flatnonzero((of < 0) | self.active[of]).tolist() for name, of in groups.items()}


def _channels(maps: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return these channels, boolean (C,), of feature maps (N, C, H, W), in the same memory layout."""
    return maps[:, kept].contiguous(memory_format=layout_of(maps))
