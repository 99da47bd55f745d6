"""The style of all figures, how they show several seeds, and how they are written."""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.utils.files import atomic

FEWEST = 4  # seeds with an interval: of two it is 12.7 standard errors to either side, wider than any panel
STYLES = ["-", "--", ":", "-.", (0, (1, 1, 4, 1))]
MARKERS = "oDs^vPX<>"
_BLACK, _PALETTE = (0.15, 0.15, 0.15), sns.color_palette("colorblind")
COLOURS = [*_PALETTE[:6], _BLACK, _PALETTE[9], _PALETTE[6], _PALETTE[7]]  # pale ones last, without yellow


def set_theme() -> None:
    """Set the style of all figures."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams["figure.max_open_warning"] = 0  # a profile has many, which are open until they are written


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``path`` as .png and .pdf, without the date, so that the same figure gives the same bytes."""
    for suffix, metadata in ((".png", None), (".pdf", {"CreationDate": None})):
        with atomic(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight", metadata=metadata)


def close(figures: Iterable[Figure]) -> None:
    """Close these figures."""
    for figure in figures:
        plt.close(figure)


def looks(names: Iterable[Hashable]) -> dict[Hashable, dict]:
    """Return a style for each name: color, ls (dashes) and marker, so that colours are not the only distinction."""
    found = {}
    for i, name in enumerate(names):
        turn = i + i // len(COLOURS)  # other dashes and markers when the colours begin again
        look = {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[turn % len(STYLES)]}
        found[name] = look | {"marker": MARKERS[turn % len(MARKERS)]}
    return found


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str] | None = None) -> None:
    """Put a legend below the panels, where it covers nothing, in as many columns as fit."""
    labels = [handle.get_label() for handle in handles] if labels is None else labels
    inches = 0.65 + 0.07 * max(len(label) for label in labels)
    columns = min(len(labels), 4, max(1, int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def draw_line(axis: Axes, values: pd.DataFrame, overlap: float, **look: object) -> Artist:
    """Draw a mean over seeds as a line, with its 95 % interval; with fewer than four seeds, each seed as a thin line.

    Args:
        axis: to draw on.
        values: one x per row, one seed per column.
        overlap: the share of the images that a seed tests.
        look: as :meth:`matplotlib.axes.Axes.plot` takes it.

    Returns:
        The line of the mean, for a legend.
    """
    (line,) = axis.plot(values.index, values.mean(axis=1), **look)
    if values.shape[1] >= FEWEST:
        low, high = np.array([paired_interval(row, overlap)[:2] for row in values.to_numpy()]).T
        axis.fill_between(values.index, low, high, color=line.get_color(), alpha=0.2, lw=0)
    elif values.shape[1] > 1:
        axis.plot(values.index, values.to_numpy(), color=line.get_color(), ls="-", lw=0.7, alpha=0.5)
    return line


def draw_point(
    axis: Axes,
    at: float,
    each: Sequence[float],
    interval: tuple[float, float],
    horizontal: bool = False,
    **look: object,
) -> None:
    """Draw a mean over seeds as a point, with its 95 % interval; with fewer than four seeds, each seed as a small dot.

    Args:
        axis: to draw on.
        at: where, on the other axis.
        each: the values, one a seed.
        interval: of the mean.
        horizontal: values are x, not y.
        look: as :meth:`matplotlib.axes.Axes.plot` takes it: color, marker, ...
    """
    each = np.asarray(each, dtype=float)

    def plot(values: np.ndarray, **look: object) -> None:
        across = np.full(len(values), at)
        axis.plot(*((values, across) if horizontal else (across, values)), **look)

    if len(each) >= FEWEST:
        plot(np.array(interval), color=look.get("color"), lw=2)
    elif len(each) > 1:
        plot(each, color=look.get("color"), ls="", marker="o", ms=3.5, alpha=0.6, mew=0)
    plot(each.mean(keepdims=True), **({"ls": "", "marker": "o", "ms": 7} | look))
