"""The path: one row for every size of a descent, with its expected accuracy on unseen images."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrp_core.metrics.estimate import Estimate

_HEADER = ("multiply-adds", "parameters", "filters", "ms", "accuracy", "harmonic mean", "drop")


@dataclass(frozen=True)
class PathRow:
    """The network at one size.

    Attributes:
        size: the size in the descent (:mod:`lrp_core.control.descent`); None for the unpruned network.
        removed: number of removed filters; coupled ones count once.
        pruning_ratio: removed filters as a fraction of all.
        multiply_adds, parameters: remaining fractions of the unpruned network's.
        filters: output channels of all convolutions.
        latency: median seconds for one image, measured here.
        estimate: for unseen images; None if none was made.
    """

    size: int | None
    removed: int
    pruning_ratio: float
    multiply_adds: float
    parameters: float
    filters: int
    latency: float
    estimate: Estimate | None

    def __str__(self) -> str:
        """Return a line of the table."""
        return _line(self._cells())

    def _cells(self) -> list[str]:
        cells = [f"{self.multiply_adds:.1%}", f"{self.parameters:.1%}", f"{self.filters}", f"{1000 * self.latency:.2f}"]
        if (found := self.estimate) is None:
            return cells + ["", "", ""]
        for value, interval in (
            (found.accuracy, found.accuracy_interval),
            (found.harmonic_mean, found.harmonic_mean_interval),
        ):
            cells.append(f"{100 * value:.1f} ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})")
        return [*cells, f"{found.drop:.1f} ({found.drop_interval[0]:.0f} to {found.drop_interval[1]:.0f})"]


class Path(Sequence[PathRow]):
    """Rows from the unpruned network to the smallest one; prints as a table."""

    def __init__(self, rows: Sequence[PathRow]):
        """Store the rows, largest network first."""
        self._rows = tuple(rows)

    def __len__(self) -> int:
        """Return how many sizes there are."""
        return len(self._rows)

    def __getitem__(self, index: int) -> PathRow:
        """Return a row, or a slice of them."""
        return self._rows[index]

    def __str__(self) -> str:
        """Return the table; accuracies in points, on unseen images, with 90 % intervals."""
        return "\n".join([_line(_HEADER), *map(str, self._rows)])

    __repr__ = __str__


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, (13, 10, 7, 7, 18, 18, 18), strict=True)).rstrip()
