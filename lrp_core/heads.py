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
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from lrp_core.devices import device_of
from lrp_core.evaluation import class_accuracies, predict

REGULARISATION = (1e-3, 1e-2, 1e-1)  # inverse strengths C, from which cross-fitted accuracy chooses


@dataclass(frozen=True)
class Heads:
    """One head trained on all scarce images, and k heads that have each missed one fold of them.

    Attributes:
        weight: (1 + k, n_classes, n_features), the full head first.
        fold: by scarce image, the fold that holds it, (N,), in 0..k-1; head 1 + fold[i] has not seen image i.
        regularisation: the inverse strength C that was chosen.
    """

    weight: torch.Tensor
    fold: torch.Tensor
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


def fit_heads(features: torch.Tensor, labels: torch.Tensor, blocks: np.ndarray, n_folds: int, seed: int) -> Heads:
    """Train the head and its cross-fitted copies, with the regularisation that cross-fits best on these images.

    Args:
        features: pooled features of the scarce images, (N, C).
        labels: their classes, (N,).
        blocks: their blocks, (N,); the images of a block share a fold.
        n_folds: k; two or more.
        seed: draws the folds.

    Raises:
        ValueError: fewer blocks than folds, or a class that is in one fold only.
    """
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

    def cross_fit(regularisation: float) -> tuple[float, np.ndarray]:
        weights = np.stack([train_head(x[fold != k], y[fold != k], regularisation) for k in range(n_folds)])
        predictions = np.einsum("nf,ncf->nc", x, weights[fold]).argmax(axis=1)
        accuracies = class_accuracies(torch.from_numpy(predictions), labels, n_classes)
        return accuracies.mean().item(), weights

    crossfitted = {regularisation: cross_fit(regularisation) for regularisation in REGULARISATION}
    best = max(REGULARISATION, key=lambda regularisation: crossfitted[regularisation][0])
    weight = np.concatenate([train_head(x, y, best)[None], crossfitted[best][1]])
    return Heads(torch.from_numpy(weight).float(), torch.from_numpy(fold), best)


def classifier(backbone: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Put linear heads on a trunk: average over positions, then one dense layer without bias.

    Args:
        backbone: images to feature maps (N, C, H, W).
        weight: (n_heads, n_classes, C); the logits of all heads come out side by side, (N, n_heads * n_classes).
    """
    head = nn.Linear(weight.shape[2], weight.shape[0] * weight.shape[1], bias=False)
    head.weight = nn.Parameter(weight.flatten(0, 1).clone(), requires_grad=False)
    parts = {"backbone": backbone, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": head}
    return nn.Sequential(OrderedDict(parts)).to(device_of(backbone)).eval()


def crossfitted_logits(logits: torch.Tensor, fold: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return each image's logits by the head that has not seen it, (N, n_classes).

    Args:
        logits: of a classifier with the 1 + k heads of :class:`Heads`, (N, (1 + k) * n_classes).
        fold: (N,), in 0..k-1.
        n_classes: logits of one head.
    """
    by_head = logits.unflatten(1, (-1, n_classes))
    return by_head[torch.arange(len(fold)), fold + 1]
