"""Criteria against closed forms and differences, on networks small enough to know."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import miniature_vgg
from networks import depthwise_network, draw_images, without_biases
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.tracing import trace
from lrp_core.importance.convex_masking import convex_masking
from lrp_core.importance.integrated_gradients import IntegratedGradients
from lrp_core.importance.registry import CRITERIA, criterion
from lrp_core.pruning.surgery import remove_filters
from lrp_core.relevance.lrp import filter_relevance


@pytest.fixture
def small():
    """A network with a ReLU behind its only convolution, in float64, with images and targets."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6)
    ).double()
    return model.requires_grad_(False), torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 1])


def score(name, model, images, targets, n_classes=3, seed=0):
    return criterion(name, n_classes, seed)(model, images, targets)


@pytest.mark.parametrize("name", CRITERIA)
def test_all_have_one_signature_and_leave_the_network_alone(name):
    model, images, targets = depthwise_network().double(), draw_images("depthwise").double(), torch.tensor([1, 3])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scores = score(name, model, images, targets, n_classes=4)
    convolutions = {layer.name: layer.module for layer in trace(model) if isinstance(layer.module, nn.Conv2d)}
    assert scores.filters.keys() == convolutions.keys()
    for layer, values in scores.filters.items():
        by_class = (2,) if name == "contribution" else ()
        assert values.shape == (2, *by_class, convolutions[layer].out_channels)
        assert values.isfinite().all()
    assert torch.allclose(scores.logits, model(images), rtol=1e-4, atol=1e-5)
    assert not scores.logits.requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lrp_is_filter_relevance():
    torch.manual_seed(0)
    model, images, targets = miniature_vgg(), torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    for name, absolute in (("lrp", False), ("lrp-abs", True)):
        expected = filter_relevance(model, images, targets, absolute=absolute)
        got = score(name, model, images, targets).filters
        assert all(torch.equal(got[layer], values) for layer, values in expected.items())


def test_weight_and_activation(small):
    model, images, _ = small
    expected = np.abs(model[0].weight.numpy()).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(score("weight", *small).filters["0"].numpy(), np.tile(expected, (4, 1)), rtol=1e-12)
    maps = np.maximum(model[0](images).numpy(), 0)  # behind the ReLU
    np.testing.assert_allclose(score("activation", *small).filters["0"].numpy(), maps.mean(axis=(2, 3)), rtol=1e-12)


