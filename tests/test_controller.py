"""The controller on scripted callables: no network, no images."""

import numpy as np
import pytest

from lrp_core.control.controller import Settings, class_weights, control, first_removable
from lrp_core.metrics.accuracy import harmonic_mean


class Script:
    """Filters with known worth: class accuracies are a function of what is removed, relevance is given."""

    def __init__(self, relevance, accuracy, layer_of):
        self.given, self.given_accuracy, self.layer_of = (
            np.asarray(relevance, dtype=float),
            accuracy,
            np.asarray(layer_of),
        )
        self.removed, self.proposed = [], []

    def relevance(self):
        shares = self.given.copy()
        shares[:, self.removed] = np.nan
        return shares

    def accuracy(self, filters):
        if len(filters):
            self.proposed.append(sorted(int(f) for f in filters))
        return np.asarray(self.given_accuracy({*self.removed, *(int(f) for f in filters)}), dtype=float)

    def prune(self, filters):
        assert not set(filters.tolist()) & set(self.removed), "a filter is removed once"
        self.removed += filters.tolist()

    def run(self, **settings):
        return list(control(self.layer_of, self.relevance, self.accuracy, self.prune, Settings(**settings)))


def harmless(n=80, layers=4):
    """Accuracy never changes."""
    relevance = np.arange(n, dtype=float)[::-1] / n
    return Script([relevance, relevance], lambda removed: [0.8, 0.6], np.repeat(np.arange(layers), n // layers))


def test_both_off_is_lowest_first_in_equal_steps():
    script = harmless()
    steps = script.run(batch=0.1, order=False, rate=False)
    assert [len(step.removed) for step in steps] == [8] * 9 + [4]  # 76 of 80: 95 %
    first = [f for step in steps[:2] for f in step.removed.tolist()]
    assert first == list(range(79, 63, -1))  # the lowest relevance first
    assert script.proposed == []
    assert steps[-1].rate == 0.95


def test_a_step_removes_at_most_half_of_what_is_left():
    for settings in ({"order": False, "rate": False}, {}):
        steps = harmless().run(batch=0.4, **settings)
        assert [len(step.removed) for step in steps] == [32, 24, 12, 6, 2]  # of 80, 48, 24, 12, 6: 76 in all


def test_a_step_removes_at_most_so_much_of_what_is_left():
    steps = harmless(100).run(batch=0.4, taper=0.25, order=False, rate=False)
    assert [len(step.removed) for step in steps[:4]] == [25, 19, 14, 11]  # of 100, 75, 56, 42, rounded up


def test_no_layer_is_emptied():
    script = harmless()
    script.run(batch=0.25)
    left = np.bincount(script.layer_of[np.setdiff1d(np.arange(80), script.removed)], minlength=4)
    assert left.tolist() == [1, 1, 1, 1]
    assert (first_removable(np.arange(4), 4, np.array([0, 0, 1, 1]), np.ones(4, dtype=bool)) == [0, 2]).all()


def test_weights_follow_the_gradient_of_the_harmonic_mean():
    accuracies, step = np.array([0.9, 0.5, 0.3]), 1e-6
    gradient = [
        (harmonic_mean(accuracies + step * unit) - harmonic_mean(accuracies - step * unit)) / (2 * step)
        for unit in np.eye(3)
    ]
    weights = class_weights(accuracies, floor=0.05)
    np.testing.assert_allclose(weights / weights.sum(), gradient / np.sum(gradient), rtol=1e-6)
    assert np.isfinite(class_weights(np.array([0.0, 1.0]), floor=0.05)).all()


def test_order_spares_what_serves_the_weak_class():
    """Filter 0 serves the strong class, filter 1 the weak one, alike in sum but for a grain."""
    relevance = np.full((2, 40), 5.0)
    relevance[:, 0], relevance[:, 1] = [1.1, 0.0], [0.0, 1.0]
    make = lambda: Script(relevance, lambda removed: [0.9, 0.3], np.arange(40) // 20)  # noqa: E731
    unweighted, weighted = make(), make()
    unweighted.run(batch=0.025, order=False, rate=False)
    weighted.run(batch=0.025, order=True, rate=False)
    assert unweighted.removed[0] == 1
    assert weighted.removed[0] == 0


def test_a_batch_that_holds_is_removed_as_a_whole():
    script = harmless()
    steps = script.run(batch=0.1)
    assert all(step.deferred == 0 for step in steps)
    assert [step.evaluations for step in steps] == list(range(1, 11))


def test_a_harmful_layer_part_is_deferred_and_the_rest_is_removed():
    """Two layers; the lowest filters of layer 0 are vital, relevance is wrong about them."""
    vital = {0, 1}
    relevance = np.tile(np.r_[np.arange(20), np.arange(20)], (2, 1)) + np.repeat([0.0, 0.5], 20)
    script = Script(relevance, lambda removed: [0.2, 0.2] if removed & vital else [0.8, 0.8], np.repeat([0, 1], 20))
    steps = script.run(batch=0.1, least=0.0, levels=(0.9,))
    assert sorted(steps[0].removed.tolist()) == [20, 21]  # layer 1's part
    assert steps[0].deferred == 2
    assert script.proposed[:3] == [[0, 1, 20, 21], [0, 1], [20, 21]]
    order = [f for step in steps for f in step.removed.tolist()]
    assert min(order.index(f) for f in vital if f in order) >= 36  # the vital ones last
    assert all(step.after >= step.bound for step in steps)


def test_bound_is_kept_by_the_parts_together():
    """Each of four layers may lose filters alone, but at most two layers together."""
    layer_of = np.repeat(np.arange(4), 20)
    relevance = np.tile(np.tile(np.arange(20.0), 4), (2, 1))

    def accuracy(removed):
        touched = len({f // 20 for f in removed})
        return [0.8, 0.8] if touched <= 2 else [0.4, 0.4]

    steps = Script(relevance, accuracy, layer_of).run(batch=0.1, levels=(0.9, 0.4), least=0.0)
    assert len({f // 20 for f in steps[0].removed.tolist()}) == 2
    assert all(step.after >= step.bound for step in steps)


def test_level_relaxes_when_too_little_is_removed():
    relevance = np.tile(np.arange(40.0), (2, 1))
    script = Script(relevance, lambda removed: [0.8, 0.8 - 0.02 * len(removed)], np.arange(40) // 20)
    steps = script.run(batch=0.1, least=0.5, levels=(0.9, 0.5))
    levels = [step.level for step in steps]
    assert levels == sorted(levels)
    assert set(levels) == {0, 1, 2}
    assert steps[-1].rate == 0.95
    assert len(set(script.removed)) == 38


def test_what_is_known_to_break_the_next_bound_too_is_not_proposed_again():
    """Layer 0's lowest part costs much, layer 1's a little: only the latter is proposed again at the second level."""
    relevance = np.tile(np.r_[np.arange(20), np.arange(20)], (2, 1))
    costly, cheap = {0, 1}, {20, 21}

    def accuracy(removed):
        return [0.8 - 0.5 * bool(removed & costly) - 0.15 * bool(removed & cheap)] * 2

    script = Script(relevance, accuracy, np.repeat([0, 1], 20))
    steps = script.run(batch=0.1, least=0.5, levels=(0.9, 0.7, 0.3))
    assert script.proposed[:3] == [[0, 1, 20, 21], [0, 1], [20, 21]]
    assert (steps[0].level, steps[0].deferred, steps[1].level) == (0, 4, 1)
    assert script.proposed[3] == [2, 20, 21, 22]  # the lowest of what is left, and without layer 0's first two
    order = script.removed
    assert max(order.index(f) for f in cheap) < min(order.index(f) for f in costly if f in order)
    assert steps[-1].rate == 0.95


def test_a_network_too_small_for_95_percent_is_refused():
    script = Script(np.ones((2, 20)), lambda removed: [0.8, 0.6], np.arange(20) // 5)
    with pytest.raises(
        ValueError,
        match=r"20 filters in 4 layers cannot lose 95\.0% .*; the most that can be removed is 80\.0%",
    ):
        script.run()


def test_a_class_at_zero_from_the_start_does_not_stop_it():
    script = Script(np.tile(np.arange(40.0), (2, 1)), lambda removed: [0.8, 0.0], np.arange(40) // 20)
    assert script.run(batch=0.1)[-1].rate == 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, r"batch must lie in \(0, 1\], got 0"),
        ({"batch": 1.5}, "got 1.5"),
        ({"levels": (0.5, 0.9)}, "levels must descend"),
        ({"levels": (1.2, 0.5)}, "levels must descend"),
        ({"least": -0.1}, r"least must lie in \[0, 1\], got -0.1"),
        ({"accuracy_floor": 0}, "accuracy_floor must lie in"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)
