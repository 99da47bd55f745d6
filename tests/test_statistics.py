"""Intervals by simulation, Holm's test by what it promises."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lrp_core.study.analysis.statistics import above_chance, holm, paired_interval


@pytest.mark.parametrize("n_seeds", [5, 10])
@pytest.mark.parametrize("kind", ["normal", "accuracies"])
def test_95_of_100_intervals_cover_the_mean(n_seeds, kind):
    """With as many seeds as are used here; of normal differences, and of differences of accuracies on 160 images."""
    rng = np.random.default_rng(0)
    if kind == "normal":
        differences = rng.normal(0.02, 0.03, size=(4000, n_seeds))
    else:
        one, other = (rng.binomial(160, p, size=(4000, n_seeds)) / 160 for p in (0.72, 0.70))
        differences = one - other
    covered = np.mean([low <= 0.02 <= high for low, high, _ in (paired_interval(one, 0.0) for one in differences)])
    assert 0.94 < covered < 0.96


@pytest.mark.parametrize(("n_pool", "n_test"), [(800, 360), (2200, 400), (10000, 1000)])
def test_intervals_cover_the_truth_though_draws_overlap(n_pool, n_test):
    """Two classifiers on test images that five seeds draw from one pool; the truth is about all images there could be.

    The pools and draws are those of TrashNet, ELPV and CIFAR-10. Without the correction TrashNet's intervals are too
    narrow.
    """
    rng, covered, plain = np.random.default_rng(0), [], []
    for _ in range(2000):
        difference = (rng.random(n_pool) < 0.78).astype(float) - (rng.random(n_pool) < 0.72)
        means = [difference[rng.permutation(n_pool)[:n_test]].mean() for _ in range(5)]
        for found, overlap in ((covered, n_test / n_pool), (plain, 0.0)):
            low, high, _ = paired_interval(means, overlap)
            found.append(low <= 0.06 <= high)
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(plain) < (0.80 if n_pool == 800 else 0.95)


def test_an_interval_ends_at_0_where_p_is_5_percent():
    rng = np.random.default_rng(1)
    differences = rng.normal(size=6)
    low, high, p = paired_interval(differences - differences.mean() + 0.5, 0.0)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert p == pytest.approx(ttest_1samp(differences - differences.mean() + 0.5, 0).pvalue)
    assert paired_interval(differences - differences.mean() + (high - low) / 2, 0.0)[2] == pytest.approx(0.05)


def test_equal_differences_leave_no_doubt():
    assert paired_interval([0.1, 0.1, 0.1], 0.0) == (0.1, 0.1, 0.0)
    assert paired_interval([0.0, 0.0], 0.0) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="run more seeds"):
        paired_interval([0.1], 0.0)


@pytest.mark.parametrize("differences", [[1e-17] * 3, [0.0, -1e-17, 3e-17], [(0.1 + 0.2) - 0.3] * 5])
def test_rounding_errors_are_no_difference(differences):
    """Two methods that find the same networks differ by the order of their sums, not by anything to be sure of."""
    assert paired_interval(differences, 0.0) == (0.0, 0.0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_holm_seldom_errs_in_any_of_many():
    """Ten true hypotheses together: at least one is rejected in 5 % of all cases, and without Holm in 40 %."""
    p = np.random.default_rng(0).random((4000, 10))
    assert 0.035 < np.mean([(holm(row) < 0.05).any() for row in p]) < 0.065
    assert (p < 0.05).any(axis=1).mean() > 0.35


@pytest.mark.parametrize("images", [[20, 20], [8, 40, 160], [30] * 12])
def test_guesses_are_seldom_above_chance(images):
    """Against guesses drawn one by one: 5 % of them by design, and what knows a class or two more always."""
    rng, n_classes = np.random.default_rng(0), len(images)
    guesses = [[(rng.integers(n_classes, size=n) == 0).mean() for n in images] for _ in range(2000)]
    taken = np.mean([above_chance(np.array(accuracies), np.array(images)) for accuracies in guesses])
    assert 0.01 < taken < 0.08
    assert above_chance(np.full(n_classes, 1 / n_classes + 0.35), np.array(images))
