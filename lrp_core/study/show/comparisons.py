"""Figures that compare methods: their areas, what each ablation is worth, what they cost."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lrp_core.study.analysis.areas import MEASURES, on_common_seeds
from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.study.show.style import draw_point, legend_below, looks


def areas_by_method(areas: pd.DataFrame, unpruned: pd.Series) -> Figure:
    """Show every method's areas, best first: one panel per backbone.

    Mean, with its 95 % interval, over the seeds that all methods were run on; with fewer than four seeds, each seed.
    What has no value (the area over filters of a method that chooses among networks) is not drawn.

    Args:
        areas: as returned by :func:`lrp_core.study.analysis.areas.area_table`, of one data set; a measure may lack.
        unpruned: the unpruned accuracy by backbone; a dashed line.
    """
    areas = on_common_seeds(areas)
    order = areas.groupby("method")["multiply_adds"].mean().sort_values(ascending=False, kind="stable").index
    measures = {measure: look for measure, look in looks(MEASURES).items() if measure in areas}
    shifts = dict(zip(measures, 0.15 * np.linspace(-1, 1, len(measures)), strict=True))
    figure, axes = plt.subplots(
        1,
        len(unpruned),
        figsize=(3 + 4.2 * len(unpruned), 0.42 * len(order) + 1.6),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axis, (backbone, accuracy) in zip(axes[0], unpruned.items(), strict=True):
        axis.axvline(accuracy, ls="--", color="0.4", lw=1)
        for (method, measure), each in _values(areas[areas["backbone"] == backbone], list(measures)).items():
            look = measures[measure] | {"ls": ""}
            interval = paired_interval(each, areas["overlap"].iloc[0])[:2] if len(each) > 1 else (np.nan, np.nan)
            draw_point(axis, order.get_loc(method) + shifts[measure], each, interval, horizontal=True, **look)
        axis.set(title=backbone, xlabel="mean accuracy (dashed: unpruned)", ylim=(len(order) - 0.5, -0.5))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0][0].set_yticks(range(len(order)), order)
    handles = [Line2D([], [], **look | {"ls": ""}, label=MEASURES[measure]) for measure, look in measures.items()]
    legend_below(figure, handles)
    return figure


def _values(areas: pd.DataFrame, measures: Sequence[str]) -> dict[tuple[str, str], pd.Series]:
    """Return the areas of the seeds by method and measure, where there are any."""
    each = {
        (method, measure): rows[measure].dropna()
        for method, rows in areas.groupby("method", sort=False)
        for measure in measures
    }
    return {key: values for key, values in each.items() if len(values)}


def ablations(
    table: pd.DataFrame, areas: pd.DataFrame, backbones: Sequence[str], measure: str = "multiply_adds"
) -> Figure:
    """Show the effect of each ablation: differences of an area, paired by seed, one panel per backbone.

    Mean with its 95 % interval; with fewer than four seeds, each seed.

    Args:
        table: as returned by :func:`lrp_core.study.analysis.ablations.ablation_table`.
        areas: that it was made from.
        backbones: in the order of the panels.
        measure: which area.
    """
    table = table[(table["measure"] == measure) & table["backbone"].isin(backbones)]
    values = table["value"].astype(str)
    named = table["ablation"].where(values == "True", table["ablation"] + " " + values)
    named = named.replace("reconstruct", "reconstruction").str.replace("_", " ")
    rows = table.assign(label=named + "  on " + table["without"], named=named).sort_values("named", kind="stable")
    labels, styles = list(rows["label"].unique()), looks(rows["named"].unique())
    figure, axes = plt.subplots(
        1,
        len(backbones),
        figsize=(4.2 + 3.8 * len(backbones), 0.3 * len(labels) + 1.2),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axis, backbone in zip(axes[0], backbones, strict=True):
        axis.axvline(0, color="0.4", lw=1, ls="--")
        for row in rows[rows["backbone"] == backbone].itertuples():
            same = areas[(areas["dataset"] == row.dataset) & (areas["backbone"] == backbone)]
            each = _difference(same, row.with_ablation, row.without, measure)
            look = styles[row.named] | {"ls": ""}
            draw_point(axis, labels.index(row.label), each, (row.low, row.high), horizontal=True, **look)
        axis.set(title=backbone, xlabel=f"difference of the {MEASURES[measure]}", ylim=(len(labels) - 0.5, -0.5))
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[0][0].set_yticks(range(len(labels)), labels)
    return figure


def _difference(areas: pd.DataFrame, method: str, other: str, measure: str) -> pd.Series:
    """Return what one method has more than another, seed by seed."""
    area = areas.pivot(index="seed", columns="method", values=measure)
    return (area[method] - area[other]).dropna()


def cost(table: pd.DataFrame, areas: pd.DataFrame) -> Figure:
    """Show the gain of methods over the best baseline against their evaluations: one panel per backbone.

    Mean over seeds with its 95 % interval; with fewer than four seeds, each seed.

    Args:
        table: as returned by :func:`lrp_core.study.analysis.costs.cost_table`.
        areas: that its gains are differences of, of one data set.
    """
    backbones, styles = table["backbone"].unique(), looks(table["method"].unique())
    areas = on_common_seeds(areas[areas["method"].isin(styles)])
    figure, axes = plt.subplots(
        1, len(backbones), figsize=(5.4 * len(backbones), 4.6), layout="constrained", squeeze=False, sharey=True
    )
    for axis, backbone in zip(axes[0], backbones, strict=True):
        rows = table[table["backbone"] == backbone]
        # The best baseline is what differs from itself by nothing.
        best = rows.loc[(rows[["difference", "low", "high"]] == 0).all(axis=1), "method"].iloc[0]
        step = 0.04 * (rows["evaluations"].max() or 1)
        behind = -(rows["evaluations"] == 0)[::-1].cumsum()[::-1]  # those that evaluate nothing stand side by side
        for row, rank in zip(rows.itertuples(), behind, strict=True):
            each = _difference(areas[areas["backbone"] == backbone], row.method, best, "accuracy")
            x = row.evaluations or rank * step
            draw_point(axis, x, each, (row.low, row.high), **styles[row.method] | {"ls": ""})
        axis.axhline(0, color="0.4", lw=1, ls="--")
        axis.axvline(0, color="0.4", lw=1)
        axis.set(title=backbone, xlabel="evaluations in a run (left of 0: none)", ylabel="gain in AUC")
        limits = axis.get_xlim()
        axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= limits[1]])
        axis.set_xlim(limits)
    legend_below(figure, [Line2D([], [], **look | {"ls": ""}, label=name) for name, look in styles.items()])
    return figure
