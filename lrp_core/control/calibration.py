"""The calibration task: a network and its calibration images, which are all that a pruning method can access."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from lrp_core.control.contributions import Contributions
from lrp_core.control.monitored import MONITORED, monitored_accuracies
from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import Layer
from lrp_core.importance.criterion import Criterion, Scores
from lrp_core.metrics.accuracy import predict
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.utils.devices import device_of
from lrp_core.utils.errors import check_choice
from lrp_core.utils.sites import AllReduce, single_site

_Activations = dict[str, dict[str, torch.Tensor]]  # by convolution, the values that the next layers read


@dataclass(frozen=True)
class _Evaluated:
    """The network without these filters, and the activations, by batch, from which next evaluations would start."""

    filters: np.ndarray
    network: nn.Module
    activations: list[_Activations]


class CalibrationTask:
    """A classifier that is being pruned, with the calibration images that evaluate it.

    The last layer may also hold out-of-fold heads (:mod:`lrp_core.repair.out_of_fold`), so that one forward pass gives
    the logits of all heads. Relevance comes from the classifier's own head, accuracy from the out-of-fold heads.

    The task caches the scores and activations of the current network, and the last evaluation, because the filters that
    were evaluated last are usually the ones that are removed.
    """

    def __init__(
        self,
        network: PrunedNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        n_outputs: int,
        fold: torch.Tensor | None,
        criterion: Criterion,
        monitored: str = "cross-fitted",
        all_reduce: AllReduce = single_site,
    ):
        """Store the network to prune and the images that evaluate it.

        Args:
            network: a classifier, with additional out-of-fold heads if the monitored accuracy needs them.
            images: (N, C, H, W), normalised.
            targets: their classes, (N,).
            n_outputs: the number of logits of the classifier itself.
            fold: each image's fold, (N,); None without out-of-fold heads.
            criterion: scores filters.
            monitored: which accuracy is returned (:func:`lrp_core.control.monitored.monitored_accuracies`).
            all_reduce: sums over images, over all sites; with several sites, scores and logits are those of this site.

        Raises:
            ValueError: unknown monitored accuracy.
        """
        self.network, self.all_reduce = network, all_reduce
        self._images, self._targets, self._fold, self._criterion = images, targets, fold, criterion
        self._n_outputs, self._monitored = n_outputs, check_choice("monitored accuracy", monitored, MONITORED)
        layers = pairwise(network.layers(network.model))
        self._before = {after.name: layer.name for layer, after in layers if layer.name in network.layer_names}
        self._scores: Scores | None = None
        self._contributions: Contributions | None = None
        self._activations: list[_Activations] | None = None
        self._evaluated: _Evaluated | None = None

    @property
    def labels(self) -> np.ndarray:
        """The images' classes, (N,), numbered from 0 among the classes that have images."""
        return self._targets.unique(return_inverse=True)[1].numpy()

    def scores(self) -> np.ndarray:
        """Return each filter's current score for each image, (N, n_filters); NaN for removed filters."""
        return self.network.flat(self._scored().filters)

    def logits(self) -> np.ndarray:
        """Return the classifier's current logits of the classes that have images, (N, n_classes), float64."""
        return self._logits()[:, self._targets.unique()].double().numpy()

    def contributions(self) -> Contributions:
        """Return the current contribution of each filter to each logit; the criterion must be "contribution"."""
        if self._contributions is None:
            self._contributions = Contributions(self._criterion, self.network, self._images, self._targets)
        return self._contributions

    def _logits(self) -> torch.Tensor:
        """Return all logits of the current network, from the pass that scored its filters if there was one."""
        scored = self._scores or self._contributions
        logits = predict(self.network.model, self._images) if scored is None else scored.logits
        return logits.to(self._images.device)  # a criterion of the user's may leave them on the network's

    def _scored(self) -> Scores:
        if self._scores is None:
            self._scores = self._criterion(self.network.model, self._images, self._targets)
        return self._scores

    def accuracy(self, filters: np.ndarray) -> np.ndarray:
        """Return the monitored class accuracies without these filters, (n_classes,); the network is not changed.

        Without filters, they come from the pass that scored the current network, if there was one. Otherwise only the
        layers are run whose values change, on stored outputs of the convolution before them.
        """
        if len(filters) == 0:
            return self._accuracies(self._logits())
        self._evaluated = None  # frees its memory
        first = self.network.first_of(filters)
        if first is None:
            return self._accuracies(predict(self.network.without(filters), self._images))
        present = self._present()
        # Earlier activations stay the same; later ones are stored, in case these filters are removed.
        names = self.network.layer_names[: self.network.layer_names.index(first)]
        activations = [{name: values[name] for name in names} for values in present]
        smaller, logits = self.network.outputs_without(
            filters, [values[first] for values in present], self._keep_in(activations)
        )
        self._evaluated = _Evaluated(filters.copy(), smaller, activations)
        return self._accuracies(torch.cat(logits).cpu())

    def prune(self, filters: np.ndarray) -> None:
        """Remove these filters from the network."""
        last, self._evaluated = self._evaluated, None
        if last is not None and not np.array_equal(last.filters, filters):
            last = None
        self.network.remove(filters, last and last.network)
        self._activations = last and last.activations
        self._scores = self._contributions = None

    def _present(self) -> list[_Activations]:
        """Return, by batch, the values of the current network that the layers after each convolution read."""
        if self._activations is None:
            layers = self.network.layers(self.network.model)
            batches = batched(self._images, device_of(self.network.model))
            self._activations = [{} for _ in batches]
            with torch.no_grad():
                run_together(layers, batches, self._keep_in(self._activations))
        return self._activations

    def _keep_in(self, kept: list[_Activations]) -> Callable[[Layer, list[dict]], None]:
        """Return a visitor that stores the values after each convolution while layers are run."""

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if (name := self._before.get(layer.name)) is not None:
                for values, live in zip(kept, lives, strict=True):
                    values[name] = live

        return visit

    def _accuracies(self, logits: torch.Tensor) -> np.ndarray:
        return monitored_accuracies(
            logits, self._targets, self._fold, self._n_outputs, self._monitored, self.all_reduce
        )
