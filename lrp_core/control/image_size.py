"""Smaller images: a network that reads fewer pixels needs fewer multiply-adds, and loses no filter.

This is the plainest way to a cheaper network (the resolution multiplier of Howard et al., MobileNets, 2017, sec. 3.4,
who train a network for each size). Nothing is trained here. A head that was fitted to the calibration images is fitted
anew to the smaller ones.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from lrp_core.control.one_standard_error import Judged, accuracy_with_error, first_as_good
from lrp_core.graph.resizing import resize
from lrp_core.graph.tracing import trace
from lrp_core.metrics.cost import multiply_adds
from lrp_core.repair.out_of_fold import with_last_layer
from lrp_core.repair.ridge_head import fit_heads, read_by

ERRORS_WITH_INTERMEDIATE = 2  # standard errors; chosen on development draws, where one kept images too large
SHARES = (0.85, 2**-0.5, 0.5)  # of the pixels; pruning goes on from there
FURTHER = tuple(2 ** (-1 - i / 4) for i in range(1, 13))  # with intermediate features, for a budget below half


def tried(budget: float, intermediate_features: bool) -> tuple[Sequence[float], float]:
    """Return which images are tried for a budget.

    They go down to half of the pixels. If the budget is below half, and a head reads intermediate features, they become
    smaller: alone they may leave half of the multiply-adds, and what has to go from there, they share with the filters.

    Args:
        budget: the fraction of the multiply-adds to which the network will be pruned; 0 if not known.
        intermediate_features: whether a head reads them.

    Returns:
        Shares of the pixels, largest first; and the fraction of the multiply-adds below which images need not go.
    """
    if intermediate_features and 0 < budget < 0.5:  # for a quarter each leaves 0.71: 0.5 * 0.71 * 0.71 = 0.25
        return SHARES + FURTHER, (budget / 2) ** 0.5
    return SHARES, budget


def smaller_images(
    model: nn.Module,
    images: torch.Tensor,
    judge: Callable[[torch.Tensor], Judged],
    enough: float = 0.0,
    errors: float = 1.0,
    shares: Sequence[float] = SHARES,
) -> tuple[tuple[int, int] | None, nn.Module]:
    """Choose the smallest images on which the network is as accurate, within some standard errors.

    Of some sizes and the given one, it is the first whose accuracy is within so many standard errors of the best
    (:mod:`lrp_core.control.one_standard_error`). Sizes that the network cannot read, or that save no multiply-adds, are
    left out.

    Args:
        model: from images to logits (N, K), made of supported layers.
        images: calibration ones, (N, C, H, W), normalised.
        judge: from images of a size, (N, C, h, w), to the accuracy on them, with its standard error, and the classifier
            for that size.
        enough: a fraction of the multiply-adds; of the sizes within it, only the largest is tried.
        errors: how many standard errors.
        shares: of the pixels, largest first.

    Returns:
        The size (H, W), None for the given one; and the classifier for it.

    Raises:
        ValueError: no size is left.
    """
    sizes, problem = smaller_sizes(model, images[:1], enough, shares)
    if not sizes:
        before = " x ".join(map(str, images.shape[2:]))
        raise ValueError(
            f"the network reads images of {before} px, and none of {min(shares):.0%} to {max(shares):.0%} of these "
            f"pixels: {problem}. Does it flatten maps into a dense layer, or resize images itself? Choose a method "
            "without smaller-images"
        )
    found, models = {}, {}
    for size in (*sizes, None):
        found[size], models[size] = judge(images if size is None else resize(images, size))
    size = first_as_good(found, errors)
    return size, models[size]


def refit_last_layer(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor) -> Judged:
    """Fit the last layer of a classifier anew, a dense one.

    Args:
        model: from images to logits (N, K), made of supported layers; not changed, but its other layers are shared.
        images: calibration ones, (N, C, H, W), normalised.
        labels: (N,), in 0..K-1, each class present.
        fold: of the images, (N,).

    Returns:
        Class-averaged accuracy with its standard error, cross-fitted; and the classifier with the new layer.
    """
    name = trace(model)[-1].name
    features = read_by(model, name, images)
    heads = fit_heads(features, labels, fold, bias=model.get_submodule(name).bias is not None)
    found = accuracy_with_error(heads.out_of_fold.judge(features), labels)
    return found, with_last_layer(model, heads.weight, heads.bias)


def smaller_sizes(
    model: nn.Module, image: torch.Tensor, enough: float = 0.0, shares: Sequence[float] = SHARES
) -> tuple[list[tuple[int, int]], str]:
    """Return the sizes (H, W) that the network reads with fewer multiply-adds.

    Args:
        model: made of supported layers.
        image: (1, C, H, W).
        enough: a fraction of the multiply-adds; of the sizes within it, only the largest is returned.
        shares: of the pixels, largest first.

    Returns:
        The sizes, smallest first; and why others were left out, of use if all were.
    """
    whole, sizes, problem = multiply_adds(model, image), [], "it needs as many multiply-adds for them"
    for share in shares:
        size = tuple(max(1, int(side * share**0.5)) for side in image.shape[2:])
        try:
            left = multiply_adds(model, resize(image, size)) / whole
        except Exception as error:  # the model's own code may raise anything
            problem = str(error)
            continue
        if left < 1 and size not in sizes:
            sizes.insert(0, size)
        if left <= enough:
            break
    return sizes, problem
