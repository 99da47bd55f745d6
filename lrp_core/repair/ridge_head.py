"""The linear head on pooled features, and its cross-fitted copies that judge calibration images they have not seen.

The head is fitted by regularised least squares to the classes (Rifkin and Lippert, Notes on Regularized Least Squares,
2007): a closed form that one eigendecomposition gives for all strengths of the ridge at once, so that a head can be
fitted anew after every step of pruning, and in every try. Its outputs, plus one over the number of classes, estimate
the probabilities of the classes.

It has no bias: features are not centred, so it needs none, and relevance starts from a logit that is the sum of its
contributions (``02_head_training.ipynb`` measures what a bias would do).
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lrp_core.graph.sharing import shallow_copy
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import predict
from lrp_core.utils.devices import device_of
from lrp_core.utils.sites import AllReduce, single_site

STRENGTHS = tuple(
    10 ** (half / 2) for half in range(-6, 3)
)  # of the ridge: 0.001 to 10; the cross-fitted error chooses


@dataclass(frozen=True)
class OutOfFoldHeads:
    """Copies of a head that have each missed one fold of the calibration images.

    Attributes:
        weight: (k, n_classes, C); copy fold[i] has not seen image i.
        fold: by calibration image, the fold that holds it, (N,), in 0..k-1.
    """

    weight: torch.Tensor
    fold: torch.Tensor


@dataclass(frozen=True)
class Heads:
    """A head trained on all calibration images, and its cross-fitted copies.

    Attributes:
        weight: (n_classes, C).
        out_of_fold: of it.
        strength: of the ridge, chosen for all of them; relative to the mean squared norm of an image's features.
    """

    weight: torch.Tensor
    out_of_fold: OutOfFoldHeads
    strength: float


def pooled_features(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the backbone's feature maps averaged over positions, (N, C).

    Raises:
        ValueError: the backbone makes something else than feature maps.
    """
    maps = predict(backbone, images[:1])
    if maps.dim() != 4:
        raise ValueError(f"a backbone gives feature maps (N, C, H, W), this one gave {tuple(maps.shape)} for one image")
    return predict(nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)


