"""What held-out images say: against plain counting, numbers worked out by hand, and draws whose truth is known."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, t

from lrp_core.control.cross_validation import HeldOut
from lrp_core.metrics.estimate import certifiable, estimate


def alone(n: int) -> np.ndarray:
    return np.arange(n)


def test_of_many_images_it_says_what_counting_says():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(90_000) % 3)
    before, after = (rng.random(90_000) < np.array(rates)[labels] for rates in ((0.9, 0.8, 0.7), (0.85, 0.6, 0.4)))
    counted = [np.array([right[labels == k].mean() for k in range(3)]) for right in (before, after)]
    found = estimate(before, after, labels, alone(90_000))
    assert found.images == 90_000
    assert found.accuracy == pytest.approx(counted[1].mean(), abs=1e-4)
    assert found.harmonic_mean == pytest.approx(3 / (1 / counted[1]).sum(), abs=1e-4)
    assert found.drop == pytest.approx(100 * (counted[0].mean() - counted[1].mean()), abs=0.02)
    width = 2 * 1.6449 * np.sqrt((counted[1] * (1 - counted[1]) / 30_000).sum()) / 3  # of a mean of three binomials
    assert np.diff(found.accuracy_interval)[0] == pytest.approx(width, rel=1e-3)
    for name in ("accuracy", "harmonic_mean", "drop"):
        low, high = getattr(found, f"{name}_interval")
        assert low < getattr(found, name) < high


def test_half_an_image_more_is_right_and_half_a_one_wrong_in_each_class():
    """Class 0: 2 of 3 right, class 1: 1 of 4; before, all were."""
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    after = np.array([1, 1, 0, 1, 0, 0, 0], dtype=bool)
    found = estimate(np.ones(7, dtype=bool), after, labels, alone(7))
    first, second = 2.5 / 4, 1.5 / 5
    assert found.accuracy == pytest.approx((first + second) / 2)
    assert found.harmonic_mean == pytest.approx(2 / (1 / first + 1 / second))
    assert found.drop == pytest.approx(100 * ((3.5 / 4 + 4.5 / 5) / 2 - found.accuracy))
    # Of the sum: 2 images at 1 - p, 1 at -p, and the one more at both, half each; over the counts, halved for the mean.
    squares = (2 * (1 - first) ** 2 + first**2 + ((1 - first) ** 2 + first**2) / 2) / 16
    squares += ((1 - second) ** 2 + 3 * second**2 + ((1 - second) ** 2 + second**2) / 2) / 25
    # Student's t of 7 images less 2 means; the table says 2.015 for 5 degrees of freedom.
    assert found.accuracy - found.accuracy_interval[0] == pytest.approx(t.ppf(0.95, 5) * np.sqrt(7 / 5 * squares / 4))


def test_folds_widen_intervals_by_the_ratio_of_images_that_judge_to_those_that_prune():
    labels, right = np.arange(40) % 2, np.arange(40) % 5 > 1
    alike, folded = (estimate(right, right, labels, alone(40), n_folds=n) for n in (None, 4))
    assert folded.accuracy == alike.accuracy
    ratio = np.diff(folded.accuracy_interval)[0] / np.diff(alike.accuracy_interval)[0]
    assert ratio == pytest.approx(np.sqrt(1 + 10 / 30))


def test_a_class_that_is_never_right_does_not_make_the_mean_0():
    labels = np.arange(40) % 2
    found = estimate(np.ones(40, dtype=bool), labels == 0, labels, alone(40))
    assert found.harmonic_mean == pytest.approx(2 / (21 / 20.5 + 21 / 0.5))
    assert found.harmonic_mean > 0
    low, high = found.harmonic_mean_interval
    assert low == 0 < found.harmonic_mean < high
    assert found.drop == pytest.approx(100 * 20 / 21 / 2)


def test_intervals_end_where_values_do_and_are_never_empty():
    labels, right = np.arange(6) % 2, np.ones(6, dtype=bool)
    found = estimate(right, right, labels, alone(6))
    assert found.accuracy_interval[1] == found.harmonic_mean_interval[1] == 1
    assert found.accuracy_interval[0] < found.accuracy
    assert found.drop == 0
    assert found.drop_interval[0] < 0 < found.drop_interval[1]
    none = estimate(~right, ~right, labels, alone(6))
    assert none.accuracy_interval[0] == none.harmonic_mean_interval[0] == 0


def test_of_the_unpruned_network_the_drop_is_0_for_sure():
    labels, right = np.arange(12) % 2, np.arange(12) % 5 > 0
    judged = HeldOut(np.array([0.9]), right, right[None], labels, alone(12), 4, lambda part: part)
    assert judged.unpruned().drop_interval == (0.0, 0.0)
    assert judged.unpruned().accuracy == judged.estimates()[0].accuracy
    assert judged.estimates()[0].drop_interval != (0.0, 0.0)


TRUTHS = {
    "many images": (40, (0.9, 0.8, 0.7, 0.85), (0.8, 0.7, 0.5, 0.8)),
    "few images": (12, (0.9, 0.8, 0.85), (0.75, 0.6, 0.8)),
    "a network hardly changed": (25, (0.9, 0.85, 0.8, 0.9), (0.88, 0.83, 0.78, 0.88)),
}


@pytest.mark.parametrize("case", TRUTHS)
def test_intervals_cover_what_is_true_as_often_as_they_say(case):
    """What was wrong before mostly stays wrong, as of pruned networks: a pair is not two draws."""
    n, before, after = TRUTHS[case]
    before, after = np.array(before), np.array(after)
    labels, rng, covered = np.repeat(np.arange(len(before)), n), np.random.default_rng(1), np.zeros(3)
    truth = after.mean(), len(after) / (1 / after).sum(), 100 * (before.mean() - after.mean())
    stays = 0.02  # P(right after | wrong before), so that P(right after) is what it is to be
    comes = (after - stays * (1 - before)) / before
    for _ in range(4000):
        one = rng.random(len(labels)) < before[labels]
        other = rng.random(len(labels)) < np.where(one, comes[labels], stays)
        found = estimate(one, other, labels, alone(len(labels)))
        intervals = found.accuracy_interval, found.harmonic_mean_interval, found.drop_interval
        covered += [low <= value <= high for value, (low, high) in zip(truth, intervals, strict=True)]
    assert (covered >= 0.86 * 4000).all(), covered
    assert (covered <= 0.98 * 4000).all(), covered  # half an image more makes the smallest drops too unsure


def test_intervals_of_groups_cover_where_those_of_images_do_not():
    """Five images a group, all right or all wrong: they are worth as much as one."""
    rng, covered, labels = np.random.default_rng(2), np.zeros(2), np.repeat(np.arange(120) % 2, 5)
    groups, rates = np.repeat(np.arange(120), 5), np.array([0.7, 0.8])
    for _ in range(1000):
        right = np.repeat(rng.random(120) < rates[np.arange(120) % 2], 5)
        for i, of in enumerate((groups, alone(600))):
            low, high = estimate(right, right, labels, of).accuracy_interval
            covered[i] += low <= 0.75 <= high
    assert 860 <= covered[0] <= 970
    assert covered[1] < 700


def test_intervals_of_few_groups_cover():
    """Four groups a class, of five images that are all right or all wrong: that is few, and Student's t says so."""
    rng, labels = np.random.default_rng(4), np.repeat(np.arange(12) % 3, 5)
    rates, covered = np.array([0.5, 0.6, 0.7]), 0
    for _ in range(2000):
        right = np.repeat(rng.random(12) < rates[np.arange(12) % 3], 5)
        low, high = estimate(right, right, labels, np.repeat(np.arange(12), 5)).accuracy_interval
        covered += low <= rates.mean() <= high
    assert 0.86 * 2000 <= covered <= 0.97 * 2000


