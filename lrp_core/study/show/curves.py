"""Figures of accuracy against what is left of a network."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lrp_core.study.show.style import _legend_below, _student


def pruning_curves(
    curves: pd.DataFrame, methods: Sequence[str], measures: Sequence[str] = ("accuracy", "harmonic_mean")
) -> Figure:
    """Show test measures against the pruning rate: mean and 95 % interval over seeds.

    A column a measure, a row a backbone, a line a method.
    """
    backbones = curves["backbone"].unique()
    titles = {"accuracy": "class-averaged test accuracy", "harmonic_mean": "harmonic mean of class accuracies"}
    figure, axes = plt.subplots(
        len(backbones),
        len(measures),
        figsize=(5.4 * len(measures), 3.9 * len(backbones)),
        layout="constrained",
        squeeze=False,
    )
    for row, backbone in zip(axes, backbones, strict=True):
        for axis, measure in zip(row, measures, strict=True):
            sns.lineplot(
                curves[curves["backbone"] == backbone],
                x="rate_requested",  # a method that chooses has lost as many filters, or more
                y=measure,
                hue="method",
                hue_order=methods,
                style="method",
                style_order=methods,
                errorbar=_student,
                ax=axis,
                legend=axis is axes[0][0],
            )
            axis.set(xlabel="filters removed", ylabel=titles.get(measure, measure), ylim=(0, 1), xlim=(0, 1))
            axis.set_title(backbone)
            axis.xaxis.set_major_formatter(PercentFormatter(1))
            axis.yaxis.set_major_formatter(PercentFormatter(1))
    _legend_below(figure, axes[0][0], columns=3)
    return figure


def budgets(by_budget: pd.DataFrame, unpruned: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Show test accuracy against multiply-adds, mean over seeds: a panel a task, all networks and methods in it.

    Args:
        by_budget: as :func:`lrp_core.study.analysis.areas.by_budget` returns it.
        unpruned: the whole networks, as :func:`lrp_core.study.analysis.areas.unpruned` returns them; points.
        methods: a colour each.
    """
    tasks, backbones = by_budget["dataset"].unique(), list(by_budget["backbone"].unique())
    figure, axes = plt.subplots(1, len(tasks), figsize=(6.2 * len(tasks), 4.6), layout="constrained", squeeze=False)
    shown = by_budget[by_budget["method"].isin(methods)]
    markers = dict(zip(backbones, "osD^vP", strict=False))
    for axis, task in zip(axes[0], tasks, strict=True):
        sns.lineplot(
            shown[shown["dataset"] == task],
            x="multiply_adds",
            y="accuracy",
            hue="method",
            hue_order=methods,
            style="backbone",
            style_order=backbones,
            errorbar=None,
            ax=axis,
            legend=axis is axes[0][0],
        )
        whole = unpruned[unpruned["dataset"] == task].groupby("backbone")[["multiply_adds", "accuracy"]].mean()
        for backbone, row in whole.iterrows():
            axis.plot(row["multiply_adds"], row["accuracy"], markers[backbone], color="0.2", ms=8, zorder=3)
            axis.annotate(backbone, tuple(row), xytext=(0, 8), textcoords="offset points", ha="right", fontsize=8)
        axis.set(title=task, xscale="log", xlabel="multiply-adds of one image", ylabel="test accuracy")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend_below(figure, axes[0][0], columns=3)
    return figure


def depth(table: pd.DataFrame) -> Figure:
    """Show accuracy and multiply-adds by where the backbone ends: a column a backbone, mean and 95 % band over seeds.

    Args:
        table: columns backbone, seed, end, multiply_adds, cross-fitted, test; ends from the input to the output.
    """
    backbones = table["backbone"].unique()
    figure, axes = plt.subplots(
        2,
        len(backbones),
        figsize=(5.4 * len(backbones), 4.8),
        layout="constrained",
        squeeze=False,
        sharex="col",
        height_ratios=(3, 1),
    )
    for (above, below), backbone in zip(axes.T, backbones, strict=True):
        rows = table[table["backbone"] == backbone]
        rows = rows.assign(number=rows.groupby("seed").cumcount() + 1)
        lines = rows.melt(["number", "seed"], ["cross-fitted", "test"], "on", "accuracy")
        lines["on"] = lines["on"].map({"cross-fitted": "calibration images, cross-fitted", "test": "test images"})
        sns.lineplot(lines, x="number", y="accuracy", hue="on", style="on", markers=True, errorbar=_student, ax=above)
        above.set(title=backbone, ylabel="accuracy of a head there", ylim=(0, 1))
        above.legend(title=None, loc="lower right")
        above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        cost = rows.groupby("number")["multiply_adds"].mean()
        below.bar(cost.index, cost / cost.iloc[-1], color="0.6")
        below.set(xlabel="the backbone ends behind its n-th possible end", ylabel="multiply-adds", ylim=(0, 1))
        below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def class_small_multiples(curves: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Show each class's test accuracy against the rate: a row a method, a column a seed, a line a class."""
    columns = [column for column in curves if column.startswith("accuracy_")]
    rows = curves[curves["method"].isin(methods)]
    rows = rows.melt(["method", "seed", "rate_requested"], columns, "class", "test accuracy")
    rows["class"] = rows["class"].str.removeprefix("accuracy_")
    grid = sns.relplot(
        rows,
        kind="line",
        x="rate_requested",
        y="test accuracy",
        hue="class",
        style="class",
        row="method",
        col="seed",
        row_order=methods,
        errorbar=None,
        height=2.2,
        aspect=1.1,
        facet_kws={"ylim": (0, 1), "xlim": (0, 1)},
    )
    grid.set_titles("")
    for axis, seed in zip(grid.axes[0], grid.col_names, strict=True):
        axis.set_title(f"seed {seed}")
    grid.set_xlabels("filters removed")
    for axis, method in zip(grid.axes[:, 0], methods, strict=True):
        axis.set_ylabel(method.replace("+", "\n+"))
    for axis in grid.axes.flat:
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    return grid.figure


def filters_by_layer(curves: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Show the share of filters that each layer of a backbone keeps, by rate, averaged over seeds: a panel a method."""
    curves = curves.dropna(axis="columns", how="all")  # another backbone has other layers
    columns = [column for column in curves if column.startswith("kept_")]
    figure, axes = plt.subplots(1, len(methods), figsize=(4.4 * len(methods), 3.8), layout="constrained", squeeze=False)
    for axis, method in zip(axes[0], methods, strict=True):
        kept = curves[curves["method"] == method].groupby("rate_requested")[columns].mean()
        shares = (kept / curves[columns].max()).T
        shares.index = [f"conv {i}" for i in range(1, len(shares) + 1)]
        sns.heatmap(
            shares,
            vmin=0,
            vmax=1,
            cmap="viridis",
            ax=axis,
            cbar=axis is axes[0][-1],
            xticklabels=5,
            yticklabels=axis is axes[0][0],
            cbar_kws={"label": "filters kept", "format": PercentFormatter(1)},
        )
        axis.set(title=method, xlabel="filters removed", ylabel="")
        axis.set_xticklabels([f"{float(label.get_text()):.0%}" for label in axis.get_xticklabels()], rotation=0)
    return figure
