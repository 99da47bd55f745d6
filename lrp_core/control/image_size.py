"""Smaller images: a network that reads fewer pixels needs fewer multiply-adds, and loses no filter.

This is the plainest way to a cheaper network (the resolution multiplier of Howard et al., MobileNets, 2017, sec. 3.4,
who train a network for each size). Nothing is trained here. A head that was fitted to the calibration images is fitted
anew to the smaller ones.
"""

import torch
from torch import nn

from lrp_core.control.one_standard_error import accuracy_with_error, first_as_good
from lrp_core.graph.resizing import resizing
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import predict
from lrp_core.repair.out_of_fold import with_last_layer
from lrp_core.repair.ridge_head import fit_heads, read_by

SHARES = (0.5, 2**-0.5, 0.85)  # of the pixels, smallest first; for less, pruning loses less (development seeds)


def resize_images(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, fitted: bool
) -> tuple[tuple[int, int] | None, nn.Module]:
    """Let a classifier read smaller images, where this costs no measurable accuracy.

    Of the sizes in :data:`SHARES` and the given one, it is the first whose accuracy is within one standard error of the
    best (:mod:`lrp_core.control.one_standard_error`).

    Args:
        model: from images to logits (N, K), made of supported layers; not changed, but its layers are shared.
        images: calibration ones, (N, C, H, W), normalised.
        labels: (N,), in 0..K-1, each class present.
        fold: of the images, (N,).
        fitted: whether the last layer, a dense one, was fitted to these images. It is then fitted anew for each size,
            and accuracies are cross-fitted.

    Returns:
        The size (H, W), and the classifier that resizes images to it first; None and ``model`` for the given size.

    Raises:
        ValueError: the network reads no smaller images.
    """
    sizes = [tuple(int(side * share**0.5) for side in images.shape[2:]) for share in SHARES]
    models = {size: resizing(model, size) for size in sizes} | {None: model}
    _check_reads(models[sizes[0]], images[:1], sizes[0])
    found = {}
    for size, smaller in models.items():
        found[size], models[size] = _judged(smaller, images, labels, fold, fitted)
    size = first_as_good(found)
    return size, model if size is None else models[size]


def _judged(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor, fitted: bool
) -> tuple[tuple[float, float], nn.Module]:
    """Return the accuracy of a classifier with its standard error, and the classifier, with a new head if fitted."""
    if not fitted:
        return accuracy_with_error(predict(model, images), labels), model
    name = trace(model)[-1].name
    features = read_by(model, name, images)
    heads = fit_heads(features, labels, fold, bias=model.get_submodule(name).bias is not None)
    found = accuracy_with_error(heads.out_of_fold.judge(features), labels)
    return found, with_last_layer(model, heads.weight, heads.bias)


def _check_reads(model: nn.Module, image: torch.Tensor, size: tuple[int, int]) -> None:
    try:
        predict(model, image)
    except RuntimeError as error:
        before, after = (" x ".join(map(str, shape)) for shape in (image.shape[2:], size))
        raise ValueError(
            f"the network reads images of {before} px, and none of {after} px: does it flatten maps into a dense "
            f"layer, or add maps of several sizes? Choose a method without smaller-images ({error})"
        ) from error
