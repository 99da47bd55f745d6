"""What the filters of a pruned network contribute to logits, by filter number, in chunks that memory has room for."""

from collections.abc import Iterator

import numpy as np
import torch

from lrp_core.importance.contribution import Contribution
from lrp_core.metrics.accuracy import predict
from lrp_core.pruning.network import PrunedNetwork

HELD = 2**29  # bytes; contributions that take more are computed anew each time that they are asked for


class Contributions:
    """The contributions of a network's filters to centred logits: yields (images, classes, contributions) by chunk.

    ``images`` and ``classes`` are slices of the N images and of the K classes that have images, ``contributions``
    (images, classes, n_filters), float64, NaN for filters that are removed. They may be iterated over more than once:
    if all of them fit into :data:`HELD` bytes they are computed once and held, if not, each time anew.

    Attributes:
        logits: of the network, (N, n_outputs).
    """

    def __init__(self, criterion: Contribution, network: PrunedNetwork, images: torch.Tensor, targets: torch.Tensor):
        """Take a network as it is now.

        Args:
            criterion: what computes them.
            network: that loses no filter while this is used.
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
        """Yield them."""
        return iter(self._held) if self._held is not None else self._chunks({})

    def _chunks(self, logits: dict[int, torch.Tensor]) -> Iterator[tuple[slice, slice, np.ndarray]]:
        for chunk in self._criterion.chunks(self._network.model, self._images, self._targets):
            logits[chunk.images.start] = chunk.logits
            yield chunk.images, chunk.classes, self._network.flat(chunk.filters)
