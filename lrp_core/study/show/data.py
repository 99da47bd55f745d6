"""Figures of images, splits, heads and relevance maps."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure


def image_grid(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], n: int = 6) -> Figure:
    """Show the first ``n`` images of each class, a row a class; images (N, H, W, 3) uint8, labels (N,)."""
    figure, axes = plt.subplots(len(class_names), n, figsize=(1.3 * n, 1.4 * len(class_names)), layout="constrained")
    for label, (row, name) in enumerate(zip(axes, class_names, strict=True)):
        for axis, image in zip(row, images[labels == label], strict=False):
            axis.imshow(image)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.replace(" ", "\n"))
    return figure


def split_map(positions: np.ndarray, splits: pd.DataFrame) -> Figure:
    """Show where the images of one seed lie in the source's order; positions (N,) of the whole data set."""
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
    grid.set(xlabel="place in the source's list", ylabel="")
    return grid.figure


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Show counts (true, predicted) as shares of the true class."""
    n_classes = len(class_names)
    figure, axis = plt.subplots(figsize=(max(5.2, 0.7 * n_classes), max(4.2, 0.6 * n_classes)), layout="constrained")
    shares = counts / counts.sum(axis=1, keepdims=True)
    ticks = [name.replace(" ", "\n") for name in class_names]
    sns.heatmap(shares, annot=True, fmt=".0%", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True, ax=axis)
    axis.set(xlabel="predicted", ylabel="true", xticklabels=ticks, yticklabels=ticks)
    if n_classes > 6:
        axis.tick_params(axis="x", rotation=90)
        axis.tick_params(axis="y", rotation=0)
    return figure


def relevance_maps(
    images: np.ndarray, maps: Sequence[np.ndarray], titles: Sequence[str], rows: Sequence[str]
) -> Figure:
    """Show images beside their relevance maps: red for, blue against the class, each map scaled by its own maximum.

    Args:
        images: (N, H, W, 3), uint8.
        maps: a column each, relevance summed over colours, (N, H, W).
        titles: one a map.
        rows: one an image.
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
