"""Which size is taken, if accuracy may fall by so many points on unseen images."""

from collections.abc import Sequence

from lrp_core.control.path import PathRow

ERRORS = 0.5  # standard errors that the estimated drop is raised by


def largest_drop_allowed(rows: Sequence[PathRow], points: float) -> PathRow:
    """Return the smallest size whose estimated drop, raised by :data:`ERRORS` standard errors, is within the points."""
    chosen = rows[0]
    for row in rows[1:]:
        if row.estimate.drop + ERRORS * row.estimate.drop_error > points:
            break
        chosen = row
    return chosen
