import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.truncation import classifier
from lrp_core.repair.out_of_fold import (
    draw_folds,
    out_of_fold_logits,
    with_out_of_fold_heads,
    without_out_of_fold_heads,
)
from lrp_core.repair.ridge_head import STRENGTHS, fit_heads


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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sites", [(), (torch.clone,)], ids=["pooled", "sums"])
@pytest.mark.parametrize(("n_features", "spread"), [(6, 1.0), (6, 0.1), (200, 1.0), (200, 0.1)])
def test_heads_are_ridge_regressions_and_the_images_they_have_not_seen_choose_the_strength(
    n_features, spread, sites, bias
):
    x, labels, fold = features(n_features, spread=spread)
    heads, y = fit_heads(x, labels, fold, *sites, bias=bias), np.eye(3)[labels] - 1 / 3
    centred = x - x.mean(dim=0) if bias else x

    def ridge(strength, seen):
        alpha = strength * centred.square().sum(dim=1).mean().item()
        return Ridge(alpha, fit_intercept=bias, solver="svd").fit(x[seen].numpy(), y[seen])

    errors = []
    for strength in STRENGTHS:
        out_of_fold = [ridge(strength, fold != k) for k in range(4)]
        errors.append(sum(np.square(out_of_fold[k].predict(x[i : i + 1]) - y[i]).sum() for i, k in enumerate(fold)))
    assert heads.strength == STRENGTHS[np.argmin(errors)]
    assert torch.equal(heads.out_of_fold.fold, fold)
    own = (heads.weight, heads.bias)
    others = zip(heads.out_of_fold.weight, heads.out_of_fold.bias if bias else [None] * 4, strict=True)
    for k, (weight, constant) in enumerate([*others, own]):
        want = ridge(heads.strength, fold != k)
        np.testing.assert_allclose(weight, want.coef_, rtol=1e-4, atol=1e-6)
        if bias:
            np.testing.assert_allclose(constant, want.intercept_, rtol=1e-4, atol=1e-6)
        else:
            assert constant is None


@pytest.mark.parametrize("sites", [(), (torch.clone,)], ids=["pooled", "sums"])
def test_a_constant_added_to_the_features_changes_no_head_with_a_bias(sites):
    x, labels, fold = features()
    heads, others = (fit_heads(shifted, labels, fold, *sites, bias=True) for shifted in (x, x + 1000))
    torch.testing.assert_close(others.weight, heads.weight)
    torch.testing.assert_close(others.out_of_fold.weight, heads.out_of_fold.weight)
    moved = heads.bias - 1000 * heads.weight.sum(dim=1)
    torch.testing.assert_close(others.bias, moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_each_image_is_judged_by_the_head_that_has_not_seen_it(bias):
    x, labels, fold = features()
    heads = fit_heads(x, labels, fold, bias=bias).out_of_fold
    judged = heads.judge(x.float())
    for i in range(60):
        want = heads.weight[fold[i]] @ x[i].float() + (heads.bias[fold[i]] if bias else 0)
        torch.testing.assert_close(judged[i], want)
    if not bias:
        torch.testing.assert_close(out_of_fold_logits(x.float() @ heads.weight.flatten(0, 1).T, fold, 3), judged)


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
    with pytest.raises(ValueError, match=r"class 0 has no image left: it has images of 1 groups \(or blocks\)"):
        draw_folds(features()[1], np.repeat(np.arange(3), 20), 2, 0)


@pytest.mark.parametrize("seed", range(5))
def test_one_large_block_takes_no_class_from_all_folds_but_one(seed):
    """Of each class most images are of block 0, and one each of two others."""
    labels, blocks = torch.arange(24) % 3, np.array([0] * 18 + [1, 2, 3, 4, 5, 6])
    for n_folds in (2, 3):
        fold = draw_folds(labels, blocks, n_folds, seed)
        assert sorted(fold.unique().tolist()) == list(range(n_folds))
        for label in range(3):
            assert len(fold[labels == label].unique()) > 1
        for block in range(7):
            assert len(fold[blocks == block].unique()) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_out_of_fold_heads_stand_beside_the_head_and_can_be_taken_away(bias):
    backbone = nn.Conv2d(3, 6, 3)
    weight, out_of_fold = torch.randn(3, 6), torch.randn(2, 4, 6)  # they may know other classes
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
    if bias:
        biases = torch.randn(2, 4)
        with_biases = with_out_of_fold_heads(model, out_of_fold, biases)
        torch.testing.assert_close(with_biases(images), wide(images) + torch.cat([torch.zeros(3), biases.flatten()]))
