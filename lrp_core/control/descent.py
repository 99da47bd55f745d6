"""The descent of one method: from a network to a smaller one at every size, on one set of calibration images.

A method removes filters in some order. What a network is depends on which filters are kept alone, not on how many steps
it took: repairs start from the unpruned weights. So any number of filters of the order can be taken, and the network
made again, without pruning again.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count

import numpy as np
import torch
from torch import nn

from lrp_core.control import methods
from lrp_core.control.controller import Step, greatest_rate
from lrp_core.control.cost import cost_kept, layer_costs, parameter_costs
from lrp_core.control.cost_descent import STEP, cost_descent, evenly
from lrp_core.control.preparation import Prepared
from lrp_core.graph.execution import bytes_of
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import predict
from lrp_core.metrics.cost import multiply_adds_by_layer, n_parameters
from lrp_core.metrics.curve import MAX_RATE
from lrp_core.pruning.dependency import couple
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.surgery import remove_filters
from lrp_core.repair.distillation import distil
from lrp_core.repair.out_of_fold import OutOfFoldHeads, without_out_of_fold_heads
from lrp_core.utils.devices import device_of
from lrp_core.utils.sites import AllReduce, single_site

LEAST = 0.035  # of the multiply-adds: paths end below, and go further if a budget asks for it
ROOM = 2**30  # bytes that the values of all images may take that are run side by side, layer by layer
_FIRST = 0.85  # a size on the way to the first step, where a small drop is decided


def limits() -> Iterator[float]:
    """Yield the sizes of a path, as fractions of the multiply-adds: 85 %, then powers of :data:`STEP`."""
    return chain([_FIRST], (STEP**i for i in count(1)))


def first_fitting(last: int, fits: Callable[[int], bool], start: int = 0) -> int:
    """Return the first of the sizes ``start`` to ``last`` that fits, where all behind it do; ``last`` if none does."""
    return bisect_left(range(last), True, lo=min(start, last), key=fits)


@dataclass(frozen=True)
class Whole:
    """What the unpruned network has, for sizes as fractions of it.

    Attributes:
        multiply_adds: of one image, of its convolutions and dense layers.
        parameters: of all layers.
        filters: coupled ones counted once.
    """

    multiply_adds: int
    parameters: int
    filters: int

    @classmethod
    def of(cls, model: nn.Module, image: torch.Tensor, ignored: Collection[str] = ()) -> "Whole":
        """Count for one input (1, C, H, W); filters of ignored convolutions cannot go, and are not counted."""
        multiply_adds = sum(multiply_adds_by_layer(model, image).values())
        return cls(multiply_adds, n_parameters(model), couple(model, image, ignored).n_groups)


@dataclass(frozen=True)
class Stop:
    """The network at one size.

    Attributes:
        limit: of multiply-adds, as a fraction of the unpruned network's.
        size: which size of the descent it is; of a :class:`Descent`, how many filters of the order have gone.
        multiply_adds: what is left, as a fraction.
        model: the network.
    """

    limit: float
    size: int
    multiply_adds: float
    model: nn.Module = field(repr=False)


class Descent:
    """One method goes down from a network. A size is the number of filters of the order that are removed.

    Attributes:
        steps: what the method has done so far.
        order: the filters that it has removed so far, by number, (n_removed,).
        network: the unpruned network, whose filters the numbers are of.
        prepared: the given network, and what was done to it before.
    """

    def __init__(
        self,
        prepared: Prepared,
        images: torch.Tensor,
        labels: torch.Tensor,
        how: methods.Method,
        out_of_fold: OutOfFoldHeads | None,
        seed: int = 0,
        *,
        whole: Whole,
        ignored: Collection[str] = (),
        round_to: int = 1,
        by_parameters: bool = False,
        all_reduce: AllReduce = single_site,
    ):
        """Take what is needed; nothing is removed yet.

        Args:
            prepared: images to logits (N, K), made of supported layers; untouched, and expected not to change.
            images: of calibration, (N, C, H, W), normalised.
            labels: theirs, (N,).
            how: the method.
            out_of_fold: heads for the accuracy that a controller monitors, and the folds for a refitted head; None
                where the method needs neither.
            seed: of random draws.
            whole: of which sizes are fractions.
            ignored: convolutions that keep all of their filters, by their names in the prepared network.
            round_to: layers keep a multiple of so many filters, or all.
            by_parameters: whether a method that chooses by cost counts parameters, instead of multiply-adds.
            all_reduce: sums over images, over all sites.
        """
        how, model = how if out_of_fold is not None else replace(how, monitored="training"), prepared.model
        self.prepared, self._images, self._labels, self._how, self._seed = prepared, images, labels, how, seed
        self._out_of_fold, self._all_reduce = out_of_fold, all_reduce
        self._round_to, self._n_outputs = round_to, predict(model, images[:1]).shape[1]
        fold = out_of_fold and out_of_fold.fold
        bounded = how.by_cost and not how.refit  # other methods run all images side by side anyway
        some = images[evenly(len(images), _most_images(model, images[:1]))] if bounded else images
        self.network = methods.unpruned(model, some, labels, fold, how, all_reduce, ignored)
        if self.network.n_filters == 0:
            raise ValueError("no filter of this network can be removed: all are outputs, or of ignored layers")
        self._costs, self._parameters = (
            layer_costs(self.network, images[:1]),
            parameter_costs(self.network, how.reconstruct),
        )
        self._whole, self._ignored, self._by_parameters = whole, ignored, by_parameters
        self.steps: list[Step] = []
        self.order = np.array([], dtype=int)

    def walk(self, far_enough: Callable[["Descent"], bool]) -> Iterator[Stop]:
        """Go down, and yield the network at every size of :func:`limits`.

        Args:
            far_enough: whether the descent may end, asked after each step from :data:`LEAST` on.
        """
        if self._how.criterion is None:
            yield Stop(1.0, 0, self.multiply_adds(0), self.model(0))
            return
        network, taken = self._start()
        sizes = limits()
        limit = next(sizes)
        for step in chain([None], taken):  # a network that ends early is small before anything is removed
            if step is not None:
                self.steps.append(step)
                self.order = np.append(self.order, step.removed)
            while self.multiply_adds(self.last) <= limit:
                first = self.first(lambda size, limit=limit: self.multiply_adds(size) <= limit)
                at_hand = first == self.last and self._round_to == 1 and not self._how.distil
                model = self._narrow(network.model) if at_hand else self.model(first)
                yield Stop(limit, first, self.multiply_adds(first), model)
                limit = next(sizes)
            if self.multiply_adds(self.last) <= LEAST and far_enough(self):
                return

    @property
    def last(self) -> int:
        """The smallest size so far."""
        return len(self.order)

    def model(self, size: int) -> nn.Module:
        """Return the network of a size."""
        gone = np.flatnonzero(~self._kept(size))
        if len(gone) == 0:  # laid out in memory as a network that comes back from a file
            return remove_filters(self.network.model, {}, self._images[:1])
        model = self.network.without(gone)
        if self._how.distil:
            distil(model, self.prepared.model, self._images, self._seed)
        return model

    def kept(self, size: int) -> dict[str, list[int]]:
        """Return the filters that are left, by convolution, by their numbers in the unpruned network."""
        kept = self._kept(size)
        filters = self.network.coupling.filters
        return {name: np.flatnonzero((of < 0) | kept[of]).tolist() for name, of in filters.items()}

    def removed(self, size: int) -> int:
        """Return how many filters have gone, those behind an early exit with them."""
        return self._whole.filters - int(self._kept(size).sum())

    def truncation(self, size: int) -> str | None:
        """Return the layer of the unpruned network behind which this one ends; None for its own end."""
        return self.prepared.exit_

    def _kept(self, size: int) -> np.ndarray:
        """Return which filters are left at a size, (n_filters,), boolean."""
        kept, layer_of = np.ones(self.network.n_filters, dtype=bool), self.network.layer_of
        gone = self.order[:size]
        if self._round_to > 1:  # the last ones that a layer has lost come back
            number = np.zeros(len(gone), dtype=int)  # 0, 1, ... within its layer
            for layer in np.unique(layer_of[gone]):
                of_layer = layer_of[gone] == layer
                number[of_layer] = np.arange(of_layer.sum())
            sizes = np.bincount(layer_of)[layer_of[gone]]
            lost = np.bincount(layer_of[gone], minlength=layer_of.max() + 1)[layer_of[gone]]
            left = np.minimum(sizes, -(-(sizes - lost) // self._round_to) * self._round_to)
            gone = gone[number < sizes - left]
        kept[gone] = False
        return kept

    def pruning_ratio(self, size: int) -> float:
        """Return the fraction of the filters that have gone."""
        return self.removed(size) / self._whole.filters

    def first(self, fits: Callable[[int], bool]) -> int:
        """Return the largest network that fits; smaller ones do."""
        return first_fitting(self.last, fits)

    def multiply_adds(self, size: int) -> float:
        """Return the fraction of the multiply-adds that is left."""
        return cost_kept(self._costs, self._kept(size)) / self._whole.multiply_adds

    def parameters(self, size: int) -> float:
        """Return the fraction of the parameters that is left."""
        return cost_kept(self._parameters, self._kept(size)) / self._whole.parameters

    def _start(self) -> tuple[PrunedNetwork, Iterator[Step]]:
        """Return the network that the method changes, and the steps that it will take."""
        how, images, labels = self._how, self._images, self._labels
        if how.by_cost:
            network = self.network.smaller(np.array([], dtype=int), self.network.model)
            costs = self._parameters if self._by_parameters else self._costs
            return network, cost_descent(network, images, labels, costs, self._n_outputs, self._seed, self._all_reduce)
        model = self.prepared.model
        task = methods.task(model, self._out_of_fold, images, labels, how, self._seed, self._all_reduce, self._ignored)
        until = min(MAX_RATE, greatest_rate(task.network.layer_of))
        return task.network, methods.steps(task, how, until=until)

    def _narrow(self, model: nn.Module) -> nn.Module:
        """Take away out-of-fold heads that stand beside the classifier's own."""
        wide = self._out_of_fold is not None and not self._how.by_cost
        return without_out_of_fold_heads(model, self._n_outputs) if wide else model


def _most_images(model: nn.Module, image: torch.Tensor) -> int:
    """Return how many images may be run side by side, layer by layer: what is alive together has to have room."""
    return max(1, ROOM // max(1, bytes_of(trace(model), image.to(device_of(model)))[1]))
