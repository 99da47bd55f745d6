"""The figure of accuracy on corrupted images."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from lrp_core.study.show.style import MARKERS, draw_point, legend_below, looks


def robustness(table: pd.DataFrame, networks: pd.DataFrame) -> Figure:
    """Show accuracy on corrupted against clean test images: one row per backbone, one panel per kind of images.

    Bars are 95 % intervals of the distance from the dashed line; with fewer than four seeds, one dot per seed.

    Args:
        table: as returned by :func:`lrp_core.study.analysis.robustness.robustness_summary`.
        networks: the rows that it was made from.
    """
    backbones, kinds = table["backbone"].unique(), table["images"].unique()
    pruned, more_lost = table[table["method"] != "unpruned"], _more_lost(networks, kinds)
    colours = {method: look["color"] for method, look in looks(pruned["method"].unique()).items()}
    markers = dict(zip(sorted(pruned["budget"].unique(), reverse=True), MARKERS, strict=False))
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
            axis.plot(whole["clean"], whole["corrupted"], "*", color="black", mec="white", ms=14, zorder=4)
            for row in rows[rows["method"] != "unpruned"].itertuples():
                on_line = row.corrupted + row.more_lost
                each = on_line - more_lost.loc[backbone, row.method, row.budget, kind]
                look = {"color": colours[row.method], "marker": markers[row.budget]}
                draw_point(axis, row.clean, each, (on_line - row.high, on_line - row.low), **look)
            axis.set(title=f"{backbone}: {kind}", xlabel="accuracy, clean", ylabel=f"accuracy, {kind}")
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_formatter(PercentFormatter(1, decimals=0))
    handles = [Line2D([], [], ls="", marker="*", ms=14, color="black", label="unpruned")]
    handles += [Line2D([], [], ls="", marker="o", color=colours[name], label=name) for name in colours]
    handles += [
        Line2D([], [], ls="", marker=markers[budget], color="0.4", label=f"{budget:.0%} of the multiply-adds")
        for budget in markers
    ]
    legend_below(figure, handles)
    return figure


def _more_lost(networks: pd.DataFrame, kinds: list[str]) -> pd.Series:
    """Return how much more each seed's network loses on corrupted than on clean images, beyond the unpruned network.

    Indexed by backbone, method, budget, kind of images, seed.
    """
    own = [*kinds, "clean"]  # the others are averaged
    names = ["backbone", "method", "budget", "seed"]
    kind = networks["images"].where(networks["images"].isin(own), "corrupted")
    wide = networks.assign(images=kind).groupby([*names, "images"], sort=False)["accuracy"].mean().unstack("images")
    gap = wide.rsub(wide["clean"], axis="index").drop(columns="clean")  # lost by corruption
    whole = gap.xs("unpruned", level="method").droplevel("budget")
    more = gap - whole.reindex(pd.MultiIndex.from_frame(gap.index.to_frame()[["backbone", "seed"]])).to_numpy()
    return more.stack().reorder_levels(["backbone", "method", "budget", "images", "seed"]).sort_index()
