"""The linear head, fitted in closed form: regularised least squares to the classes.

One eigendecomposition solves the ridge regression (Rifkin and Lippert, Notes on Regularized Least Squares, 2007) for
all strengths at once. So a head can be refitted after every step of pruning, and in every evaluation. Its outputs, plus
one over the number of classes, estimate the probabilities of the classes.

The study's own heads have no bias. Features are not centred, so heads need none, and the logit from which relevance
starts is the sum of its contributions (``02_head_training.ipynb`` measures the effect of a bias). If a user's head has
a bias, the refitted one has a bias too (:mod:`lrp_core.repair.refit`).
"""

from dataclasses import dataclass

import torch
from torch import nn

from lrp_core.metrics.accuracy import predict
from lrp_core.repair.out_of_fold import OutOfFoldHeads
from lrp_core.utils.sites import AllReduce, single_site

STRENGTHS = tuple(10 ** (half / 2) for half in range(-6, 3))  # 0.001 to 10; chosen by the cross-fitted error


@dataclass(frozen=True)
class Heads:
    """A head fitted to all calibration images, and the out-of-fold heads.

    Attributes:
        weight: (n_classes, C).
        out_of_fold: heads that are each fitted without one fold.
        strength: of the ridge, the same for all heads; relative to the mean squared norm of an image's features (with a
            bias: of the centred features).
        bias: (n_classes,); None for a head without one.
    """

    weight: torch.Tensor
    out_of_fold: OutOfFoldHeads
    strength: float
    bias: torch.Tensor | None = None


