"""A head on intermediate features: the last layer of a frozen network reads features of earlier layers, too.

The last features of a network serve the task that it was trained for; earlier ones serve other tasks as well. So a head
that reads both is often better on a new task. It also loses less where the last features suffer, on smaller images or
by pruning. The idea is that of Head2Toe (Evci et al., Head2Toe: Utilizing Intermediate Representations for Better
Transfer Learning, ICML 2022), which takes the features of all layers and selects some by a group lasso. Ours takes
those of the second half of the layers, and a ridge regression weighs them.
"""

import torch
from torch import nn

from lrp_core.control.one_standard_error import Judged, accuracy_with_error
from lrp_core.graph.intermediate import head_on_intermediate, intermediate_channels, with_intermediate
from lrp_core.metrics.accuracy import predict
from lrp_core.repair.ridge_head import fit_heads


def fit_on_intermediate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor) -> Judged:
    """Fit a head to the last features of a classifier and to intermediate ones.

    The features of each layer are scaled around their mean: the last ones to a mean squared norm of 1, those of each of
    L intermediate layers to 1/L. So all intermediate ones together count as much as the last ones.

    Args:
        model: from images to logits (N, K), made of supported layers, with a dense last layer; not changed, but its
            other layers are shared.
        images: calibration ones, (N, C, H, W), normalised.
        labels: (N,), in 0..K-1, each class present.
        fold: of the images, (N,).

    Returns:
        Class-averaged accuracy with its standard error, cross-fitted; and the classifier with the new head.

    Raises:
        ValueError: there are no intermediate features (:func:`lrp_core.graph.intermediate.intermediate_channels`).
    """
    channels = intermediate_channels(model, images[:1])
    features = predict(with_intermediate(model, list(channels)), images)
    largest = torch.finfo(features.dtype).max
    features = features.float() if features.dtype.itemsize < 4 else features  # squares overflow in half precision
    parts = features.split([*channels.values(), features.shape[1] - sum(channels.values())], dim=1)
    shares = [*[1 / len(channels)] * len(channels), 1.0]
    scale = torch.cat([_scale(part, share).expand(part.shape[1]) for part, share in zip(parts, shares, strict=True)])
    scale = scale.clamp(max=largest)
    heads = fit_heads(features * scale, labels, fold, bias=True)
    found = accuracy_with_error(heads.out_of_fold.judge(features * scale), labels)
    return found, head_on_intermediate(model, list(channels), scale, heads.weight, heads.bias)


def _scale(part: torch.Tensor, share: float) -> torch.Tensor:
    """Return the factor that gives features (N, C) this mean squared norm around their mean; 0 if they are constant."""
    norm = (part - part.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    spread = norm > 1e-6 * part.square().sum(dim=1).mean().sqrt()
    return torch.where(spread, share**0.5 / norm, 0.0)
