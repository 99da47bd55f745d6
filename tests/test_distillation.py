"""Distillation: a pruned network learns from the unpruned one, and nothing else changes."""

import copy

import numpy as np
import pytest
import torch
from networks import settle
from tasks import CifarResNet
from torch import nn

from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair import distillation
from lrp_core.repair.distillation import distil


@pytest.fixture
def pair():
    """A network, a smaller one, and images; float32."""
    model = settle(CifarResNet(1))
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pruned = PrunedNetwork(model, images)
    return model, pruned.without(np.random.default_rng(0).choice(pruned.n_filters, 30, replace=False)), images


def off(model, teacher, images):
    return (model(images) - teacher(images)).square().mean().item()


def test_the_logits_come_nearer_to_those_of_the_unpruned_network(pair, monkeypatch):
    """Of images that it learns from, and of others; with steps of ten times the size, for the test to be short."""
    monkeypatch.setattr(distillation, "RATE", 1e-3)
    teacher, model, images = pair
    others = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    before = [off(model, teacher, some) for some in (images, others)]
    distil(model, teacher, images, 0)
    after = [off(model, teacher, some) for some in (images, others)]
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.7 * before[1]


def test_it_trains_whatever_the_callers_mode(pair):
    teacher, model, images = pair
    other = copy.deepcopy(model)
    distil(model, teacher, images, 0)
    with torch.no_grad():
        distil(other, teacher, images, 0)
    assert torch.equal(other(images), model(images))


def test_statistics_stay_and_parameters_are_frozen_again(pair):
    teacher, model, images = pair
    before, of_teacher = copy.deepcopy(model.state_dict()), copy.deepcopy(teacher.state_dict())
    pixels = images.clone()
    distil(model, teacher, images, 0)
    after = model.state_dict()
    statistics = [name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(statistics) == 3 * 7
    assert all(torch.equal(after[name], before[name]) for name in statistics)
    assert not any(torch.equal(after[name], before[name]) for name in before if name not in statistics)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, of_teacher[name]) for name, tensor in teacher.state_dict().items())
    assert torch.equal(images, pixels)


def test_a_seed_gives_the_same_network_again_and_another_seed_another(pair, monkeypatch):
    monkeypatch.setattr(distillation, "STEPS", 4)
    teacher, model, images = pair
    torch.manual_seed(0)
    twins = [copy.deepcopy(model) for _ in range(3)]
    for twin, seed in zip(twins, (0, 0, 1), strict=True):
        distil(twin, teacher, images, seed)
        torch.rand(3)  # the global generator is of no account
    first, second, other = (twin(images) for twin in twins)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_each_step_is_adams_on_the_squared_distance_of_the_logits(pair, monkeypatch):
    """One step of Adam, its first, moves each parameter by the rate, against the sign of its gradient."""
    monkeypatch.setattr(distillation, "STEPS", 1)
    monkeypatch.setattr(distillation, "_varied", lambda batch, generator: batch)
    teacher, model, images = pair
    expected = copy.deepcopy(model).requires_grad_(True)
    (expected(images) - teacher(images)).square().sum().backward()
    distil(model, teacher, images, 0)
    for (name, new), old in zip(model.named_parameters(), expected.parameters(), strict=True):
        clear = old.grad.abs() > 1e-3 * old.grad.abs().max()
        moved = (new - old.detach())[clear]
        torch.testing.assert_close(moved, -1e-4 * old.grad[clear].sign(), rtol=0, atol=2e-6, msg=name)


def test_batches_are_shifted_by_at_most_an_eighth_of_a_side_and_mirrored_or_not():
    """Of an image with one bright pixel: where it goes to."""
    images, generator = torch.zeros(400, 3, 16, 16), torch.Generator().manual_seed(0)
    images[:, :, 9, 4] = 1
    seen = set()
    for _ in range(40):
        varied = distillation._varied(images[:10], generator)
        assert varied.shape == (10, 3, 16, 16)
        for image in varied:
            ((row, column),) = image[0].nonzero().tolist()
            seen.add((row - 9, column - 4 if column < 8 else 15 - column - 4))
            assert torch.equal(image[0], image[1])
    assert max(abs(shift) for pair_ in seen for shift in pair_) == 2
    assert len(seen) > 15


def test_of_many_images_a_step_reads_a_batch():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes, self.head = [], nn.Linear(12, 2)

        def forward(self, x):
            self.sizes.append(len(x))
            return self.head(x.flatten(1))

    model, teacher = Counting(), Counting()
    distil(model, teacher, torch.randn(100, 3, 2, 2), 0)
    assert model.sizes == teacher.sizes == [64] * 30
