"""Scores by class as shares of their layer, on numbers worked out by hand."""

import numpy as np

from lrp_core.importance.by_class import class_shares


def test_within_a_layer_the_order_is_that_of_the_scores_whatever_the_sign_of_their_sum():
    scores, layers = np.array([[-3.0, 1.0, 0.5, 2.0, -1.0, 3.0]]), np.array([0, 0, 0, 1, 1, 1])
    shares = class_shares(scores, np.array([0]), layers)[0]
    np.testing.assert_allclose(shares, [-3 / 1.5, 1 / 1.5, 0.5 / 1.5, 2 / 4, -1 / 4, 3 / 4])
    for layer in (0, 1):
        np.testing.assert_array_equal(np.argsort(shares[layers == layer]), np.argsort(scores[0, layers == layer]))


def test_a_layer_whose_scores_cancel_has_shares_with_a_bound():
    """Its sum, 1e-9, is far below a hundredth of its absolute values, 2: that hundredth divides."""
    scores, layers = np.array([[1.0, -1.0 + 1e-9, 3.0, 5.0]]), np.array([0, 0, 1, 1])
    shares = class_shares(scores, np.array([0]), layers)[0]
    np.testing.assert_allclose(shares, [50, -50, 3 / 8, 5 / 8], rtol=1e-6)
    by_class = class_shares(np.array([[1.0, 2.0], [-1.0, -2.0 + 1e-9]]), np.array([0, 1]), np.array([0, 0]))
    assert np.abs(by_class).max() <= 100  # classes that cancel count too


def test_shares_of_scores_that_are_not_negative_are_plain_divisions():
    rng = np.random.default_rng(0)
    scores, labels, layers = rng.uniform(size=(8, 6)), np.arange(8) % 3, np.array([0, 0, 1, 1, 1, 2])
    scores[:, 4] = np.nan  # removed
    sums = {layer: np.nansum([scores[:, f] for f in np.flatnonzero(layers == layer) if f != 4]) for layer in range(3)}
    expected = [[scores[labels == c, f].sum() / sums[layers[f]] for f in range(6)] for c in range(3)]
    np.testing.assert_allclose(class_shares(scores, labels, layers), expected, rtol=1e-12)
