"""A network at work on scarce images: what a pruning method may see and do, and nothing else."""

import numpy as np
import torch

from lrp_core.devices import device_of
from lrp_core.evaluation import class_accuracies, predict
from lrp_core.graph import INPUT, Layer, run, trace
from lrp_core.heads import crossfitted_predictions
from lrp_core.lrp import Explanation, explain
from lrp_core.pruning import PrunedNetwork

_BATCH = 40  # scarce images at a time


class ScarceTask:
    """A classifier that is being pruned, with the scarce images that judge it.

    The classifier carries the 1 + k heads of :class:`lrp_core.heads.Heads` side by side, so that one forward pass gives
    the logits of all: relevance comes from the head that knows all scarce images, accuracy from those that do not.
    """

    def __init__(
        self,
        network: PrunedNetwork,
        images: torch.Tensor,
        labels: torch.Tensor,
        fold: torch.Tensor,
        absolute: bool = False,
    ):
        """Take the network to prune and what judges it.

        Args:
            network: with 1 + k heads.
            images: (N, 3, H, W), normalised.
            labels: (N,).
            fold: each image's fold, (N,).
            absolute: sum |relevance| over positions instead of relevance.
        """
        self.network = network
        self.n_classes = int(labels.max()) + 1
        self._images, self._labels, self._fold, self._absolute = images, labels, fold, absolute
        self._forget()

    @property
    def labels(self) -> np.ndarray:
        """The images' classes, (N,)."""
        return self._labels.numpy()

    def relevance(self) -> np.ndarray:
        """Return each filter's present relevance to each image's class, (N, n_filters); NaN where a filter is gone."""
        return self.network.flat(self._explanation().filters)

    def accuracy(self, filters: np.ndarray) -> np.ndarray:
        """Return the cross-fitted class accuracies without these filters, (n_classes,); the network stays.

        With no filters, they come from the relevance pass of the present network. Otherwise only the layers from the
        first changed one on are run, on activations that are kept of the present network.
        """
        if len(filters) == 0:
            return self._accuracies(self._explanation().logits)
        candidate = self.network.without(filters)
        first = self.network.layer_names[self.network.layer_of[filters].min()]
        if first == self.network.layer_names[0]:
            return self._accuracies(predict(candidate, self._images, _BATCH))
        layers = trace(candidate)
        rest = layers[[layer.name for layer in layers].index(first) :]
        with torch.inference_mode():
            return self._accuracies(torch.cat([run(rest, kept[first]).cpu() for kept in self._activations()]))

    def prune(self, filters: np.ndarray) -> None:
        """Remove these filters from the network."""
        self.network.remove(filters)
        self._forget()

    def _forget(self) -> None:
        self._explained: Explanation | None = None
        self._kept: list[dict[str, dict[str, torch.Tensor]]] = []

    def _explanation(self) -> Explanation:
        if self._explained is None:
            self._explained = explain(self.network.model, self._images, self._labels, absolute=self._absolute)
        return self._explained

    def _activations(self) -> list[dict[str, dict[str, torch.Tensor]]]:
        """By batch and convolution, the values that the network reads from there on."""
        if not self._kept:
            layers, device = trace(self.network.model), device_of(self.network.model)
            with torch.inference_mode():
                for i in range(0, len(self._images), _BATCH):
                    kept = {}

                    def keep(layer: Layer, live: dict[str, torch.Tensor], kept: dict = kept) -> None:
                        if layer.name in self.network.layer_names:
                            kept[layer.name] = live

                    run(layers, {INPUT: self._images[i : i + _BATCH].to(device)}, keep)
                    self._kept.append(kept)
        return self._kept

    def _accuracies(self, logits: torch.Tensor) -> np.ndarray:
        predictions = crossfitted_predictions(logits, self._fold, self.n_classes)
        return class_accuracies(predictions, self._labels, self.n_classes).numpy()
