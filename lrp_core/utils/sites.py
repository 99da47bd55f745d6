"""Calibration images that stay in several places: sums over all of them are all that anybody needs to know.

Relevance by class, right answers by class, the second moments that heads and reconstruction are fitted to: everything
that pruning asks of images is a sum over them. Each place runs the same program on its own images, and where a sum is
taken it is added up over the places, by whatever the places have in common (``torch.distributed.all_reduce``, say). All
of them see the same sums, and so they take the same decisions. See ``docs/several_sites.md``.
"""

from collections.abc import Callable

import numpy as np
import torch

# From a place's own sum to the sum over all places, of the same shape and dtype; may overwrite what it is given.
AllReduce = Callable[[torch.Tensor], torch.Tensor]


def single_site(part: torch.Tensor) -> torch.Tensor:
    """Return the sum over one place."""
    return part


def reduced(part: np.ndarray, all_reduce: AllReduce) -> np.ndarray:
    """Return a sum over all places, of arrays."""
    return all_reduce(torch.from_numpy(part)).numpy()
