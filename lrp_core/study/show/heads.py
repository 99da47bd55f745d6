"""Figures of heads: what they confuse, and what they reach behind each exit of a backbone."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lrp_core.study.show.style import draw_line, legend_below, looks


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Show counts (true, predicted) as shares of the true class."""
    n_classes = len(class_names)
    figure, axis = plt.subplots(figsize=(max(5.2, 0.7 * n_classes), max(4.2, 0.6 * n_classes)), layout="constrained")
    shares = counts / counts.sum(axis=1, keepdims=True)
    ticks = [name.replace(" ", "\n") for name in class_names]
    sns.heatmap(shares, annot=True, fmt=".0%", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True, ax=axis)
    axis.set(xlabel="predicted", ylabel="true", xticklabels=ticks, yticklabels=ticks)
    axis.tick_params(axis="y", rotation=0)
    if n_classes > 6:
        axis.tick_params(axis="x", rotation=90)
    return figure


def accuracy_by_exit(table: pd.DataFrame) -> Figure:
    """Show the accuracy of a head behind each exit, and the multiply-adds up to there: one column per backbone.

    Mean over seeds with its 95 % interval; with fewer than four seeds, each seed.

    Args:
        table: columns backbone, seed, exit, multiply_adds, cross-fitted, test, overlap (share of the images that a seed
            tests); exits from the input to the output.
    """
    backbones = table["backbone"].unique()
    figure, axes = plt.subplots(
        2,
        len(backbones),
        figsize=(max(6.4, 5.4 * len(backbones)), 5.2),
        layout="constrained",
        squeeze=False,
        sharex="col",
        height_ratios=(3, 1),
    )
    names = {"cross-fitted": "calibration images, cross-fitted", "test": "test images"}
    for (above, below), backbone in zip(axes.T, backbones, strict=True):
        rows = table[table["backbone"] == backbone]
        rows = rows.assign(number=rows.groupby("seed").cumcount() + 1)
        lines = [
            draw_line(
                above,
                rows.pivot(index="number", columns="seed", values=column),
                rows["overlap"].iloc[0],
                **look,
                ms=4.5,
                label=names[column],
            )
            for column, look in looks(names).items()
        ]
        above.set(title=backbone, ylabel="accuracy of a head there", ylim=(0, 1))
        above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        cost = rows.groupby("number")["multiply_adds"].mean()
        below.bar(cost.index, cost / cost.iloc[-1], color="0.6")
        below.set(xlabel="exit, from the input to the whole backbone", ylabel="multiply-adds", ylim=(0, 1))
        below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, lines)
    return figure
