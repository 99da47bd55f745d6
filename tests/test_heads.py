import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrp_core.heads import classifier, crossfitted_logits, fit_heads, train_head, with_copies


@pytest.fixture
def features():
    """Three classes of 20 images, 6 non-negative features that tell them apart with some error."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    x = rng.gamma(2.0, size=(60, 6)) + 1.5 * np.eye(3, 6)[labels] * rng.random((60, 1))
    return torch.from_numpy(x), torch.from_numpy(labels), np.arange(60) // 2


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n_features", [6, 200])
def test_head_minimises_the_penalised_cross_entropy(features, n_classes, n_features):
    """Where the gradient of the loss, by autograd, is 0: it is convex, and there is one such place."""
    x, y = features[0][: 20 * n_classes], features[1][: 20 * n_classes]
    if n_features > x.shape[1]:  # more than images
        x = torch.cat([x, torch.rand(len(x), n_features - x.shape[1], generator=torch.Generator().manual_seed(0))], 1)
    scale = x.std(dim=0, correction=0)
    weight = (torch.from_numpy(train_head(x.numpy(), y.numpy(), 0.1)) * scale).requires_grad_()
    loss = F.cross_entropy(x / scale @ weight.T, y, reduction="sum") + weight.square().sum() / (2 * 0.1)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert weight.shape == (n_classes, n_features)
    assert weight.abs().max() > 0.01
    assert gradient.abs().max() < 1e-6


def test_each_fold_is_judged_by_the_head_that_has_not_seen_it(features):
    x, y, blocks = features
    heads = fit_heads(x, y, blocks, n_folds=4, seed=0)
    copies, fold = heads.copies.weight, heads.copies.fold
    assert heads.weight.shape == (3, 6)
    assert copies.shape == (4, 3, 6)
    for k in range(4):
        unseen = (fold == k).numpy()
        assert not set(blocks[unseen]) & set(blocks[~unseen])  # twins of one block stay together
        expected = train_head(x.numpy()[~unseen], y.numpy()[~unseen], heads.regularisation)
        np.testing.assert_allclose(copies[k].numpy(), expected, rtol=1e-5, atol=1e-7)
    logits = x.float() @ copies.flatten(0, 1).T
    predicted = crossfitted_logits(logits, fold, 3).argmax(dim=1)
    for i in range(60):
        assert predicted[i] == (copies[fold[i]] @ x[i].float()).argmax()


@pytest.mark.parametrize("bias", [True, False])
def test_copies_stand_beside_the_head(bias):
    trunk = nn.Conv2d(3, 6, 3)
    weight, copies = torch.randn(3, 6), torch.randn(2, 4, 6)  # a copy may know other classes
    images = torch.randn(4, 3, 8, 8)
    pooled = trunk(images).mean(dim=(2, 3))
    model = classifier(trunk, weight)
    assert torch.allclose(model(images), pooled @ weight.T, atol=1e-6)
    if bias:
        model.head.bias = nn.Parameter(torch.randn(3))
    own = model(images)
    wide = with_copies(model, copies)
    expected = torch.cat([own, pooled @ copies[0].T, pooled @ copies[1].T], dim=1)
    assert torch.allclose(wide(images), expected, atol=1e-6)
    assert torch.equal(model(images), own)  # as it was
    assert wide.backbone.weight is model.backbone.weight


def test_folds_that_lose_a_class_are_refused(features):
    x, y, _ = features
    with pytest.raises(ValueError, match="a class has no image left; choose more folds"):
        fit_heads(x, y, np.repeat(np.arange(3), 20), n_folds=2, seed=0)
