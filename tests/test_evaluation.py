import pytest
import torch
from torch import nn

from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean
from lrp_core.metrics.cost import multiply_adds
from lrp_core.metrics.curve import pruning_auc


def test_class_accuracies_by_hand():
    predictions = torch.tensor([0, 0, 1, 1, 2, 0])
    targets = torch.tensor([0, 0, 0, 1, 2, 2])
    assert class_accuracies(predictions, targets, 3).tolist() == [2 / 3, 1.0, 0.5]


@pytest.mark.parametrize("targets", [[0, 0, 2], [0, 1, 3]])
def test_class_accuracies_refuses_missing_or_unknown_classes(targets):
    with pytest.raises(ValueError, match=r"every class 0\.\.2 needs a sample"):
        class_accuracies(torch.tensor([0, 0, 0]), torch.tensor(targets), 3)


def test_harmonic_mean_by_hand():
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3, abs=1e-15)
    assert harmonic_mean(torch.tensor([0.6, 0.3, 0.2])) == pytest.approx(0.3, abs=1e-7)
    assert harmonic_mean([1.0, 1.0, 0.0]) == 0.0


@pytest.mark.parametrize("values", [[], [0.5, -0.1]])
def test_harmonic_mean_refuses(values):
    with pytest.raises(ValueError, match="non-negative values"):
        harmonic_mean(values)


def test_auc_by_hand():
    assert pruning_auc([0, 0.5, 0.95], [0.8, 0.8, 0.8]) == pytest.approx(0.8)
    # two trapezoids: 0.5 * (1 + 0.6) / 2 and 0.45 * (0.6 + 0.2) / 2
    assert pruning_auc([0, 0.5, 0.95], [1.0, 0.6, 0.2]) == pytest.approx((0.4 + 0.18) / 0.95)
    # a line from 1 at rate 0 to 0 at rate 1, up to 0.95: the mean of 1 and 0.05
    assert pruning_auc([0, 1.0], [1.0, 0.0]) == pytest.approx(0.525)


@pytest.mark.parametrize("rates", [[0.05, 0.95], [0, 0.9], [0, 0.5, 0.5, 0.95], [0, 0.95, 1.2]])
def test_auc_refuses_impossible_rates(rates):
    with pytest.raises(ValueError, match=r"rates must increase from 0 to 0\.95"):
        pruning_auc(rates, [0.5] * len(rates))


def test_multiply_adds_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2))
    assert multiply_adds(model, torch.zeros(1, 3, 8, 8)) == 3 * 4 * 9 * 64 + 4 * 64 * 2
