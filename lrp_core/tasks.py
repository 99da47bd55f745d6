"""A network at work on scarce images: what a pruning method may see and do, and nothing else."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from lrp_core.criteria import Criterion, Scores
from lrp_core.devices import device_of
from lrp_core.errors import check_choice
from lrp_core.evaluation import class_accuracies
from lrp_core.graph import INPUT, Layer, run_together
from lrp_core.heads import crossfitted_logits
from lrp_core.pruning import PrunedNetwork

SIGNALS = ("cross-fitted", "training", "probability")
_BATCH = 40  # scarce images at a time

_Activations = dict[str, dict[str, torch.Tensor]]  # by convolution, the values that the layers behind it read


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
        layers = pairwise(network.layers(network.model))
        self._before = {after.name: layer.name for layer, after in layers if layer.name in network.layer_names}
        self._scores: Scores | None = None
        self._kept: list[_Activations] | None = None
        self._tried: tuple[bytes, list[_Activations]] | None = None  # filters, and what would be kept without them

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
        first, kept, self._tried = self.network.first_of(filters), self._activations(), None
        # What is before that convolution stays as it is; what is behind it is kept, in case these filters go.
        names = self.network.layer_names[: self.network.layer_names.index(first)]
        tried = [{name: values[name] for name in names} for values in kept]
        logits = self.network.outputs_without(filters, [values[first] for values in kept], self._keep_in(tried))
        self._tried = filters.tobytes(), tried
        return self._accuracies(torch.cat(logits).cpu())

    def prune(self, filters: np.ndarray) -> None:
        """Remove these filters from the network."""
        self.network.remove(filters)
        same = self._tried is not None and self._tried[0] == filters.tobytes()
        self._kept = self._tried[1] if same else None
        self._scores = self._tried = None

    def _present(self) -> Scores:
        if self._scores is None:
            self._scores = self._criterion(self.network.model, self._images, self._labels)
        return self._scores

    def _activations(self) -> list[_Activations]:
        """By batch, what the layers behind each convolution read of the present network."""
        if self._kept is None:
            layers, device = self.network.layers(self.network.model), device_of(self.network.model)
            batches = [{INPUT: self._images[i : i + _BATCH].to(device)} for i in range(0, len(self._images), _BATCH)]
            self._kept = [{} for _ in batches]
            with torch.no_grad():
                run_together(layers, batches, self._keep_in(self._kept))
        return self._kept

    def _keep_in(self, kept: list[_Activations]) -> Callable[[Layer, list[dict]], None]:
        """Return what keeps the values behind each convolution while layers are run."""

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if (name := self._before.get(layer.name)) is not None:
                for values, live in zip(kept, lives, strict=True):
                    values[name] = live

        return visit

    def _accuracies(self, logits: torch.Tensor) -> np.ndarray:
        return signal_accuracies(logits, self._labels, self._fold, self.n_classes, self._signal)