def test_twice_the_same_image_says_it_once():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    before, after = rng.random(400) < 0.85, rng.random(400) < 0.7
    once = estimate(before, after, labels, alone(400))
    twice = [np.repeat(part, 2) for part in (before, after, labels)]
    grouped, apart = estimate(*twice, np.repeat(alone(400), 2)), estimate(*twice, alone(800))
    assert grouped.images == 800
    for name in ("accuracy_interval", "harmonic_mean_interval", "drop_interval"):
        width, with_groups, without = (np.diff(getattr(one, name))[0] for one in (once, grouped, apart))
        assert with_groups == pytest.approx(width, rel=0.03)
        assert without == pytest.approx(width / np.sqrt(2), rel=0.03)


def test_sums_over_two_sites_say_what_all_images_say():
    """Each site in turn, with the other's sums recorded; groups have the same numbers at both and are not the same."""
    rng = np.random.default_rng(3)
    labels, site = np.arange(60) % 3, np.arange(60) // 3 % 2
    before, after, groups = rng.random(60) < 0.8, rng.random(60) < 0.6, np.arange(60) // 6
    pooled = estimate(before, after, labels, groups * 2 + site)
    sums: list[list[torch.Tensor]] = [[], []]

    def at(own: int, all_reduce) -> object:
        here = site == own
        return estimate(before[here], after[here], labels[here], groups[here], all_reduce)

    for own in (0, 1):  # what is sent depends on sums that came before: two rounds for each of them
        at(own, lambda part, own=own: sums[own].append(part.clone()) or part)
    for _ in range(len(sums[0])):
        heard = sums
        sums = [[], []]
        found = [
            at(
                own,
                lambda part, mine=sums[own], theirs=iter(heard[1 - own]): (
                    mine.append(part.clone()) or part + next(theirs)
                ),
            )
            for own in (0, 1)
        ]
    assert found[0] == found[1]
    for name in ("accuracy", "accuracy_interval", "harmonic_mean", "harmonic_mean_interval", "drop", "drop_interval"):
        assert getattr(found[0], name) == pytest.approx(getattr(pooled, name), rel=1e-9)
    assert found[0].images == 60


@pytest.mark.parametrize("images", [1, 2, 30, 100, 1000])
def test_what_can_be_certified_is_what_clopper_and_pearson_say(images):
    assert certifiable(images) == pytest.approx(100 * beta.ppf(0.9, 1, images))  # none of them changes sides


def test_a_hundred_images_can_exclude_a_fall_of_two_points_and_a_bit():
    assert round(certifiable(100), 2) == 2.28


def test_images_of_one_group_and_class_are_one_observation():
    labels, groups = np.array([0, 0, 1, 1, 0, 1]), np.array([7, 7, 7, 7, 8, 8])
    found = estimate(np.ones(6, dtype=bool), np.ones(6, dtype=bool), labels, groups)
    assert (found.images, found.observations) == (6, 4)


def test_it_prints_in_points():
    labels = np.arange(8) % 2
    found = estimate(np.ones(8, dtype=bool), np.arange(8) > 1, labels, alone(8))
    assert f"{100 * found.accuracy:.1f} (" in str(found).splitlines()[0]
    assert f"drop of the accuracy          {found.drop:.1f} (" in str(found)