def pooled_features(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the backbone's feature maps averaged over positions, (N, C).

    Raises:
        ValueError: the backbone does not return feature maps.
    """
    maps = predict(backbone, images[:1])
    if maps.dim() != 4:
        raise ValueError(f"a backbone gives feature maps (N, C, H, W), this one gave {tuple(maps.shape)} for one image")
    return predict(nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)


def read_by(model: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    """Return the inputs of a layer for all images, (N, ...), on the host."""
    read = []
    with model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].cpu())):
        predict(model, images)
    return torch.cat(read)


def fit_heads(
    features: torch.Tensor,
    labels: torch.Tensor,
    fold: torch.Tensor,
    all_reduce: AllReduce = single_site,
    bias: bool = False,
) -> Heads:
    """Fit a head to all images, and one without each fold, with the strength that is best on held-out folds.

    With features x, and y one-hot classes minus their mean 1/K, weights and bias minimise
    sum |W x + b - y|^2 + strength * mean |x|^2 * |W|^2. Heads without a bias have b = 0. With a bias, x is centred in
    the penalty and the bias is not penalised, so that a constant added to the features changes no output.

    Args:
        features: inputs of the head, (N, C).
        labels: (N,), in 0..n_classes-1, each class present.
        fold: of the images, (N,), as returned by :func:`lrp_core.repair.out_of_fold.draw_folds`.
        all_reduce: sums over images, over all sites, each of which has images of every class and of every fold. With
            several sites, heads are computed from second moments of the features, (k, C, C): the same up to the last
            digits.
        bias: whether the heads have a bias.
    """
    if all_reduce is not single_site:
        return _fit_together(features, labels, fold, all_reduce, bias)
    x = features.double().cpu()
    centre = x.mean(dim=0) if bias else torch.zeros_like(x[0])
    # The weights lie in the span of the images, so there are at most as many coordinates to fit as images.
    basis, coordinates = torch.linalg.qr((x - centre).T)
    z, y = coordinates.T, nn.functional.one_hot(labels).double()
    y -= 1 / y.shape[1]
    ridges = torch.tensor(STRENGTHS, dtype=torch.float64) * (z.square().sum(dim=1).mean() + 1e-300)

    def fitted(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return, by strength, weights (strengths, coordinates, K) and biases (strengths, 1, K)."""
        z_mean, y_mean = (part[seen].mean(dim=0) if bias else torch.zeros_like(part[0]) for part in (z, y))
        known, wanted = z[seen] - z_mean, y[seen] - y_mean
        values, vectors = torch.linalg.eigh(known.T @ known)
        projected = vectors.T @ (known.T @ wanted)
        weights = vectors @ (projected / (values.clamp(min=0) + ridges[:, None])[:, :, None])
        return weights, y_mean - z_mean @ weights[:, None]

    out_of_fold = [fitted(fold != k) for k in range(int(fold.max()) + 1)]
    errors = sum(
        (z[fold == k] @ weights + biases - y[fold == k]).square().sum(dim=(1, 2))
        for k, (weights, biases) in enumerate(out_of_fold)
    )
    best = int(errors.argmin())
    every = [fitted(fold >= 0), *out_of_fold]
    weight = torch.stack([weights[best] for weights, _ in every]).transpose(1, 2) @ basis.T  # (1 + k, n_classes, C)
    offset = torch.stack([biases[best, 0] for _, biases in every]) - weight @ centre
    return _heads(weight, offset if bias else None, fold, STRENGTHS[best])


def _fit_together(
    features: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, all_reduce: AllReduce, bias: bool
) -> Heads:
    """Fit heads as :func:`fit_heads` does, from sums over images only."""
    x, y = features.double().cpu(), nn.functional.one_hot(labels).double()
    y -= 1 / y.shape[1]
    n_images = all_reduce(torch.tensor([float(len(x))])).item()
    penalised = torch.ones(x.shape[1], dtype=torch.float64)
    if bias:  # an extra constant feature, which is not penalised
        centre = all_reduce(x.sum(dim=0)) / n_images
        x, penalised = nn.functional.pad(x - centre, (0, 1), value=1.0), nn.functional.pad(penalised, (0, 1))
    folds = [fold == k for k in range(int(fold.max()) + 1)]
    moments = all_reduce(torch.stack([x[held].T @ x[held] for held in folds]))  # (k, C, C)
    answers = all_reduce(torch.stack([x[held].T @ y[held] for held in folds]))  # (k, C, n_classes)
    mean_norm = (moments.diagonal(dim1=1, dim2=2) * penalised).sum().item() / n_images + 1e-300

    def weights(strength: float, without: int | None) -> torch.Tensor:
        gram, right = moments.sum(dim=0), answers.sum(dim=0)
        if without is not None:
            gram, right = gram - moments[without], right - answers[without]
        gram.diagonal().add_(strength * mean_norm * penalised)
        return torch.cholesky_solve(right, torch.linalg.cholesky(gram))  # (C, n_classes)

    def error(strength: float) -> float:  # of the out-of-fold heads on held-out folds, up to a constant
        out_of_fold = [weights(strength, k) for k in range(len(folds))]
        return sum(
            ((gram @ w - 2 * right) * w).sum().item()
            for w, gram, right in zip(out_of_fold, moments, answers, strict=True)
        )

    best = min(STRENGTHS, key=error)
    weight = torch.stack([weights(best, k).T for k in (None, *range(len(folds)))])
    if not bias:
        return _heads(weight, None, fold, best)
    return _heads(weight[..., :-1], weight[..., -1] - weight[..., :-1] @ centre, fold, best)


def _heads(weight: torch.Tensor, bias: torch.Tensor | None, fold: torch.Tensor, strength: float) -> Heads:
    """Return heads from weights (1 + k, n_classes, C) and biases (1 + k, n_classes), that for all images first."""
    weight, biases = weight.float(), (None, None) if bias is None else (bias[0].float(), bias[1:].float())
    return Heads(weight[0], OutOfFoldHeads(weight[1:], fold, biases[1]), strength, biases[0])


def squared_error(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the squared error of a head's outputs, averaged over the images of each class, then over classes.

    Heads are fitted by this error. On images that the head has not seen (:mod:`lrp_core.repair.out_of_fold`) it
    measures the quality of the features. On few images it can distinguish two networks where accuracy, which counts
    whole images, cannot.

    Args:
        outputs: (N, n_classes).
        labels: (N,), in 0..n_classes-1, each class present.
    """
    missed = outputs.double() + 1 / outputs.shape[1]
    missed[torch.arange(len(labels)), labels] -= 1
    by_class = torch.zeros(outputs.shape[1], dtype=torch.float64).index_add(0, labels, missed.square().sum(dim=1))
    return (by_class / labels.bincount()).mean().item()
