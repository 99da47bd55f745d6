"""Which size is taken, on rows that are made up; isotonic regression by its definition, as a maximum of minima."""

import numpy as np
import pytest

from lrp_core.control.path import PathRow
from lrp_core.control.selection import smallest_within
from lrp_core.metrics.estimate import Estimate


def rows(*drops: float) -> list[PathRow]:
    """The unpruned network, then a row for every estimated drop."""
    return [
        PathRow(
            size=i or None,
            removed=i,
            pruning_ratio=i / 10,
            multiply_adds=1 - i / 10,
            parameters=1 - i / 10,
            filters=10 - i,
            latency=0.001,
            estimate=Estimate(50, 50, 0.8, (0.7, 0.9), 0.8, (0.7, 0.9), drop, (drop - 3, drop + 3)),
        )
        for i, drop in enumerate((0.0, *drops))
    ]


@pytest.mark.parametrize(
    ("drops", "points", "chosen"),
    [
        ((0, 1, 2, 3), 2.0, 3),  # exactly as much as is allowed
        ((3, 4), 2.0, 0),  # none: the unpruned one
        ((0, 4, 0, 1, 5), 2.0, 4),  # one noisy size in between ends nothing
        ((0, 4, 3, 3, 1), 2.0, 1),  # nor is a lucky one behind worse ones believed
        ((-4, -4, -1.5, 0), 2.0, 2),  # a gain of the largest sizes is not spent
        ((-4, -4, -1.5, 0), 2.5, 3),
        ((-1, -5, -3, 0), 0.0, 3),  # smoothed: a gain of 3 by each of the first three
        ((50, 90), 99.0, 2),
        ((), 2.0, 0),
    ],
)
def test_the_smallest_size_whose_smoothed_drop_is_within_the_points(drops, points, chosen):
    assert smallest_within(rows(*drops), points).removed == chosen


def test_drops_are_smoothed_by_isotonic_regression():
    generator = np.random.default_rng(0)
    for _ in range(50):
        drops, points = generator.normal(np.arange(8), 3), generator.uniform(0, 6)
        smoothed = [max(min(drops[a : b + 1].mean() for b in range(i, 8)) for a in range(i + 1)) for i in range(8)]
        within = [smoothed[i] <= points + min(0, smoothed[0]) for i in range(8)]
        expected = max((i + 1 for i in range(8) if within[i]), default=0)
        assert smallest_within(rows(*drops), points).removed == expected


def test_more_points_never_take_a_larger_network():
    path = rows(*np.random.default_rng(1).normal(np.arange(10), 4))
    taken = [smallest_within(path, points).removed for points in np.linspace(0, 12, 25)]
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]
