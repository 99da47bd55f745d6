"""A network at work on scarce images: what a pruning method may see and do, and nothing else."""

import numpy as np
import torch

from lrp_core.evaluation import class_accuracies
from lrp_core.graph import INPUT, run, trace
from lrp_core.heads import crossfitted_predictions
from lrp_core.lrp import filter_relevance
from lrp_core.pruning import PrunedNetwork

_BATCH = 40  # scarce images at a time


class ScarceTask:
    """A classifier that is being pruned, with the scarce images that judge it.

    The classifier carries the 1 + k heads of :class:`lrp_core.heads.Heads` side by side, so that one forward pass gives
    the logits of all: relevance comes from the head that knows all scarce images, accuracy from those that do not.
    """

    def __init__(self, network: PrunedNetwork, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor):
        """Take the network, and images (N, 3, H, W) with labels (N,) and folds (N,)."""
        self.network = network
        self.n_classes = int(labels.max()) + 1
        self._images, self._labels, self._fold = images, labels, fold
        self._read: list[dict[str, dict]] = []  # by batch and convolution: the values that the network's rest reads

    def relevance(self, absolute: bool = False) -> np.ndarray:
        """Return each filter's present relevance to each image's class, (N, n_filters); NaN where a filter is gone."""
        return self.network.flat(filter_relevance(self.network.model, self._images, self._labels, absolute=absolute))

    @property
    def labels(self) -> np.ndarray:
        """The images' classes, (N,)."""
        return self._labels.cpu().numpy()

    def accuracy(self, filters: np.ndarray) -> np.ndarray:
        """Return the cross-fitted class accuracies without these filters, (n_classes,); the network stays.

        The present network's activations are kept, so that only the layers from the first changed one on are run.
        """
        if not self._read:
            self._read = self._run_and_keep()
        candidate = trace(self.network.without(filters))
        names = [layer.name for layer in candidate]
        first = self.network.layer_names[self.network.layer_of[filters].min() if len(filters) else -1]
        with torch.inference_mode():
            rest = candidate[names.index(first) :]
            logits = torch.cat([run(rest, read[first]) for read in self._read])
        predictions = crossfitted_predictions(logits, self._fold, self.n_classes)
        return class_accuracies(predictions, self._labels, self.n_classes).cpu().numpy()

    def prune(self, filters: np.ndarray) -> None:
        """Remove these filters from the network."""
        self.network.remove(filters)
        self._read = []

    def _run_and_keep(self) -> list[dict[str, dict]]:
        layers, kept = trace(self.network.model), []
        with torch.inference_mode():
            for i in range(0, len(self._images), _BATCH):
                read: dict[str, dict] = {}
                run(
                    layers,
                    {INPUT: self._images[i : i + _BATCH]},
                    lambda layer, live, read=read: (
                        read.update({layer.name: live}) if layer.name in self.network.layer_names else None
                    ),
                )
                kept.append(read)
        return kept
