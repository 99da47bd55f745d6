"""Figures that compare methods: areas, ablations, price, robustness."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from lrp_core.study.analysis.areas import MEASURES
from lrp_core.study.show.style import _legend_below, _student


def areas_by_method(areas: pd.DataFrame, unpruned: pd.Series) -> Figure:
    """Show every method's areas, mean and 95 % interval over seeds: a panel a backbone.

    Args:
        areas: as :func:`lrp_core.study.analysis.areas.areas` returns them.
        unpruned: the unpruned accuracy by backbone; a dashed line.
    """
    order = areas.groupby("method")["multiply_adds"].mean().sort_values(ascending=False, kind="stable").index
    rows = areas.melt(["backbone", "method", "seed"], list(MEASURES), "measure", "area")
    rows["measure"] = rows["measure"].map(MEASURES)
    figure, axes = plt.subplots(
        1, len(unpruned), figsize=(5.4 * len(unpruned), 0.42 * len(order) + 1.6), layout="constrained", squeeze=False
    )
    for axis, (backbone, accuracy) in zip(axes[0], unpruned.items(), strict=True):
        sns.pointplot(
            rows[rows["backbone"] == backbone],
            x="area",
            y="method",
            order=order,
            hue="measure",
            hue_order=list(MEASURES.values()),
            linestyle="none",
            markers=["o", "D"],
            dodge=0.3,
            errorbar=_student,
            ax=axis,
            legend=axis is axes[0][0],
        )
        axis.axvline(accuracy, ls="--", color="0.4", lw=1)
        axis.set(title=backbone, xlabel="mean accuracy (dashed: unpruned)", ylabel="")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if axis is not axes[0][0]:
            axis.set_yticklabels([])
    _legend_below(figure, axes[0][0], columns=2)
    return figure


def ablations(table: pd.DataFrame, backbones: Sequence[str], measure: str = "multiply_adds") -> Figure:
    """Show what each ablation is worth: differences of an area with their intervals, a panel a backbone.

    Args:
        table: as :func:`lrp_core.study.analysis.comparisons.ablation_table` returns it.
        backbones: in the order of the panels.
        measure: which area.
    """
    table = table[table["measure"] == measure]
    values = table["value"].astype(str)
    named = table["ablation"].where(values == "True", table["ablation"] + " " + values)
    named = named.replace("reconstruct", "reconstruction")
    rows = table.assign(label=named + "  on " + table["without"], named=named)
    labels = rows.sort_values("named", kind="stable")["label"].unique()
    colours = dict(zip(named.unique(), sns.color_palette("colorblind", named.nunique()), strict=True))
    figure, axes = plt.subplots(
        1,
        len(backbones),
        figsize=(4.2 + 3.8 * len(backbones), 0.3 * len(labels) + 1.2),
        layout="constrained",
        squeeze=False,
    )
    for axis, backbone in zip(axes[0], backbones, strict=True):
        for row in rows[rows["backbone"] == backbone].itertuples():
            y = len(labels) - 1 - list(labels).index(row.label)
            axis.plot([row.low, row.high], [y, y], color=colours[row.named], lw=2)
            axis.plot(row.difference, y, "o", color=colours[row.named], ms=6)
        axis.axvline(0, color="0.4", lw=1, ls="--")
        axis.set(title=backbone, xlabel=f"difference of the {MEASURES[measure]}", ylim=(-0.7, len(labels) - 0.3))
        axis.set_yticks(range(len(labels)), labels[::-1] if axis is axes[0][0] else [])
    return figure


def price(table: pd.DataFrame) -> Figure:
    """Show what methods gain against the tries that they measure: a panel a backbone, with 95 % intervals.

    Args:
        table: as :func:`lrp_core.study.analysis.costs.cost_table` returns it.
    """
    backbones, methods = table["backbone"].unique(), table["method"].unique()
    colours = dict(zip(methods, sns.color_palette("husl", len(methods)), strict=True))
    figure, axes = plt.subplots(
        1, len(backbones), figsize=(5.4 * len(backbones), 4.2), layout="constrained", squeeze=False, sharey=True
    )
    for axis, backbone in zip(axes[0], backbones, strict=True):
        rows = table[table["backbone"] == backbone]
        # Those that try nothing stand side by side at 0.
        free = (rows["evaluations"] == 0).cumsum().where(rows["evaluations"] == 0)
        offsets = 12 * (free - (free.max() + 1) / 2).fillna(0)
        for row, offset in zip(rows.itertuples(), offsets, strict=True):
            marker = "o" if row.evaluations == 0 else "D"
            x, colour = row.evaluations + offset, colours[row.method]
            axis.plot([x, x], [row.low, row.high], color=colour)
            axis.plot(x, row.difference, marker, color=colour)
        axis.axhline(0, color="0.4", lw=1, ls="--")
        axis.set(title=backbone, xlabel="tries measured in a run (0: side by side)", ylabel="gain in AUC")
        axis.xaxis.set_major_formatter(lambda tries, _: f"{tries:g}" if tries >= 0 else "")
    handles = [Line2D([], [], ls="", marker="o", color=colours[name], label=name) for name in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def robustness(table: pd.DataFrame) -> Figure:
    """Show accuracy on corrupted test images against that on clean ones: a row a backbone, a panel a kind of images.

    Args:
        table: as :func:`lrp_core.study.analysis.robustness.robustness_table` returns it.
    """
    backbones, kinds = table["backbone"].unique(), table["images"].unique()
    pruned = table[table["method"] != "unpruned"]
    colours = dict(zip(pruned["method"].unique(), sns.color_palette("colorblind"), strict=False))
    markers = dict(zip(sorted(pruned["budget"].unique(), reverse=True), "oDvs", strict=False))
    figure, axes = plt.subplots(
        len(backbones),
        len(kinds),
        figsize=(4.6 * len(kinds), 4 * len(backbones)),
        layout="constrained",
        squeeze=False,
    )
    for line, backbone in zip(axes, backbones, strict=True):
        for axis, kind in zip(line, kinds, strict=True):
            rows = table[(table["backbone"] == backbone) & (table["images"] == kind)]
            whole = rows[rows["method"] == "unpruned"].iloc[0]
            axis.axline((whole["clean"], whole["corrupted"]), slope=1, color="0.6", lw=1, ls="--")
            axis.plot(whole["clean"], whole["corrupted"], "*", color="black", ms=13)
            for row in rows[rows["method"] != "unpruned"].itertuples():
                ends = [row.corrupted + row.more_lost - end for end in (row.low, row.high)]
                axis.plot([row.clean, row.clean], ends, color=colours[row.method])
                axis.plot(row.clean, row.corrupted, markers[row.budget], color=colours[row.method])
            axis.set(title=f"{backbone}: {kind}", xlabel="accuracy, clean", ylabel=f"accuracy, {kind}")
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_formatter(PercentFormatter(1, decimals=0))
    handles = [Line2D([], [], ls="", marker="*", ms=13, color="black", label="unpruned")]
    handles += [Line2D([], [], ls="", marker="o", color=colours[name], label=name) for name in colours]
    handles += [
        Line2D([], [], ls="", marker=markers[budget], color="0.4", label=f"{budget:.0%} of the multiply-adds")
        for budget in markers
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure
