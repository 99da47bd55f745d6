"""The look of all figures, and how they are written."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.utils.files import atomic

STYLES = ["-", "--", ":", "-.", (0, (1, 1, 4, 1))]


def set_theme() -> None:
    """Set the look of all figures."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``path`` as .png and .pdf, without the date, so that the same figure gives the same bytes."""
    for suffix, metadata in ((".png", None), (".pdf", {"CreationDate": None})):
        with atomic(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight", metadata=metadata)


def close(figures: Iterable[Figure]) -> None:
    """Show these figures no more."""
    for figure in figures:
        plt.close(figure)


def _legend_below(figure: Figure, axis: Axes, columns: int) -> None:
    """Move an axis's legend below the panels, where it covers nothing."""
    handles, labels = axis.get_legend_handles_labels()
    axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _student(values: pd.Series) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean, for seaborn; of one value that value."""
    return paired_interval(values)[:2] if len(values) > 1 else (values.iloc[0], values.iloc[0])
