"""The linear head on pooled features, and its cross-fitted copies that judge scarce images they have not seen.

The head has no bias. Features behind a ReLU are not negative and are scaled, not centred, so it needs none; and
relevance starts from a logit that is the sum of its contributions. With a bias, a logit without it (the denominator of
LRP) is negative for about a third of the scarce ELPV images, whose relevance would then change sign
(``02_head_training.ipynb`` measures it).
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lrp_core.devices import device_of
from lrp_core.evaluation import class_accuracies, predict
from lrp_core.graph import trace
from lrp_core.pruning import shallow_copy

REGULARISATION = (1e-3, 1e-2, 1e-1)  # inverse strengths C, from which cross-fitted accuracy chooses


@dataclass(frozen=True)
class CrossFit:
    """Copies of a head that have each missed one fold of the scarce images.

    Attributes:
        weight: (k, n_classes, C); copy fold[i] has not seen image i.
        fold: by scarce image, the fold that holds it, (N,), in 0..k-1.
    """

    weight: torch.Tensor
    fold: torch.Tensor


@dataclass(frozen=True)
class Heads:
    """A head trained on all scarce images, and its cross-fitted copies.

    Attributes:
        weight: (n_classes, C).
        copies: of it.
        regularisation: the inverse strength C that was chosen for all of them.
    """

    weight: torch.Tensor
    copies: CrossFit
    regularisation: float


def pooled_features(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the trunk's feature maps averaged over positions, (N, C).

    Raises:
        ValueError: the trunk makes something else than feature maps.
    """
    maps = predict(backbone, images[:1])
    if maps.dim() != 4:
        raise ValueError(f"a trunk gives feature maps (N, C, H, W), this one gave {tuple(maps.shape)} for one image")
    return predict(nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)


def train_head(features: np.ndarray, labels: np.ndarray, regularisation: float, bias: bool = False) -> np.ndarray:
    """Fit multinomial logistic regression on features scaled to unit deviation.

    Args:
        features: (N, C), non-negative.
        labels: (N,), in 0..n_classes-1, each class present.
        regularisation: inverse strength C of the L2 penalty, on the scaled features.
        bias: fit a constant too, which is not returned.

    Returns:
        Weights for unscaled features, (n_classes, C), float64.
    """
    from sklearn.linear_model import LogisticRegression  # here, for it imports pandas where that is installed

    features = features.astype(np.float64)
    scale = features.std(axis=0)
    scale[scale == 0] = 1.0  # a dead channel
    # With this penalty the weights lie in the span of the images: there are no more coordinates to fit than images.
    basis, coordinates = np.linalg.qr((features / scale).T)
    two = labels.max() == 1
    # Of two classes scikit-learn fits the difference: with half of it for each and twice the C, the loss is the same.
    strength = 2 * regularisation if two else regularisation
    head = LogisticRegression(C=strength, fit_intercept=bias, solver="newton-cg", tol=1e-8, max_iter=1000)
    weights = head.fit(coordinates.T, labels).coef_ @ basis.T
    return (np.concatenate([-weights, weights]) / 2 if two else weights) / scale


def cross_fit(
    features: torch.Tensor, labels: torch.Tensor, blocks: np.ndarray, n_folds: int, seed: int
) -> tuple[CrossFit, float]:
    """Train a head for each fold, on the other folds, with the regularisation that is best for those it has not seen.

    Args:
        features: what the head reads, (N, C).
        labels: (N,), in 0..n_classes-1, each class present.
        blocks: of the images, (N,); those of a block share a fold.
        n_folds: k; two or more.
        seed: draws the folds.

    Returns:
        The heads, and the inverse strength C that was chosen for them.

    Raises:
        ValueError: fewer blocks than folds, or a class that is in one fold only.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # see train_head

    if (n_blocks := len(np.unique(blocks))) < n_folds:
        raise ValueError(
            f"the {len(blocks)} scarce images are from {n_blocks} blocks, too few for {n_folds} folds: choose a "
            "smaller block (1 if your images are independent of each other), or fewer folds"
        )
    x, y = features.double().numpy(), labels.numpy()
    n_classes = int(y.max()) + 1
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(y), dtype=np.int64)
    for k, (_, held_out) in enumerate(folds.split(x, y, blocks)):
        fold[held_out] = k
    for k in range(n_folds):
        if len(np.unique(y[fold != k])) < n_classes:
            raise ValueError(f"without fold {k} of {n_folds} a class has no image left; choose more folds")

    def fit(regularisation: float) -> tuple[float, np.ndarray]:
        weights = np.stack([train_head(x[fold != k], y[fold != k], regularisation) for k in range(n_folds)])
        predictions = np.einsum("nf,ncf->nc", x, weights[fold]).argmax(axis=1)
        accuracies = class_accuracies(torch.from_numpy(predictions), labels, n_classes)
        return accuracies.mean().item(), weights

    fitted = {regularisation: fit(regularisation) for regularisation in REGULARISATION}
    best = max(REGULARISATION, key=lambda regularisation: fitted[regularisation][0])
    return CrossFit(torch.from_numpy(fitted[best][1]).float(), torch.from_numpy(fold)), best


def fit_heads(features: torch.Tensor, labels: torch.Tensor, blocks: np.ndarray, n_folds: int, seed: int) -> Heads:
    """Train the head on all scarce images, and its cross-fitted copies; arguments as for :func:`cross_fit`."""
    copies, best = cross_fit(features, labels, blocks, n_folds, seed)
    weight = train_head(features.double().numpy(), labels.numpy(), best)
    return Heads(torch.from_numpy(weight).float(), copies, best)


def classifier(backbone: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Put a linear head on a trunk: average over positions, then a dense layer without bias.

    Args:
        backbone: images to feature maps (N, C, H, W).
        weight: (n_classes, C).
    """
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = nn.Parameter(weight.clone(), requires_grad=False)
    parts = {"backbone": backbone, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": head}
    return nn.Sequential(OrderedDict(parts)).to(device_of(backbone)).eval()


def with_copies(model: nn.Module, weight: torch.Tensor) -> nn.Module:
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
    copies = weight.flatten(0, 1).to(last.weight)
    head = nn.Linear(last.in_features, last.out_features + len(copies), last.bias is not None, device="meta")
    head.weight = nn.Parameter(torch.cat([last.weight.detach(), copies]), requires_grad=False)
    if last.bias is not None:
        head.bias = nn.Parameter(torch.cat([last.bias.detach(), copies.new_zeros(len(copies))]), requires_grad=False)
    wide.set_submodule(name, head.eval())
    return wide


def crossfitted_logits(logits: torch.Tensor, fold: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return each image's logits by the copy of the head that has not seen it, (N, n_classes).

    Args:
        logits: of the k copies, side by side, (N, k * n_classes).
        fold: (N,), in 0..k-1.
        n_classes: logits of one copy.
    """
    return logits.unflatten(1, (-1, n_classes))[torch.arange(len(fold)), fold]
