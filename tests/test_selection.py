"""Which size is taken, on rows that are made up."""

import pytest

from lrp_core.control.path import Path, PathRow
from lrp_core.control.selection import largest_drop_allowed
from lrp_core.metrics.estimate import Estimate

Z = 1.6448536269514722


def rows(*drops: tuple[float, float]) -> list[PathRow]:
    """The unpruned network, then a row for every estimated drop and its standard error."""
    found = [(0.0, 0.0), *drops]
    return [
        PathRow(
            removed=i,
            pruning_ratio=i / 10,
            multiply_adds=1 - i / 10,
            parameters=1 - i / 10,
            filters=10 - i,
            latency=0.001,
            estimate=Estimate(50, 0.8, (0.7, 0.9), 0.8, (0.7, 0.9), drop, (drop - Z * error, drop + Z * error)),
        )
        for i, (drop, error) in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("drops", "points", "chosen"),
    [
        ([(0, 1), (1, 1), (1.4, 1), (1.6, 1)], 2.0, 3),  # half a standard error more than 1.5 is too much
        ([(0, 1), (1, 1), (1.4, 1), (1.6, 0.7)], 2.0, 4),  # a surer estimate of the same drop is not
        ([(0, 1), (1, 3), (1.6, 0.1)], 2.0, 1),  # the first that is too much ends it, though the next one is not
        ([(0, 5)], 2.0, 0),  # too unsure to tell: the unpruned one
        ([(3, 0)], 2.0, 0),
        ([(-4, 4), (-1.5, 2)], 0.0, 2),  # gains
        ([(0, 0), (0, 0)], 0.0, 2),  # exactly as much as is allowed
        ([(50, 5), (90, 5)], 99.0, 2),
        ([], 2.0, 0),
    ],
)
def test_the_smallest_size_within_the_points_is_taken(drops, points, chosen):
    made = rows(*drops)
    assert largest_drop_allowed(made, points) is made[chosen]
    assert largest_drop_allowed(Path(made), points).removed == chosen


def test_more_points_never_give_a_larger_network():
    made = rows((0.2, 1.5), (1.0, 1.4), (0.8, 1.7), (3.0, 2.0), (2.5, 0.5), (12.0, 4.0))
    taken = [largest_drop_allowed(made, points / 4).removed for points in range(80)]
    assert taken == sorted(taken)
    assert set(taken) == {0, 1, 3, 5, 6}


def test_a_path_prints_a_line_a_row_and_slices():
    path = Path(rows((1.0, 1.0), (2.0, 1.0)))
    assert len(str(path).splitlines()) == len(path) + 1 == 4
    assert str(path[1]) == str(path).splitlines()[2]
    assert [row.removed for row in path[1:]] == [1, 2]
