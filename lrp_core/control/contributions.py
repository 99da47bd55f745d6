"""Contributions of a pruned network's filters to the logits, by filter number, in chunks that fit into memory."""

from collections.abc import Iterator

import numpy as np
import torch

from lrp_core.importance.contribution import Contribution
from lrp_core.metrics.accuracy import predict
from lrp_core.pruning.network import PrunedNetwork

HELD = 2**29  # bytes; larger contributions are computed again on each iteration


class Contributions:
    """The contributions of a network's filters to centred logits: yields (images, classes, contributions) by chunk.

    ``images`` and ``classes`` are slices of the N images and of the K classes that have images, ``contributions``
    (images, classes, n_filters), float64, NaN for filters that are removed. You can iterate over them repeatedly. If
    they fit into :data:`HELD` bytes they are computed once and stored; otherwise each iteration computes them again.

    Attributes:
        logits: of the network, (N, n_outputs).
    """

    def __init__(self, criterion: Contribution, network: PrunedNetwork, images: torch.Tensor, targets: torch.Tensor):
        """Use a network in its current state.

        Args:
            criterion: computes the contributions.
            network: must not lose filters while this object is used.
            images: (N, C, H, W), normalised.
            targets: their classes, (N,).
        """
        self._criterion, self._network, self._images, self._targets = criterion, network, images, targets
        self._held = None
        if 8 * len(images) * len(targets.unique()) * network.n_filters <= HELD:
            logits: dict[int, torch.Tensor] = {}
            self._held = list(self._chunks(logits))
            self.logits = torch.cat(list(logits.values()))
        else:
            self.logits = predict(network.model, images)

    def __iter__(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield the chunks."""
        return iter(self._held) if self._held is not None else self._chunks({})

    def _chunks(self, logits: dict[int, torch.Tensor]) -> Iterator[tuple[slice, slice, np.ndarray]]:
        for chunk in self._criterion.chunks(self._network.model, self._images, self._targets):
            logits[chunk.images.start] = chunk.logits
            yield chunk.images, chunk.classes, self._network.flat(chunk.filters)
