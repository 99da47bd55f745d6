"""A network at work on scarce images: what a pruning method may see and do, and nothing else."""

from itertools import pairwise

import numpy as np
import torch

from lrp_core.criteria import Criterion, Scores
from lrp_core.devices import device_of
from lrp_core.errors import check_choice
from lrp_core.evaluation import class_accuracies
from lrp_core.graph import INPUT, Layer, run
from lrp_core.heads import crossfitted_logits
from lrp_core.pruning import PrunedNetwork

SIGNALS = ("cross-fitted", "training", "probability")
_BATCH = 40  # scarce images at a time


def signal_accuracies(
    logits: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, n_classes: int, signal: str
) -> np.ndarray:
    """Return the class accuracies on scarce images, as a signal has them, (n_classes,), float64.

    Args:
        logits: of a classifier with the 1 + k heads of :class:`lrp_core.heads.Heads`, (N, (1 + k) * n_classes).
        labels: (N,).
        fold: each image's fold, (N,).
        n_classes: logits of one head.
        signal: the accuracy of the heads that have not seen the image ("cross-fitted"), that of the head which has
            ("training"), or the mean probability that the former give the true class ("probability").

    Raises:
        ValueError: unknown signal.
    """
    check_choice("signal", signal, SIGNALS)
    judged = logits[:, :n_classes] if signal == "training" else crossfitted_logits(logits, fold, n_classes)
    if signal != "probability":
        return class_accuracies(judged.argmax(dim=1), labels, n_classes).numpy()
    probability = judged.double().softmax(dim=1)[torch.arange(len(labels)), labels].numpy()
    return np.bincount(labels.numpy(), probability, n_classes) / np.bincount(labels.numpy(), minlength=n_classes)


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
        criterion: Criterion,
        signal: str = "cross-fitted",
    ):
        """Take the network to prune and what judges it.

        Args:
            network: with 1 + k heads.
            images: (N, 3, H, W), normalised.
            labels: (N,).
            fold: each image's fold, (N,).
            criterion: what scores filters.
            signal: what accuracy is (:func:`signal_accuracies`).

        Raises:
            ValueError: unknown signal.
        """
        self.network = network
        self.n_classes = int(labels.max()) + 1
        self._images, self._labels, self._fold, self._criterion = images, labels, fold, criterion
        self._signal = check_choice("signal", signal, SIGNALS)
        self._forget()

    @property
    def labels(self) -> np.ndarray:
        """The images' classes, (N,)."""
        return self._labels.numpy()

    def scores(self) -> np.ndarray:
        """Return each filter's present score for each image, (N, n_filters); NaN where a filter is gone."""
        return self.network.flat(self._present().filters)

    def accuracy(self, filters: np.ndarray) -> np.ndarray:
        """Return the class accuracies, as the signal has them, without these filters, (n_classes,); the network stays.

        With no filters, they come from the pass that scores the present network. Otherwise only what lies behind the
        first convolution that loses filters is run, on the outputs that it has in the present network.
        """
        if len(filters) == 0:
            return self._accuracies(self._present().logits)
        candidate = self.network.without(filters)
        first = self.network.layer_names[self.network.layer_of[filters].min()]
        left = self.network.outputs_left(first, filters)
        layers = self.network.layers(candidate)
        rest = layers[[layer.name for layer in layers].index(first) + 1 :]
        with torch.inference_mode():
            behind = (kept[first] | {first: _channels(kept[first][first], left)} for kept in self._activations())
            return self._accuracies(torch.cat([run(rest, values).cpu() for values in behind]))

    def prune(self, filters: np.ndarray) -> None:
        """Remove these filters from the network."""
        self.network.remove(filters)
        self._forget()

    def _forget(self) -> None:
        self._scores: Scores | None = None
        self._kept: list[dict[str, dict[str, torch.Tensor]]] = []

    def _present(self) -> Scores:
        if self._scores is None:
            self._scores = self._criterion(self.network.model, self._images, self._labels)
        return self._scores

    def _activations(self) -> list[dict[str, dict[str, torch.Tensor]]]:
        """By batch and convolution, its output and whatever else the layers behind it read."""
        if not self._kept:
            layers, device = self.network.layers(self.network.model), device_of(self.network.model)
            before = {after.name: layer.name for layer, after in pairwise(layers)}
            with torch.inference_mode():
                for i in range(0, len(self._images), _BATCH):
                    kept = {}

                    def keep(layer: Layer, live: dict[str, torch.Tensor], kept: dict = kept) -> None:
                        if (name := before.get(layer.name)) in self.network.layer_names:
                            kept[name] = live

                    run(layers, {INPUT: self._images[i : i + _BATCH].to(device)}, keep)
                    self._kept.append(kept)
        return self._kept

    def _accuracies(self, logits: torch.Tensor) -> np.ndarray:
        return signal_accuracies(logits, self._labels, self._fold, self.n_classes, self._signal)


def _channels(maps: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Return these channels, boolean (C,), of feature maps (N, C, H, W), laid out as they were."""
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return maps[:, left].contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
