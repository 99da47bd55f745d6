import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from lrp_core.repair.ridge_head import (
    STRENGTHS,
    classifier,
    draw_folds,
    fit_heads,
    out_of_fold_logits,
    with_out_of_fold_heads,
    without_out_of_fold_heads,
)


def features(n_features: int = 6, n_classes: int = 3, spread: float = 1.0):
    """20 images a class, and what tells the classes apart with some error; not negative, float64."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(n_classes), 20)
    x = rng.gamma(2.0, spread, size=(len(labels), n_features))
    x += 1.5 * np.eye(n_classes, n_features)[labels] * rng.random((len(labels), 1))
    return torch.from_numpy(x), torch.from_numpy(labels), torch.from_numpy(rng.permutation(len(labels)) % 4)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n_features", [6, 200])
def test_head_minimises_the_penalised_squared_error(n_features, n_classes):
    """Where the gradient of the loss, by autograd, is 0: it is convex, and there is one such place."""
    x, labels, fold = features(n_features, n_classes)
    heads = fit_heads(x, labels, fold)

    def gradient(weight):
        weight = weight.double().requires_grad_()
        loss = (x @ weight.T - F.one_hot(labels) + 1 / n_classes).square().sum()
        loss = loss + heads.strength * x.square().sum(dim=1).mean() * weight.square().sum()
        return torch.autograd.grad(loss, weight)[0]

    assert heads.weight.shape == (n_classes, n_features)
    assert gradient(heads.weight).norm() < 1e-5 * gradient(torch.zeros_like(heads.weight)).norm()


@pytest.mark.parametrize(("n_features", "spread"), [(6, 1.0), (6, 0.1), (200, 1.0), (200, 0.1)])
def test_copies_are_ridge_regressions_and_the_images_they_have_not_seen_choose_the_strength(n_features, spread):
    x, labels, fold = features(n_features, spread=spread)
    heads, y = fit_heads(x, labels, fold), np.eye(3)[labels] - 1 / 3

    def ridge(strength, seen):
        alpha = strength * x.square().sum(dim=1).mean().item()
        return Ridge(alpha, fit_intercept=False, solver="svd").fit(x[seen].numpy(), y[seen]).coef_

    errors = []
    for strength in STRENGTHS:
        out_of_fold = [ridge(strength, fold != k) for k in range(4)]
        errors.append(sum(np.square(out_of_fold[k] @ x[i].numpy() - y[i]).sum() for i, k in enumerate(fold)))
    assert heads.strength == STRENGTHS[np.argmin(errors)]
    assert torch.equal(heads.out_of_fold.fold, fold)
    for k in range(4):
        np.testing.assert_allclose(heads.out_of_fold.weight[k], ridge(heads.strength, fold != k), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(heads.weight, ridge(heads.strength, fold >= 0), rtol=1e-4, atol=1e-6)


def test_each_image_is_judged_by_the_head_that_has_not_seen_it():
    x, labels, fold = features()
    out_of_fold = fit_heads(x, labels, fold).out_of_fold.weight
    judged = out_of_fold_logits(x.float() @ out_of_fold.flatten(0, 1).T, fold, 3)
    for i in range(60):
        torch.testing.assert_close(judged[i], out_of_fold[fold[i]] @ x[i].float())


@pytest.mark.parametrize("dead", [[4], [0, 2, 3, 4, 5], list(range(6))])
def test_features_that_are_dead_weigh_nothing(dead):
    x, labels, fold = features()
    x[:, dead] = 0
    alive = sorted(set(range(6)) - set(dead))
    heads = fit_heads(x, labels, fold)
    for weight in (heads.weight, *heads.out_of_fold.weight):
        assert (weight[:, dead].abs() < 1e-12).all()
    if alive:
        torch.testing.assert_close(heads.weight[:, alive], fit_heads(x[:, alive], labels, fold).weight)


def test_folds_are_balanced_and_keep_blocks_whole():
    labels, blocks = torch.arange(60) % 3, np.arange(60) // 6
    fold = draw_folds(labels, blocks, 5, 0)
    for block in range(10):
        assert len(fold[blocks == block].unique()) == 1
    for k in range(5):
        assert labels[fold == k].bincount().tolist() == [4, 4, 4]
    assert torch.equal(fold, draw_folds(labels, blocks, 5, 0))
    assert not torch.equal(fold, draw_folds(labels, blocks, 5, 1))


def test_folds_that_lose_a_class_are_refused():
    with pytest.raises(ValueError, match="a class has no image left; choose more folds"):
        draw_folds(features()[1], np.repeat(np.arange(3), 20), 2, 0)


@pytest.mark.parametrize("bias", [True, False])
def test_copies_stand_beside_the_head_and_can_be_taken_away(bias):
    backbone = nn.Conv2d(3, 6, 3)
    weight, out_of_fold = torch.randn(3, 6), torch.randn(2, 4, 6)  # a copy may know other classes
    images = torch.randn(4, 3, 8, 8)
    pooled = backbone(images).mean(dim=(2, 3))
    model = classifier(backbone, weight)
    assert torch.allclose(model(images), pooled @ weight.T, atol=1e-6)
    if bias:
        model.head.bias = nn.Parameter(torch.randn(3))
    own = model(images)
    wide = with_out_of_fold_heads(model, out_of_fold)
    expected = torch.cat([own, pooled @ out_of_fold[0].T, pooled @ out_of_fold[1].T], dim=1)
    assert torch.allclose(wide(images), expected, atol=1e-6)
    narrow = without_out_of_fold_heads(wide, 3)
    assert narrow.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in narrow.state_dict().items())
    assert torch.equal(narrow(images), own)
    assert (narrow.head.in_features, narrow.head.out_features) == (6, 3)
    assert wide(images).shape == (4, 11)  # as they were
    assert torch.equal(model(images), own)
    assert wide.backbone.weight is narrow.backbone.weight is model.backbone.weight
