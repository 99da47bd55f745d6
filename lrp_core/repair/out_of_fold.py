"""Out-of-fold heads: for every fold of the calibration images, a head that has not seen it and can evaluate it.

One wide last layer holds them next to the head that has seen all images, so that one forward pass gives the logits of
all heads. A "cross-fitted" value was measured by out-of-fold heads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lrp_core.graph.sharing import shallow_copy
from lrp_core.graph.tracing import trace


@dataclass(frozen=True)
class OutOfFoldHeads:
    """Heads that have each missed one fold of the calibration images.

    Attributes:
        weight: (k, n_classes, C); head fold[i] has not seen image i.
        fold: the fold of each calibration image, (N,), in 0..k-1.
        bias: (k, n_classes); None for heads without one.
    """

    weight: torch.Tensor
    fold: torch.Tensor
    bias: torch.Tensor | None = None

    def judge(self, features: torch.Tensor) -> torch.Tensor:
        """Return the output for each calibration image, by the head that has not seen it, (N, n_classes).

        Args:
            features: of the calibration images, (N, C).
        """
        outputs = features @ self.weight.flatten(0, 1).T.to(features)
        outputs = outputs if self.bias is None else outputs + self.bias.flatten().to(features)
        return out_of_fold_logits(outputs, self.fold, self.weight.shape[1])


def draw_folds(labels: torch.Tensor, blocks: np.ndarray, n_folds: int, seed: int) -> torch.Tensor:
    """Return the fold of each image, (N,), in 0..n_folds-1, with the classes balanced over the folds.

    Args:
        labels: (N,), in 0..n_classes-1, each class present.
        blocks: of the images, (N,); images of one block share a fold.
        n_folds: k; two or more.
        seed: draws the folds.

    Raises:
        ValueError: fewer blocks than folds, or a class that is in one fold only.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # here, because it imports pandas if installed

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
    if _in_one_fold(y, fold) is not None:  # as happens if one block is much larger than the others
        fold = _spread(y, blocks, n_folds)
    if (label := _in_one_fold(y, fold)) is not None:
        n_blocks = len(np.unique(blocks[y == label]))
        raise ValueError(
            f"without one of the {n_folds} folds class {label} has no image left: it has images of {n_blocks} groups "
            "(or blocks); give images of more, or choose smaller ones"
        )
    return torch.from_numpy(fold)


def _in_one_fold(y: np.ndarray, fold: np.ndarray) -> int | None:
    """Return a class whose images are all in one fold; None if there is none."""
    return next((int(label) for label in np.unique(y) if len(np.unique(fold[y == label])) == 1), None)


def _spread(y: np.ndarray, blocks: np.ndarray, n_folds: int) -> np.ndarray:
    """Return the fold of each image: each class gets its blocks into several folds, that with fewest blocks first."""
    fold_of: dict[int, int] = {}
    for found in sorted((np.unique(blocks[y == label]) for label in np.unique(y)), key=len):
        for block in found:
            if block not in fold_of:
                of_class = [fold_of[other] for other in found if other in fold_of]
                used = list(fold_of.values())
                fold_of[block] = min(range(n_folds), key=lambda k: (of_class.count(k), used.count(k)))
    return np.array([fold_of[block] for block in blocks])


def with_out_of_fold_heads(model: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Module:
    """Return a classifier that gives the logits of out-of-fold heads after its own.

    Args:
        model: ends with a dense layer; not changed, its other tensors are shared.
        weight: of the out-of-fold heads, (k, n_classes, C).
        bias: of the out-of-fold heads, (k, n_classes), if the model's last layer has one; None: 0.

    Returns:
        A network from images to logits (N, n_outputs + k * n_classes), the model's own first.
    """
    last, out_of_fold = model.get_submodule(trace(model)[-1].name), weight.flatten(0, 1)
    wide, biases = torch.cat([last.weight.detach(), out_of_fold.to(last.weight)]), None
    if last.bias is not None:
        added = torch.zeros(len(out_of_fold)) if bias is None else bias.flatten()
        biases = torch.cat([last.bias.detach(), added.to(last.bias)])
    return with_last_layer(model, wide, biases)


def without_out_of_fold_heads(model: nn.Module, n_outputs: int) -> nn.Module:
    """Undo :func:`with_out_of_fold_heads`: return the classifier with ``n_outputs`` logits; shares tensors."""
    wide = model.get_submodule(trace(model)[-1].name)
    bias = None if wide.bias is None else wide.bias.detach()[:n_outputs]
    return with_last_layer(model, wide.weight.detach()[:n_outputs], bias)


def with_last_layer(model: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return a classifier with another last layer; its other tensors are those of the given one.

    Args:
        model: ends with a dense layer; not changed.
        weight: (n_outputs, C).
        bias: (n_outputs,); None for a layer without one.
    """
    name, other = trace(model)[-1].name, shallow_copy(model)
    old = model.get_submodule(name).weight
    head = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    head.weight = nn.Parameter(weight.to(old), requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias.to(old), requires_grad=False)
    other.set_submodule(name, head.eval())
    return other


def out_of_fold_logits(logits: torch.Tensor, fold: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return each image's logits by the head that has not seen it, (N, n_classes).

    Args:
        logits: of the k out-of-fold heads, concatenated, (N, k * n_classes).
        fold: (N,), in 0..k-1.
        n_classes: the number of logits of one head.
    """
    return logits.unflatten(1, (-1, n_classes))[torch.arange(len(fold)), fold]
