"""Figures over the share of filters removed, and over multiply-adds."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator, PercentFormatter

from lrp_core.study.analysis.areas import on_common_seeds
from lrp_core.study.show.style import draw_line, legend_below, looks


def pruning_curves(
    curves: pd.DataFrame, methods: Sequence[str], measures: Sequence[str] = ("accuracy", "harmonic_mean")
) -> Figure:
    """Show test measures against the share of filters removed: a column per measure, a row per backbone.

    Mean, with its 95 % interval, over the seeds that all of these methods were run on; with fewer than four seeds, each
    seed.

    Args:
        curves: networks on the grid of rates, as returned by :func:`lrp_core.study.runs.measuring.on_grid`.
        methods: a colour each; those that a backbone was not pruned with are left out there.
        measures: columns of ``curves``.
    """
    curves = on_common_seeds(curves[curves["method"].isin(methods)])
    backbones, drawn = curves["backbone"].unique(), {}
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
            for method, look in looks(methods).items():
                some = curves[(curves["backbone"] == backbone) & (curves["method"] == method)]
                if len(some):
                    by_seed = some.pivot(index="rate_requested", columns="seed", values=measure)
                    drawn[method] = draw_line(
                        axis, by_seed, some["overlap"].iloc[0], **look | {"marker": ""}, label=method
                    )
            axis.set(xlabel="filters removed", ylabel=titles.get(measure, measure), ylim=(0, 1), xlim=(0, 1))
            axis.set_title(backbone)
            axis.xaxis.set_major_formatter(PercentFormatter(1))
            axis.yaxis.set_major_formatter(PercentFormatter(1))
    legend_below(figure, [drawn[method] for method in methods if method in drawn])
    return figure


def budgets(by_budget: pd.DataFrame, unpruned: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Show test accuracy against multiply-adds: one panel per task, all networks and methods in it, means over seeds.

    The seeds are those of a network that all of these methods were run on.

    Args:
        by_budget: as returned by :func:`lrp_core.study.analysis.areas.budget_table`.
        unpruned: the whole networks, as returned by :func:`lrp_core.study.analysis.areas.unpruned`; points.
        methods: a colour each; a backbone has its dashes.
    """
    by_budget = on_common_seeds(by_budget[by_budget["method"].isin(methods)])
    tasks, backbones = by_budget["dataset"].unique(), looks(by_budget["backbone"].unique())
    figure, axes = plt.subplots(1, len(tasks), figsize=(6.2 * len(tasks), 5.2), layout="constrained", squeeze=False)
    colours = {method: look["color"] for method, look in looks(methods).items() if method in set(by_budget["method"])}
    for axis, task in zip(axes[0], tasks, strict=True):
        shown = by_budget[by_budget["dataset"] == task]
        for (backbone, method), rows in shown.groupby(["backbone", "method"], sort=False):
            mean = rows.groupby("multiply_adds")["accuracy"].mean()
            axis.plot(mean.index, mean, color=colours[method], ls=backbones[backbone]["ls"])
        whole = unpruned[unpruned["dataset"] == task].groupby("backbone")[["multiply_adds", "accuracy"]].mean()
        for backbone, row in whole.iterrows():
            point = {"marker": backbones[backbone]["marker"], "color": "0.2", "ms": 8, "zorder": 3}
            axis.plot(row["multiply_adds"], row["accuracy"], **point)
        axis.set(title=task, xscale="log", xlabel="multiply-adds of one image", ylabel="test accuracy")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles = [Line2D([], [], color=colour, label=method) for method, colour in colours.items()]
    handles += [
        Line2D([], [], **look | {"color": "0.2"}, label=f"{backbone} (point: unpruned)")
        for backbone, look in backbones.items()
    ]
    legend_below(figure, handles)
    return figure


def class_small_multiples(curves: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Show each class's accuracy over the filters removed: rows are methods, columns seeds, lines classes."""
    names = [column for column in curves if column.startswith("accuracy_")]
    seeds, classes = curves["seed"].unique(), looks(name.removeprefix("accuracy_") for name in names)
    figure, axes = plt.subplots(
        len(methods),
        len(seeds),
        figsize=(max(5.2, 2.2 * len(seeds) + 0.8), 2.3 * len(methods) + 0.8),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for method, row in zip(methods, axes, strict=True):
        for seed, axis in zip(seeds, row, strict=True):
            rows = curves[(curves["method"] == method) & (curves["seed"] == seed)]
            for (name, look), column in zip(classes.items(), names, strict=True):
                axis.plot(rows["rate_requested"], rows[column], **look | {"marker": ""}, label=name)
        row[0].set_ylabel(method.replace("+", "\n+"))
    for axis, seed in zip(axes[0], seeds, strict=True):
        axis.set_title(f"seed {seed}")
    for axis in axes[-1]:
        axis.set(xlabel="filters removed", xlim=(0, 1), ylim=(-0.03, 1.03))
        axis.xaxis.set_major_locator(MultipleLocator(0.5))
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    legend_below(figure, axes[0][0].lines)
    return figure


def filters_by_layer(curves: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Show the share of filters that each layer of a backbone keeps, by rate, mean over seeds: a panel per method."""
    curves = on_common_seeds(curves[curves["method"].isin(methods)])
    curves = curves.dropna(axis="columns", how="all")  # another backbone has other layers
    columns = [column for column in curves if column.startswith("kept_")]
    size = (4.4 * len(methods), max(3.8, 0.17 * len(columns)))
    figure, axes = plt.subplots(1, len(methods), figsize=size, layout="constrained", squeeze=False)
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
