"""Calibration images at several sites: pruning needs only sums over all images, never an image of another site.

Everything that pruning computes from images is a sum over images: relevance by class, correct predictions by class, and
the second moments for heads and reconstruction. Each site runs the same program on its own images. An all-reduce, such
as ``torch.distributed.all_reduce``, adds up the sums of all sites. All sites see the same sums, so they make the same
decisions. See ``docs/several_sites.md``.
"""

from collections.abc import Callable

import numpy as np
import torch

# Maps a site's own sum to the sum over all sites, of the same shape and dtype; may overwrite its input.
AllReduce = Callable[[torch.Tensor], torch.Tensor]


def single_site(part: torch.Tensor) -> torch.Tensor:
    """Return the sum unchanged: there is only one site."""
    return part


def reduced(part: np.ndarray, all_reduce: AllReduce) -> np.ndarray:
    """Return the sum of an array over all sites."""
    return all_reduce(torch.from_numpy(part)).numpy()
