"""The figures of methods on real networks, from results/benchmarks/real_size.csv: ``make tables``."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from lrp_core.study.analysis.promise import DEFAULT, with_default
from lrp_core.study.analysis.real_size import (
    CONTROLLED,
    CONTROLLERS,
    LAYER_BY_LAYER,
    LRP,
    ONE_SHOT,
    PAIR,
    SMALLER,
    SMALLER_INTERMEDIATE,
    accuracies,
    means,
)
from lrp_core.study.paths import ROOT
from lrp_core.study.show.names import METHODS, at_real_size
from lrp_core.study.show.style import close, legend_below, looks, save_figure, set_theme

DRAWN = (DEFAULT, SMALLER, SMALLER_INTERMEDIATE, LAYER_BY_LAYER, ONE_SHOT)
SIZES = (1.0, 0.71, 0.5, 0.35, 0.25, 0.175, 0.125, 0.1, 0.07, 0.05)  # of the multiply-adds
TICKS = (1.0, 0.5, 0.25, 0.1, 0.05)


def real_size(rows: pd.DataFrame) -> Figure:
    """Show test accuracy against the multiply-adds left: a panel a task and network, a line a method.

    Mean over draws, with a band of one standard deviation to either side; nothing where a method does not get so small
    in every draw. Ours is the call's default. Unpruned networks, with the given head, are dashed.

    Args:
        rows: of benchmarks/real_size.py.
    """
    rows = with_default(rows)
    rows = rows[rows["method"].isin(DRAWN)]
    by_size = {size: means(rows, size) for size in SIZES}
    spread = {size: accuracies(rows, size).groupby(PAIR).std() for size in SIZES}
    unpruned = accuracies(rows[rows["method"] != SMALLER_INTERMEDIATE], 1.0).mean(axis=1).groupby(PAIR).mean()
    pairs, styles = unpruned.index, looks(METHODS[method] for method in DRAWN)
    figure, axes, empty = _grid(pairs, "multiply-adds left", "test accuracy")
    for axis, pair in zip(axes, pairs, strict=True):
        axis.axhline(unpruned[pair], ls="--", color="0.4", lw=1)
        for method in rows[(rows[PAIR] == list(pair)).all(axis=1)]["method"].unique():
            look = styles[METHODS[method]] | {"ms": 4}
            mean = pd.Series({size: table.loc[pair, method] for size, table in by_size.items()}).dropna()
            sd = pd.Series({size: spread[size].loc[pair, method] for size in mean.index})
            axis.plot(mean.index, mean, **look)
            axis.fill_between(mean.index, mean - sd, mean + sd, color=look["color"], alpha=0.15, lw=0)
        axis.set(xscale="log", xlim=(1.05, 0.048))
        axis.xaxis.set_major_locator(FixedLocator(TICKS))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    shown = [METHODS[method] for method in DRAWN if method in set(rows["method"])]
    handles = [Line2D([], [], **styles[name] | {"ms": 4}, label=name) for name in shown]
    handles.append(Line2D([], [], ls="--", color="0.4", lw=1, label="unpruned"))
    _legend(figure, empty, handles)
    return figure


def controllers(rows: pd.DataFrame) -> Figure:
    """Show the harmonic mean of the class accuracies against the share of filters removed: a panel a task and network.

    Mean over the draws that a method was run on both without and with the controller.

    Args:
        rows: of benchmarks/real_size.py.
    """
    rows = rows.assign(pruning_ratio=rows["pruning_ratio"].where(rows["multiply_adds"] < 1, 0.0).round(2))
    at_rates = rows[rows["limit"].isna()].groupby([*PAIR, "method", "pruning_ratio", "seed"])["test_harmonic_mean"]
    found = at_rates.first().unstack("seed")
    panels = [pair for pair, some in found.groupby(PAIR) if {LRP, CONTROLLED} <= set(some.index.unique("method"))]
    styles = looks(METHODS[method] for both in CONTROLLERS.items() for method in both)
    figure, axes, empty = _grid(panels, "filters removed", "harmonic mean")
    for axis, pair in zip(axes, panels, strict=True):
        for both in CONTROLLERS.items():
            if set(both) <= set(found.loc[pair].index.unique("method")):
                means = found.loc[pair].loc[list(both)].dropna(axis="columns").mean(axis="columns")
                for method in both:
                    axis.plot(means[method], **styles[METHODS[method]] | {"ms": 4})
        axis.set(xlim=(0, 1))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, empty, [Line2D([], [], **look | {"ms": 4}, label=name) for name, look in styles.items()])
    return figure


def _grid(pairs: Sequence[tuple[str, str]], below: str, beside: str) -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure with a titled panel for each task and network, in a square or so, and the places left over."""
    columns = math.ceil(math.sqrt(len(pairs)))
    lines = math.ceil(len(pairs) / columns)
    size = (3.6 * columns + 0.6, 2.7 * lines + 0.7)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for number, (axis, pair) in enumerate(zip(axes.flat, pairs, strict=False)):
        axis.set(title=at_real_size(*pair), ylim=(0, 1))
        axis.title.set_fontsize("medium")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_ylabel("" if number % columns else beside)
        axis.set_xlabel("" if number + columns < len(pairs) else below)
    empty = list(axes.flat[len(pairs) :])
    for axis in empty:
        axis.set_axis_off()
    return figure, list(axes.flat[: len(pairs)]), empty


def _legend(figure: Figure, empty: list[Axes], handles: list[Line2D]) -> None:
    """Put a legend into a place that is left over, else below the panels."""
    if empty:
        empty[0].legend(handles=handles, loc="center", frameon=False)
    else:
        legend_below(figure, handles)


def main() -> None:
    """Write results/benchmarks/real_size.png and controllers.png, and both as .pdf."""
    folder = ROOT / "results" / "benchmarks"
    rows = pd.read_csv(folder / "real_size.csv")
    set_theme()
    figures = {"real_size": real_size(rows), "controllers": controllers(rows)}
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    close(figures.values())


if __name__ == "__main__":
    main()
