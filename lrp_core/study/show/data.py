"""Figures of images and of how they are split."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure


def image_grid(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], n: int = 6) -> Figure:
    """Show the first ``n`` images of each class, one row per class; images (N, H, W, 3) uint8, labels (N,)."""
    figure, axes = plt.subplots(
        len(class_names), n, figsize=(1.3 * n, 1.4 * len(class_names)), layout="constrained", squeeze=False
    )
    for label, (row, name) in enumerate(zip(axes, class_names, strict=True)):
        for axis, image in zip(row, images[labels == label], strict=False):
            axis.imshow(image)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.replace(" ", "\n"))
    return figure


def split_map(positions: np.ndarray, splits: pd.DataFrame) -> Figure:
    """Show the positions of one seed's images in the source's order; positions (N,) of the whole data set."""
    rows = splits.assign(position=positions[splits["index"]])
    rows = rows.sort_values("label", key=lambda label: label < 0, kind="stable")  # unlabelled ones last
    grid = sns.relplot(
        rows,
        x="position",
        y="class",
        hue="split",
        style="split",
        s=25,
        height=2.6,
        aspect=3.4,
        hue_order=(kinds := [kind for kind in ("calibration", "test", "unlabelled") if kind in set(splits["split"])]),
        style_order=kinds,
        markers=["o", "X", "."][: len(kinds)],
    )
    grid.set(xlabel="position in the source's list", ylabel="")
    return grid.figure
