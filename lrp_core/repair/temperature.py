"""Temperature scaling: one factor on the outputs of a refitted head, so that their softmax gives probabilities.

A head fitted by least squares ranks the classes, but its outputs have the wrong scale for a softmax: they lie within a
range of about 1. The factor is one over the temperature of Guo et al. (On Calibration of Modern Neural Networks, ICML
2017). It minimises the negative log-likelihood of the calibration images under out-of-fold heads, which have not seen
them. It is positive, so it changes no prediction.
"""

import math

import torch
from torch import nn

from lrp_core.pruning.surgery import replace_tensor
from lrp_core.repair.ridge_head import fit_heads, read_by
from lrp_core.utils.sites import AllReduce, single_site

BOUNDS = 1e-3, 1e6  # of the factor; the lower one is for uninformative outputs


def fit_scale(outputs: torch.Tensor, labels: torch.Tensor, all_reduce: AllReduce = single_site) -> float:
    """Return the positive factor on the outputs that maximises the likelihood of the labels under their softmax.

    If all images were classified correctly, the best factor would be infinite. So the target of an image is
    (N + 1) / (N + K) for its true class and 1 / (N + K) for each other class, as if there were one more image of each
    class (after Platt, Probabilistic Outputs for Support Vector Machines, 1999, sec. 2.2). The loss is convex in the
    factor, so its derivative is bisected.

    Args:
        outputs: (N, K), by heads that have not seen the images.
        labels: (N,), in 0..K-1.
        all_reduce: sums over images, over all sites.
    """
    outputs = outputs.double().cpu()
    n_images, n_classes = all_reduce(torch.tensor([float(len(outputs))])).item(), outputs.shape[1]
    wanted = (n_images * nn.functional.one_hot(labels, n_classes).double() + 1) / (n_images + n_classes)
    low, high = map(math.log, BOUNDS)
    for _ in range(50):  # from 9 decades down to rounding errors
        middle = (low + high) / 2
        excess = ((torch.softmax(outputs * math.exp(middle), dim=1) - wanted) * outputs).sum()
        low, high = (low, middle) if all_reduce(excess[None]).item() > 0 else (middle, high)
    return math.exp((low + high) / 2)


def scale_head(
    model: nn.Module,
    head: str,
    images: torch.Tensor,
    labels: torch.Tensor,
    fold: torch.Tensor,
    all_reduce: AllReduce = single_site,
) -> float:
    """Scale a refitted head, in place, so that the softmax of its outputs gives probabilities; return the factor.

    Args:
        model: its head was fitted by least squares to these images, for what is left of the network.
        head: name of the last layer, a dense one.
        images: the calibration images, (N, C, H, W), normalised.
        labels: theirs, (N,), in 0..n_classes-1, each class present.
        fold: of the images, (N,).
        all_reduce: sums over images, over all sites.
    """
    module, features = model.get_submodule(head), read_by(model, head, images)
    heads = fit_heads(features, labels, fold, all_reduce, module.bias is not None)
    scale = fit_scale(heads.out_of_fold.judge(features), labels, all_reduce)
    for name in ("weight", "bias"):
        if (tensor := getattr(module, name)) is not None:
            replace_tensor(module, name, tensor.detach() * scale)
    return scale
