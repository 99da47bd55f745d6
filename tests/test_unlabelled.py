"""What unlabelled images tell, by hand, and of outputs whose confidence is what it says."""

import numpy as np
import pytest
import torch

from lrp_core.control.unlabelled import UNLABELLED, Agreement, ThresholdedConfidence

# Calibration images that the unpruned network takes for class 0 (first three) and 1; of each group, two are right.
JUDGED = torch.tensor([[0.9, 0.1], [0.5, 0.1], [0.3, 0.1], [0.2, 0.8], [0.2, 0.6]])
LABELS = torch.tensor([0, 0, 1, 1, 1])
OUTPUTS = torch.tensor([[0.6, 0.0], [0.5, 0.0], [0.4, 0.0], [0.0, 0.9], [0.0, 0.6], [0.0, 0.5]])


def test_thresholded_confidence_by_hand():
    """Thresholds 0.5 and 0.6: two unlabelled images of each class are above; class accuracies begin at 1 and 2/3."""
    watch = ThresholdedConfidence(JUDGED, LABELS, OUTPUTS)
    np.testing.assert_allclose(watch(OUTPUTS), [1, 2 / 3])
    weaker = OUTPUTS.clone()
    weaker[1, 0], weaker[3] = (
        0.45,
        torch.tensor([0.55, 0.1]),
    )  # class 0: one falls below, another joins; class 1: one left
    np.testing.assert_allclose(watch(weaker), [1, 1 / 3])
    np.testing.assert_allclose(watch(OUTPUTS / 10), [0, 0])
    np.testing.assert_allclose(watch(torch.tensor([[0.0, 0.9]]).expand(6, 2)), [0, 1])  # 6/2 times 2/3: at most 1


def test_agreement_by_hand():
    watch = Agreement(JUDGED, LABELS, OUTPUTS)
    np.testing.assert_allclose(watch(OUTPUTS), [1, 2 / 3])
    np.testing.assert_allclose(watch(OUTPUTS / 10), [1, 2 / 3])  # whatever the scale
    np.testing.assert_allclose(watch(torch.tensor([[0.0, 0.9]]).expand(6, 2)), [0, 2 / 3])


def test_a_class_that_nothing_is_taken_for_is_never_right():
    judged = torch.tensor([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1]])
    for watch in UNLABELLED.values():
        np.testing.assert_array_equal(watch(judged, torch.tensor([0, 1, 1]), OUTPUTS)(OUTPUTS)[1], 0)


def test_drawn_anew_they_say_the_accuracy_and_less_when_outputs_are_less_sure():
    """Labels are drawn by the outputs' own probabilities."""
    generator = torch.Generator().manual_seed(0)

    def draw(sharpness):
        probabilities = (sharpness * torch.randn(20_000, 3, generator=generator)).softmax(dim=1)
        return probabilities, probabilities.multinomial(1, generator=generator)[:, 0]

    (judged, labels), (before, _), (again, true), (less_sure, _) = draw(2), draw(2), draw(2), draw(1)
    accuracy = (again.argmax(dim=1) == true).double().mean().item()
    watch = ThresholdedConfidence(judged, labels, before)
    assert watch(again).mean() == pytest.approx(accuracy, abs=0.02)
    assert watch(less_sure).mean() < accuracy - 0.1
