import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrp_core.heads import classifier, crossfitted_logits, fit_heads, train_head


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
    assert heads.weight.shape == (5, 3, 6)
    for k in range(4):
        unseen = (heads.fold == k).numpy()
        assert not set(blocks[unseen]) & set(blocks[~unseen])  # twins of one block stay together
        expected = train_head(x.numpy()[~unseen], y.numpy()[~unseen], heads.regularisation)
        np.testing.assert_allclose(heads.weight[k + 1].numpy(), expected, rtol=1e-5, atol=1e-7)
    logits = x.float() @ heads.weight.flatten(0, 1).T
    predicted = crossfitted_logits(logits, heads.fold, 3).argmax(dim=1)
    for i in range(60):
        assert predicted[i] == (heads.weight[1 + heads.fold[i]] @ x[i].float()).argmax()


def test_classifier_puts_the_heads_side_by_side():
    trunk = nn.Conv2d(3, 6, 3)
    weight = torch.randn(2, 3, 6)
    images = torch.randn(4, 3, 8, 8)
    pooled = trunk(images).mean(dim=(2, 3))
    expected = torch.cat([pooled @ weight[0].T, pooled @ weight[1].T], dim=1)
    assert torch.allclose(classifier(trunk, weight)(images), expected, atol=1e-6)


def test_folds_that_lose_a_class_are_refused(features):
    x, y, _ = features
    with pytest.raises(ValueError, match="a class has no image left; choose more folds"):
        fit_heads(x, y, np.repeat(np.arange(3), 20), n_folds=2, seed=0)