def test_convex_masking_entry_by_entry():
    """Against the rule in loops; and where it ends up: a filter far from all others stands for itself, twins share."""
    filters = torch.randn(7, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    apart = [[sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for v in filters.tolist()] for u in filters.tolist()]
    width = sum(map(sum, apart)) / 49
    kernel = [[math.exp(-square / width) for square in row] for row in apart]
    masks, change = [[1 / 7] * 7 for _ in range(7)], 1
    while change >= 0.01:
        before, change = masks, 0
        masks = [
            [
                before[i][j] * math.sqrt(kernel[i][j] / sum(kernel[i][k] * before[k][j] for k in range(7)))
                for j in range(7)
            ]
            for i in range(7)
        ]
        change = sum(abs(masks[i][j] - before[i][j]) for i in range(7) for j in range(7)) / sum(map(sum, before))
    np.testing.assert_allclose(convex_masking(filters).numpy(), [masks[i][i] for i in range(7)], rtol=1e-9)

    twins = torch.tensor([[0.0, 0.0], [100.0, 0.0], [100.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    np.testing.assert_allclose(convex_masking(twins, tolerance=1e-9).numpy(), [1, 0.5, 0.5, 1], atol=1e-3)
    assert convex_masking(torch.ones(1, 3)).tolist() == [1.0]


def test_convex_masking_ends_where_a_tolerance_cannot_be_met():
    """With a tolerance of 0 only the cap on updates ends it; by then the coefficients have long settled."""
    filters = torch.randn(7, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    capped, settled = convex_masking(filters, tolerance=0.0), convex_masking(filters, tolerance=1e-5)
    np.testing.assert_allclose(capped.numpy(), settled.numpy(), atol=1e-2)


def test_kcm_is_activation_by_layer_times_what_masking_says(small):
    model, images, targets = small
    maps = np.maximum(model[0](images).numpy(), 0).mean(axis=(2, 3))
    expected = maps / maps.mean() * convex_masking(model[0].weight.flatten(1)).numpy()
    got = score("kcm", model, images, targets).filters["0"].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(score("kcm", model, images, 2 - targets).filters["0"].numpy(), got, rtol=0)  # no label


def test_gradient_is_the_difference_quotient(small):
    model, images, targets = small
    maps = model[1](model[0](images))

    def loss(a):
        return F.cross_entropy(model[2:](a)[:, :3], targets, reduction="none")

    # The pooled head sees each position alike: the gradient is one number a channel.
    step = 1e-6
    expected = np.empty((4, 5))
    for channel in range(5):
        moved = maps.clone()
        moved[:, channel, 0, 0] += step
        expected[:, channel] = ((loss(moved) - loss(maps)).abs() / step).numpy() * 16
    np.testing.assert_allclose(score("gradient", *small).filters["0"].numpy(), expected, rtol=1e-4)


def test_taylor_is_the_change_of_the_loss_to_first_order(small):
    _, images, targets = small
    # The head weighs each position by itself: gradients of both signs in one map.
    model = (
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 6)).double().requires_grad_(False)
    )
    model[0].weight.mul_(1e-3)  # so small that the first order is all
    model[0].bias.mul_(1e-3)
    expected = np.empty((4, 5))
    for channel in range(5):
        without = remove_filters(model, {"0": [channel]}, images[:1])
        losses = [F.cross_entropy(m(images)[:, :3], targets, reduction="none") for m in (model, without)]
        expected[:, channel] = (losses[1] - losses[0]).abs().numpy()
    np.testing.assert_allclose(
        score("taylor", model, images, targets).filters["0"].numpy(), expected, rtol=1e-2, atol=1e-9
    )


def test_singe_shares_out_the_change_of_the_loss():
    """The only filter of its layer gets all of the change; with several, the shares sum to it."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    ).double().requires_grad_(False)  # fmt: skip
    images, targets = torch.randn(6, 3, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0, 2])

    def loss(logits):
        return F.cross_entropy(logits[:, :3], targets, reduction="none")

    maps = model[1](model[0](images))
    expected = (loss(model(images)) - loss(model[2:](torch.zeros_like(maps)))).abs()
    exact = IntegratedGradients(n_classes=3, nodes=200)(model, images, targets)
    np.testing.assert_allclose(exact.filters["0"][:, 0].numpy(), expected.numpy(), rtol=1e-3)
    assert expected.min() > 0.01
    near = score("singe", model, images, targets).filters["0"][:, 0]
    np.testing.assert_allclose(near.numpy(), expected.numpy(), rtol=0.1)
    # Every other filter of the second layer is dead: one filter at a time gets the whole change.
    for alive in range(4):
        single = copy.deepcopy(model)
        dead = [i for i in range(4) if i != alive]
        single[2].weight[dead], single[2].bias[dead] = 0, -1
        change = loss(single(images)) - loss(model[6](torch.zeros(6, 4, dtype=torch.float64)))
        got = IntegratedGradients(3, 50)(single, images, targets).filters["2"]
        np.testing.assert_allclose(got[:, alive].numpy(), change.abs().numpy(), rtol=1e-6)
        assert (got[:, dead] == 0).all()


def test_random_repeats_with_its_seed(small):
    first, again, other = (score("random", *small, seed=seed).filters["0"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first == first[0]).all()  # the same for every image


def test_unknown_criterion_is_named():
    with pytest.raises(ValueError, match="unknown criterion 'hessian'; choose one of: activation, contribution, grad"):
        criterion("hessian", 4, 0)


def centred(logits):
    return logits - logits.mean(dim=1, keepdim=True)


def test_contributions_are_what_the_centred_logits_lose():
    """Behind the last convolution all is linear: a logit loses exactly what the filter gives."""
    model = depthwise_network().double()
    images, targets = draw_images("depthwise", 3).double(), torch.tensor([3, 1, 3])
    contributions = score("contribution", model, images, targets).filters["grouped"]
    for filter_ in range(4):  # those of a grouped convolution go by position, one of each group
        positions = [filter_ + 4 * group for group in range(4)]
        smaller = remove_filters(model, {"grouped": positions}, images[:1])
        lost = centred((model(images) - smaller(images))[:, [1, 3]])
        torch.testing.assert_close(contributions[..., positions].sum(dim=-1), lost, rtol=1e-6, atol=1e-9)


def test_what_all_logits_share_is_no_contribution(small):
    model, images, targets = small
    model[4].weight[:3, 1] = 0.7  # one filter gives as much to all three classes
    contributions = score("contribution", model, images, targets).filters["0"]
    assert contributions[..., 1].abs().max() < 1e-12 < contributions[..., [0, 2, 3, 4]].abs().amax(dim=(0, 1)).min()


def test_contributions_are_lrp_of_each_centred_logit(no_stabiliser):
    """Without biases the rule epsilon, without its epsilon, is activation times gradient, by unit of the logit."""
    torch.manual_seed(0)
    model, images = without_biases(miniature_vgg()), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    got = score("contribution", model, images, torch.tensor([0, 1, 2])).filters
    rules, logits = dict.fromkeys(("low", "mid", "high", "dense"), "epsilon"), model(images)[:, :3]
    by_class = [filter_relevance(model, images, torch.full((3,), k), composite=rules) for k in range(3)]
    for layer, values in got.items():
        plain = torch.stack([of[layer] * logits[:, [k]] for k, of in enumerate(by_class)], dim=1)
        torch.testing.assert_close(values, plain - plain.mean(dim=1, keepdim=True), rtol=1e-6, atol=1e-12)
