"""Calibration images at several sites: pruning needs sums over all of them, and never an image of another site.

Relevance by class, right answers by class, the second moments that heads and reconstruction are fitted to: everything
that pruning asks of images is a sum over images. Each site runs the same program on its own images. Wherever a sum is
taken, an all-reduce adds up the sums of all sites (``torch.distributed.all_reduce``, say). All sites see the same sums,
so all take the same decisions. See ``docs/several_sites.md``.
"""

from collections.abc import Callable

import numpy as np
import torch

# From a site's own sum to the sum over all sites, of the same shape and dtype; may overwrite what it is given.
AllReduce = Callable[[torch.Tensor], torch.Tensor]


def single_site(part: torch.Tensor) -> torch.Tensor:
    """Return the sum over the one site that there is: its own."""
    return part


def reduced(part: np.ndarray, all_reduce: AllReduce) -> np.ndarray:
    """Return the sum of an array over all sites."""
    return all_reduce(torch.from_numpy(part)).numpy()
