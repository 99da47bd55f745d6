"""Figures of relevance."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def relevance_maps(
    images: np.ndarray, maps: Sequence[np.ndarray], titles: Sequence[str], rows: Sequence[str]
) -> Figure:
    """Show images next to their relevance maps: red for, blue against the class, each map scaled by its own maximum.

    Args:
        images: (N, H, W, 3), uint8.
        maps: one per column, relevance summed over colours, (N, H, W).
        titles: one per map.
        rows: one per image.
    """
    figure, axes = plt.subplots(
        len(images),
        1 + len(maps),
        figsize=(1.9 * (1 + len(maps)), 1.9 * len(images)),
        layout="constrained",
        squeeze=False,
    )
    for i, row in enumerate(axes):
        row[0].imshow(images[i])
        row[0].set_ylabel(rows[i].replace(" ", "\n"))
        for axis, relevance in zip(row[1:], maps, strict=True):
            limit = np.abs(relevance[i]).max() or 1.0
            axis.imshow(relevance[i], cmap="seismic", vmin=-limit, vmax=limit)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ["image", *titles], strict=True):
        axis.set_title(title, fontsize=9)
    return figure
