"""The factor on a refitted head's outputs, against a library's minimisation."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch.nn import functional as F

from lrp_core.repair.temperature import BOUNDS, fit_scale


def drawn(n: int, n_classes: int, sharpness: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (n, n_classes), and labels drawn by the softmax of ``sharpness`` times them."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, n_classes, generator=generator) / n_classes
    return outputs, (sharpness * outputs).softmax(dim=1).multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize(("n", "n_classes", "sharpness"), [(40, 2, 10.0), (150, 4, 10.0), (500, 10, 100.0)])
def test_it_minimises_the_negative_log_likelihood(n, n_classes, sharpness):
    outputs, labels = drawn(n, n_classes, sharpness)
    wanted = (n * np.eye(n_classes)[labels] + 1) / (n + n_classes)

    def loss(logarithm):
        return -(wanted * log_softmax(np.exp(logarithm) * outputs.double().numpy(), axis=1)).sum()

    best = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-9})
    assert fit_scale(outputs, labels) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_it_finds_the_scale_that_labels_were_drawn_with():
    assert fit_scale(*drawn(50_000, 4, 20.0)) == pytest.approx(20, rel=0.05)


def test_unseen_images_are_more_likely_with_it():
    scale, (outputs, labels) = fit_scale(*drawn(100, 4, 20.0)), drawn(5000, 4, 20.0, seed=1)
    assert F.cross_entropy(scale * outputs, labels) < F.cross_entropy(outputs, labels) - 0.1


def test_images_that_are_all_right_make_it_no_surer_than_their_number_allows():
    labels = torch.arange(40) % 4
    probability = (fit_scale(F.one_hot(labels).float() - 1 / 4, labels) * F.one_hot(labels).double()).softmax(dim=1)
    assert probability.max().item() == pytest.approx(41 / 44)


def test_outputs_that_tell_nothing_keep_their_order():
    outputs, labels = torch.eye(3)[torch.arange(30) % 3], (torch.arange(30) + 1) % 3  # always wrong
    assert fit_scale(outputs, labels) == pytest.approx(BOUNDS[0])


def test_parts_give_what_the_whole_gives():
    """Two sites with the same images: sums are twice those of one, and say what the images say twice."""
    outputs, labels = drawn(60, 3, 10.0)
    whole = fit_scale(outputs.repeat(2, 1), labels.repeat(2))
    assert fit_scale(outputs, labels, lambda part: 2 * part) == pytest.approx(whole)
