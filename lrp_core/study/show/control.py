"""Figures of what the controllers watched and did."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from ipywidgets import Image, IntSlider, VBox
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lrp_core.graph.truncation import Truncation
from lrp_core.study.show.data import confusion_matrix
from lrp_core.study.show.style import STYLES


def of_notebooks_before(folder: Path, class_names: Sequence[str], seed: int) -> dict[str, Figure]:
    """Return the figures of notebooks 2 and 4 for one backbone, drawn from the tables that they left.

    Args:
        folder: of the backbone's results.
        class_names: in their order.
        seed: whose run of the first method is drawn.
    """
    counts = pd.read_csv(folder / "tables" / "confusion.csv").set_index("true").to_numpy()
    trace = pd.read_csv(folder / "trace_dynamic.csv")
    one = trace[(trace["method"] == trace["method"].iloc[0]) & (trace["seed"] == seed)]
    steps = pd.read_csv(folder / "trace_levers.csv")
    return {
        "confusion": confusion_matrix(counts, class_names),
        "monitored": monitored(pd.read_csv(folder / "signals.csv")),
        "controller_trace": controller_trace(one),
        "budget_search": budget_search(steps[(steps["method"] == steps["method"].iloc[0]) & (steps["seed"] == seed)]),
    }


def monitored(table: pd.DataFrame) -> Figure:
    """Show the harmonic mean that each signal has beside the test's, along one order of removal.

    Args:
        table: columns seed, rate, signal, value, test.
    """
    names = table["monitored"].unique()
    figure, axes = plt.subplots(1, 2, figsize=(10.8, 3.9 + 0.25 * -(-len(names) // 3)), layout="constrained")
    test = table[["seed", "rate", "test"]].drop_duplicates()
    sns.lineplot(test, x="rate", y="test", color="0.2", lw=2.5, errorbar=None, ax=axes[0], label="test")
    shared = {"hue": "monitored", "hue_order": names, "style": "monitored", "style_order": names}
    sns.lineplot(table, x="rate", y="value", errorbar=None, ax=axes[0], **shared)
    axes[0].set(xlabel="filters removed", ylabel="harmonic mean of class accuracies", xlim=(0, 1), ylim=(0, 1))
    sns.scatterplot(table, x="value", y="test", s=22, ax=axes[1], legend=False, **shared)
    axes[1].axline((0, 0), slope=1, color="0.5", lw=1)
    axes[1].set(xlabel="harmonic mean, by the signal", ylabel="harmonic mean on the test images")
    axes[1].set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    axes[0].get_legend().remove()
    for axis in axes:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def controller_trace(trace: pd.DataFrame) -> Figure:
    """Show one run of the controller by step: the rate, what was tried and undone, A with its bound, the classes."""
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    accepted = trace[trace["deferred"] == 0]
    partly = trace[(trace["deferred"] > 0) & (trace["removed"] > 0)]
    undone = trace[trace["removed"] == 0]
    colours = sns.color_palette("colorblind")
    axes[0].plot(trace["step"], trace["rate"], color="0.5", lw=1)
    kinds = ((accepted, "o", "batch accepted", 2), (partly, "^", "part put off", 1), (undone, "x", "all put off", 3))
    for rows, marker, label, colour in kinds:
        if len(rows):
            style = {"marker": marker, "color": colours[colour], "label": label}
            axes[0].scatter(rows["step"], rows["rate"], s=28, zorder=3, **style)
    axes[0].set(ylabel="filters removed", ylim=(0, 1))
    axes[0].legend(loc="lower right")
    axes[1].plot(trace["step"], trace["after"], label="harmonic mean A", color=colours[0])
    axes[1].step(trace["step"], trace["bound"], where="mid", ls="--", color=colours[3], label="bound of the level")
    axes[1].set(ylabel="A on the calibration images", ylim=(0, 1))
    axes[1].legend(loc="lower left")
    classes = [name for name in trace if name.startswith("accuracy_")]
    for i, column in enumerate(classes):
        style = STYLES[(i + i // len(colours)) % len(STYLES)]  # another one when the colours begin again
        axes[2].plot(trace["step"], trace[column], ls=style, label=column.removeprefix("accuracy_"))
    axes[2].set(ylabel="class accuracy", xlabel="step", ylim=(0, 1))
    if len(classes) > len(STYLES):
        figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    else:
        axes[2].legend(loc="lower left", ncols=2)
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def controller_step(trace: pd.DataFrame, step: int) -> Figure:
    """Show one step of a run of the controller: where it stands on the way, and each class's accuracy then."""
    row, classes = trace.set_index("step").loc[step], [name for name in trace if name.startswith("accuracy_")]
    figure, (way, bars) = plt.subplots(
        1, 2, figsize=(9, 3.2), layout="constrained", gridspec_kw={"width_ratios": (3, 2)}
    )
    colours = sns.color_palette("colorblind")
    way.plot(trace["rate"], trace["after"], color=colours[0], label="harmonic mean A")
    way.step(trace["rate"], trace["bound"], where="pre", ls="--", color=colours[3], label="bound of the level")
    way.plot(row["rate"], row["after"], "o", ms=10, color=colours[1], label=f"step {step}")
    way.set(xlabel="filters removed", ylabel="A on the calibration images", xlim=(0, 1), ylim=(0, 1))
    way.legend(loc="lower left")
    way.set_title(
        "{requested:.0f} tried, {removed:.0f} removed, {deferred:.0f} put off".format(**row), fontsize="medium"
    )
    bars.barh([name.removeprefix("accuracy_") for name in classes][::-1], row[classes][::-1], color=colours[0])
    bars.set(xlabel="class accuracy", xlim=(0, 1))
    for axis in (way.xaxis, way.yaxis, bars.xaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure


def budget_search(trace: pd.DataFrame) -> Figure:
    """Show one run down the ladder: the error that each lever offers at each budget, and what is left of the depth."""
    figure, (errors, depth) = plt.subplots(2, 1, figsize=(9, 6.4), sharex=True, layout="constrained")
    colours = sns.color_palette("colorblind")
    errors.plot(trace["budget"], trace["error"], color="0.5", lw=1, zorder=1)
    for action, colour, marker in (("start", 7, "s"), ("filters", 0, "o"), ("exit", 3, "v"), ("block", 2, "^")):
        taken = trace[trace["action"] == action]
        style = {"marker": marker, "color": colours[colour]}
        errors.scatter(trace["budget"], trace[f"candidate_{action}"].astype(float), s=28, alpha=0.35, **style)
        errors.scatter(taken["budget"], taken["error"], s=60, zorder=3, label=action, **style)
    errors.set(ylabel="cross-fitted squared error", xscale="log", xlim=(1.1, trace["budget"].min() / 1.1))
    errors.legend(loc="upper left", title="action")
    truncations = [
        Truncation.parse(str(truncation)) for truncation in trace["truncation"]
    ]  # VGG's layers have numbers for names
    names = list(dict.fromkeys(truncation.exit for truncation in truncations))
    depth.step(
        trace["budget"], [names.index(truncation.exit) for truncation in truncations], where="mid", color="0.5", lw=1
    )
    for budget, truncation in zip(trace["budget"], truncations, strict=True):
        depth.text(
            budget,
            names.index(truncation.exit),
            len(truncation.skipped) or "",
            ha="center",
            va="bottom",
            fontsize="small",
        )
    depth.set(
        xlabel="multiply-adds, of the whole network's", ylabel="end of the backbone", ylim=(len(names) - 0.5, -0.7)
    )
    depth.set_yticks(range(len(names)), names)
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
