"""Figures of what the controller and the budget search monitored, tried and did."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from ipywidgets import Image, IntSlider, VBox
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lrp_core.graph.truncation import Truncation
from lrp_core.study.show.style import legend_below, looks


def monitored(table: pd.DataFrame) -> Figure:
    """Show the harmonic mean by each monitored accuracy beside the test images' along one order of removal.

    Args:
        table: columns seed, rate, monitored, value, test.
    """
    names = table["monitored"].unique()
    figure, (along, against) = plt.subplots(1, 2, figsize=(10.8, 4.4), layout="constrained")
    test = table.drop_duplicates(["seed", "rate"]).groupby("rate")["test"].mean()
    along.plot(test.index, test, color="0.2", lw=2.5, label="test images")
    for name, look in looks(names).items():
        rows = table[table["monitored"] == name]
        mean = rows.groupby("rate")["value"].mean()
        along.plot(mean.index, mean, color=look["color"], ls=look["ls"], label=name)
        against.plot(rows["value"], rows["test"], look["marker"], color=look["color"], ms=5, alpha=0.7, mew=0)
    along.set(xlabel="filters removed", ylabel="harmonic mean of class accuracies", xlim=(0, 1), ylim=(-0.03, 1.03))
    against.axline((0, 0), slope=1, color="0.5", lw=1)
    against.set(xlabel="harmonic mean, monitored", ylabel="harmonic mean, test images")
    against.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    handles = [Line2D([], [], **look, label=name) for name, look in looks(names).items()]
    legend_below(figure, [along.lines[0], *handles])
    for axis in (along, against):
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def controller_trace(trace: pd.DataFrame) -> Figure:
    """Show one run of the controller by step: what was removed and deferred, A with its bound, the class accuracies."""
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    removed, deferred = trace["removed"] > 0, trace["deferred"] > 0
    colours = sns.color_palette("colorblind")
    axes[0].plot(trace["step"], trace["rate"], color="0.5", lw=1)
    kinds = (
        (~deferred, "o", "batch accepted", 2),
        (deferred & removed, "^", "part deferred", 1),
        (deferred & ~removed, "x", "all deferred", 3),
    )
    for chosen, marker, label, colour in kinds:
        if chosen.any():
            rows, style = trace[chosen], {"marker": marker, "color": colours[colour], "label": label}
            axes[0].scatter(rows["step"], rows["rate"], s=28, zorder=3, **style)
    axes[0].set(ylabel="filters removed", ylim=(-0.03, 1.03))
    axes[1].plot(trace["step"], trace["after"], label="harmonic mean A", color=colours[0])
    axes[1].step(trace["step"], trace["bound"], where="mid", ls="--", color=colours[3], label="bound of the level")
    axes[1].set(ylabel="A, calibration images", ylim=(-0.03, 1.03))
    for column, look in looks([name for name in trace if name.startswith("accuracy_")]).items():
        name = column.removeprefix("accuracy_")
        axes[2].plot(trace["step"], trace[column], color=look["color"], ls=look["ls"], label=name)
    axes[2].set(ylabel="class accuracy", xlabel="step", ylim=(-0.03, 1.03))
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    return figure


def controller_step(trace: pd.DataFrame, step: int) -> Figure:
    """Show one step of a run of the controller: how far it has come, and each class's accuracy there."""
    row, classes = trace.set_index("step").loc[step], [name for name in trace if name.startswith("accuracy_")]
    figure, (way, bars) = plt.subplots(
        1, 2, figsize=(9, 3.6), layout="constrained", gridspec_kw={"width_ratios": (3, 2)}
    )
    colours = sns.color_palette("colorblind")
    way.plot(trace["rate"], trace["after"], color=colours[0], label="harmonic mean A")
    way.step(trace["rate"], trace["bound"], where="pre", ls="--", color=colours[3], label="bound of the level")
    way.plot(row["rate"], row["after"], "o", ms=10, color=colours[1], label=f"step {step}")
    way.set(xlabel="filters removed", ylabel="A, calibration images", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    title = "{requested:.0f} requested, {removed:.0f} removed, {deferred:.0f} deferred".format(**row)
    way.set_title(title, fontsize="medium")
    bars.barh([name.removeprefix("accuracy_") for name in classes][::-1], row[classes][::-1], color=colours[0])
    bars.set(xlabel="class accuracy", xlim=(0, 1))
    for axis in (way.xaxis, way.yaxis, bars.xaxis):
        axis.set_major_formatter(PercentFormatter(1))
    legend_below(figure, *way.get_legend_handles_labels())
    return figure


def budget_search(trace: pd.DataFrame, exits: Sequence[str]) -> Figure:
    """Show one run of the budget search: the error of each action's candidate at each budget, and the depth kept.

    Args:
        trace: of one run, one row per budget: budget, action, truncation, error, candidate_<action>.
        exits: of the backbone, the first one first; the backbone's own end may be left out.
    """
    figure, (errors, depth) = plt.subplots(2, 1, figsize=(9, 6.4), sharex=True, layout="constrained")
    colours = sns.color_palette("colorblind")
    errors.plot(trace["budget"], trace["error"], color="0.5", lw=1, zorder=1)
    for action, colour, marker in (("start", 7, "s"), ("filters", 0, "o"), ("exit", 3, "v"), ("block", 2, "^")):
        taken = trace[trace["action"] == action]
        style = {"marker": marker, "color": colours[colour]}
        errors.scatter(trace["budget"], trace[f"candidate_{action}"].astype(float), s=28, alpha=0.35, lw=0, **style)
        errors.scatter(taken["budget"], taken["error"], s=60, zorder=3, label=action, **style)
    errors.set(ylabel="cross-fitted squared error", xscale="log", xlim=(1.1, trace["budget"].min() / 1.1))
    errors.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="action")
    truncations = [Truncation.parse(text) for text in trace["truncation"].fillna("").astype(str)]  # VGG's are numbers
    kept = {truncation.exit for truncation in truncations}
    names = [name for name in ("", *reversed([*map(str, exits)])) if name in kept]  # the deepest on top
    rows = [names.index(truncation.exit) for truncation in truncations]
    depth.step(trace["budget"], rows, where="mid", color="0.5", lw=1)
    for budget, row, truncation in zip(trace["budget"], rows, truncations, strict=True):
        depth.text(budget, row, len(truncation.skipped) or "", ha="center", va="bottom", fontsize="small")
    depth.set(xlabel="multiply-adds, of the whole network's", ylabel="exit", ylim=(len(names) - 0.5, -0.7))
    depth.set_yticks(range(len(names)), [name or "whole backbone" for name in names])
    depth.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def explore(trace: pd.DataFrame) -> VBox:
    """Return a slider over the steps of one run of the controller, each drawn by :func:`controller_step`.

    The picture is an image, not ipywidgets' ``interactive``: that asks whoever runs the notebook to answer, and when no
    person does, the run may wait for ever (nbclient's issue 312).
    """
    slider = IntSlider(value=0, min=0, max=int(trace["step"].max()), description="step", continuous_update=False)
    picture = Image(format="png", layout={"width": "900px"})

    def show(change: dict) -> None:
        figure, drawn = controller_step(trace, change["new"]), BytesIO()
        figure.savefig(drawn, dpi=100)
        plt.close(figure)
        picture.value = drawn.getvalue()

    slider.observe(show, "value")
    show({"new": slider.value})
    return VBox([slider, picture])