def draw_folds(labels: torch.Tensor, blocks: np.ndarray, n_folds: int, seed: int) -> torch.Tensor:
    """Return the fold of each image, (N,), in 0..n_folds-1, with the classes balanced over the folds.

    Args:
        labels: (N,), in 0..n_classes-1, each class present.
        blocks: of the images, (N,); those of a block share a fold.
        n_folds: k; two or more.
        seed: draws the folds.

    Raises:
        ValueError: fewer blocks than folds, or a class that is in one fold only.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # here, for it imports pandas where that is installed

    if (n_blocks := len(np.unique(blocks))) < n_folds:
        raise ValueError(
            f"the {len(blocks)} calibration images are from {n_blocks} blocks, too few for {n_folds} folds: choose a "
            "smaller block (1 if your images are independent of each other), or fewer folds"
        )
    y = labels.numpy()
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(y), dtype=np.int64)
    for k, (_, held_out) in enumerate(folds.split(y, y, blocks)):
        fold[held_out] = k
    for k in range(n_folds):
        if len(np.unique(y[fold != k])) <= y.max():
            raise ValueError(f"without fold {k} of {n_folds} a class has no image left; choose more folds")
    return torch.from_numpy(fold)


def fit_heads(
    features: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, all_reduce: AllReduce = single_site
) -> Heads:
    """Fit a head to all images, and a copy without each fold, with the strength that is best for folds not seen.

    With features x, and y one-hot classes less their mean 1/K, the weights minimise
    sum |W x - y|^2 + strength * mean |x|^2 * |W|^2.

    Args:
        features: what the head reads, (N, C).
        labels: (N,), in 0..n_classes-1, each class present.
        fold: of the images, (N,), as :func:`draw_folds` gives it.
        all_reduce: sums over images, over all places, each of which has images of every class and of every fold. With several,
            heads come from second moments of the features, (k, C, C): the same to the last digits.
    """
    if all_reduce is not single_site:
        return _fit_together(features, labels, fold, all_reduce)
    x = features.double().cpu()
    # The weights lie in the span of the images: there are no more coordinates to fit than images.
    basis, coordinates = torch.linalg.qr(x.T)
    z, y = coordinates.T, nn.functional.one_hot(labels).double()
    y -= 1 / y.shape[1]
    ridges = torch.tensor(STRENGTHS, dtype=torch.float64) * (z.square().sum(dim=1).mean() + 1e-300)

    def weights(chosen: torch.Tensor) -> torch.Tensor:
        """Return the weights on the coordinates by strength, (strengths, coordinates, n_classes)."""
        values, vectors = torch.linalg.eigh(z[chosen].T @ z[chosen])
        projected = vectors.T @ (z[chosen].T @ y[chosen])
        return vectors @ (projected / (values.clamp(min=0) + ridges[:, None])[:, :, None])

    out_of_fold = torch.stack([weights(fold != k) for k in range(int(fold.max()) + 1)])
    errors = sum(
        (z[fold == k] @ out_of_fold[k] - y[fold == k]).square().sum(dim=(1, 2)) for k in range(len(out_of_fold))
    )
    best = int(errors.argmin())
    chosen = torch.cat([weights(fold >= 0)[None], out_of_fold])[:, best]
    weight = (chosen.transpose(1, 2) @ basis.T).float()
    return Heads(weight[0], OutOfFoldHeads(weight[1:], fold), STRENGTHS[best])


def _fit_together(features: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, all_reduce: AllReduce) -> Heads:
    """Fit heads as :func:`fit_heads` does, to sums over images alone."""
    x, y = features.double().cpu(), nn.functional.one_hot(labels).double()
    y -= 1 / y.shape[1]
    folds = [fold == k for k in range(int(fold.max()) + 1)]
    moments = all_reduce(torch.stack([x[held].T @ x[held] for held in folds]))  # (k, C, C)
    answers = all_reduce(torch.stack([x[held].T @ y[held] for held in folds]))  # (k, C, n_classes)
    n_images = all_reduce(torch.tensor([float(len(x))])).item()
    mean_norm = moments.diagonal(dim1=1, dim2=2).sum().item() / n_images + 1e-300

    def weights(strength: float, without: int | None) -> torch.Tensor:
        gram, right = moments.sum(dim=0), answers.sum(dim=0)
        if without is not None:
            gram, right = gram - moments[without], right - answers[without]
        gram.diagonal().add_(strength * mean_norm)
        return torch.cholesky_solve(right, torch.linalg.cholesky(gram))  # (C, n_classes)

    def error(strength: float) -> float:  # of the copies on the folds that they have not seen, but for a constant
        out_of_fold = [weights(strength, k) for k in range(len(folds))]
        return sum(
            ((gram @ w - 2 * right) * w).sum().item()
            for w, gram, right in zip(out_of_fold, moments, answers, strict=True)
        )

    best = min(STRENGTHS, key=error)
    weight = torch.stack([weights(best, k).T for k in (None, *range(len(folds)))]).float()
    return Heads(weight[0], OutOfFoldHeads(weight[1:], fold), best)


def classifier(backbone: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Put a linear head on a backbone: average over positions, then a dense layer without bias.

    Args:
        backbone: images to feature maps (N, C, H, W).
        weight: (n_classes, C).
    """
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = nn.Parameter(weight.clone(), requires_grad=False)
    parts = {"backbone": backbone, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": head}
    return nn.Sequential(OrderedDict(parts)).to(device_of(backbone)).eval()


def with_out_of_fold_heads(model: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Return a classifier that gives the logits of the copies of its last layer beside its own.

    One forward pass is enough for all of them.

    Args:
        model: ends with a dense layer; untouched, its other tensors are shared.
        weight: of the copies, (k, n_classes, C).

    Returns:
        Images to logits (N, n_outputs + k * n_classes), the model's own first.
    """
    name = trace(model)[-1].name
    last, wide = model.get_submodule(name), shallow_copy(model)
    out_of_fold = weight.flatten(0, 1).to(last.weight)
    head = nn.Linear(last.in_features, last.out_features + len(out_of_fold), last.bias is not None, device="meta")
    head.weight = nn.Parameter(torch.cat([last.weight.detach(), out_of_fold]), requires_grad=False)
    if last.bias is not None:
        head.bias = nn.Parameter(
            torch.cat([last.bias.detach(), out_of_fold.new_zeros(len(out_of_fold))]), requires_grad=False
        )
    wide.set_submodule(name, head.eval())
    return wide


def without_out_of_fold_heads(model: nn.Module, n_outputs: int) -> nn.Module:
    """Return the classifier that :func:`with_out_of_fold_heads` was given, of ``n_outputs`` logits; tensors are shared."""
    name, narrow = trace(model)[-1].name, shallow_copy(model)
    wide = model.get_submodule(name)
    head = nn.Linear(wide.in_features, n_outputs, wide.bias is not None, device="meta")
    head.weight = nn.Parameter(wide.weight.detach()[:n_outputs], requires_grad=False)
    if wide.bias is not None:
        head.bias = nn.Parameter(wide.bias.detach()[:n_outputs], requires_grad=False)
    narrow.set_submodule(name, head.eval())
    return narrow


def out_of_fold_logits(logits: torch.Tensor, fold: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return each image's logits by the copy of the head that has not seen it, (N, n_classes).

    Args:
        logits: of the k copies, side by side, (N, k * n_classes).
        fold: (N,), in 0..k-1.
        n_classes: logits of one copy.
    """
    return logits.unflatten(1, (-1, n_classes))[torch.arange(len(fold)), fold]


def squared_error(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the squared error of a head's outputs, which is what it was fitted by, averaged over images, then classes.

    Of outputs on images that the head has not seen (:func:`out_of_fold_logits`) it tells how good the features are. On
    a few images it can tell two networks apart where accuracy, which counts whole images, cannot.

    Args:
        outputs: (N, n_classes).
        labels: (N,), in 0..n_classes-1, each class present.
    """
    missed = outputs.double() + 1 / outputs.shape[1]
    missed[torch.arange(len(labels)), labels] -= 1
    by_class = torch.zeros(outputs.shape[1], dtype=torch.float64).index_add(0, labels, missed.square().sum(dim=1))
    return (by_class / labels.bincount()).mean().item()
