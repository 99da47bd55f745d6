"""Early exits: a backbone can end earlier, with a head on the features there.

This is the simplest way to a smaller network, and the first to try if a task needs less depth than the task that the
backbone was trained for: linear heads on the layers of a frozen network (Alain and Bengio, Understanding intermediate
layers using linear classifier probes, 2016).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lrp_core.control.one_standard_error import accuracy_with_error, first_as_good
from lrp_core.graph.exits import features_by_exit, multiply_adds_by_exit, own_end
from lrp_core.graph.truncation import classifier, up_to
from lrp_core.metrics.accuracy import predict
from lrp_core.repair.ridge_head import Heads, fit_heads, squared_error


@dataclass(frozen=True)
class Exit:
    """A possible end of a backbone, with a head on the features there.

    Attributes:
        name: the layer after which it ends.
        heads: fitted to the features there.
        accuracy: class-averaged, cross-fitted: of the out-of-fold heads on the images that they have not seen.
        error: standard error of that accuracy.
        squared_error: of their outputs (:func:`lrp_core.repair.ridge_head.squared_error`).
        multiply_adds: for one image, including the head.
    """

    name: str
    heads: Heads
    accuracy: float
    error: float
    squared_error: float
    multiply_adds: int


def exits(backbone: nn.Module, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor) -> list[Exit]:
    """Return a backbone's exits (:mod:`lrp_core.graph.exits`) with fitted heads, from the input to the output.

    Args:
        backbone: images to feature maps, made of supported layers.
        images: calibration ones, (N, C, H, W), normalised.
        labels: (N,), in 0..n_classes-1, each class present.
        fold: of the images, (N,) (:func:`lrp_core.repair.out_of_fold.draw_folds`).
    """
    found, costs = [], multiply_adds_by_exit(backbone, images[:1])
    for name, features in features_by_exit(backbone, images).items():
        heads = fit_heads(features, labels, fold)
        logits = heads.out_of_fold.judge(features)
        cost = costs[name] + heads.weight.numel()
        found.append(Exit(name, heads, *accuracy_with_error(logits, labels), squared_error(logits, labels), cost))
    return found


def earliest(exits: Sequence[Exit]) -> Exit:
    """Return the first exit that is as good as the best (:mod:`lrp_core.control.one_standard_error`)."""
    return exits[first_as_good({i: (exit_.accuracy, exit_.error) for i, exit_ in enumerate(exits)})]


def end_early(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, fitted: bool
) -> tuple[str, nn.Module]:
    """End a classifier at the :func:`earliest` exit, within one standard error of the best.

    Args:
        model: from images to logits (N, K), made of supported layers; not changed, but its layers are shared.
        images: calibration ones, (N, C, H, W), normalised.
        labels: (N,), in 0..K-1, each class present.
        fold: of the images, (N,).
        fitted: whether the last layer was fitted to these images; its accuracy is then cross-fitted.

    Returns:
        The layer after which it ends, and the classifier with a head fitted there; "" and ``model`` for its own end.
    """
    *found, last = exits(up_to(model, own_end(model)), images, labels, fold)
    if not fitted:
        accuracy, error = accuracy_with_error(predict(model, images), labels)
        last = replace(last, accuracy=accuracy, error=error)
    if (exit_ := earliest([*found, last])) is last:
        return "", model
    return exit_.name, classifier(up_to(model, exit_.name), exit_.heads.weight)


def halving(exits: Sequence[Exit]) -> list[Exit]:
    """Return the :func:`earliest` exit, the earliest of those with at most half of its multiply-adds, and so on.

    Pruning starts from each of these. At a small budget, a shorter backbone with more filters may be better than a
    longer one with few. Each exit costs at most half of the previous one, so all together cost at most twice the first.
    """
    chosen = []
    while exits:
        chosen.append(earliest(exits))
        exits = [exit_ for exit_ in exits if exit_.multiply_adds <= chosen[-1].multiply_adds / 2]
    return chosen
