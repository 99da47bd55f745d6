"""What a classifier goes through before it loses filters: smaller images, a new head, an earlier end."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from lrp_core.control.early_exit import end_early
from lrp_core.control.image_size import ERRORS_WITH_INTERMEDIATE, refit_last_layer, smaller_images, tried
from lrp_core.control.intermediate_features import fit_on_intermediate
from lrp_core.control.methods import Method
from lrp_core.control.one_standard_error import Judged, accuracy_with_error
from lrp_core.graph.intermediate import intermediate_channels
from lrp_core.graph.resizing import NETWORK, resize, resizing
from lrp_core.metrics.accuracy import predict


@dataclass(frozen=True)
class Prepared:
    """A classifier that is ready to lose filters.

    Attributes:
        model: from images of the given size to logits.
        image_size: to which it resizes them first, (H, W); None if it does not.
        intermediate: the layers of the given network whose features its last layer reads beside the last ones.
        exit_: the layer of the given network behind which it ends; None for its own end.
    """

    model: nn.Module = field(repr=False)
    image_size: tuple[int, int] | None = None
    intermediate: tuple[str, ...] = ()
    exit_: str | None = None

    def names(self, layers: Collection[str]) -> list[str]:
        """Return the names of the given network's layers in this one."""
        return list(layers) if self.image_size is None else [f"{NETWORK}.{layer}" for layer in layers]


def prepare(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    fold: torch.Tensor | None,
    how: Method,
    fitted: bool,
    budget: float = 0.0,
) -> Prepared:
    """Make the images smaller, fit a new head and cut the network, as far as the method says so.

    Args:
        model: from images to logits (N, K), made of supported layers; not changed, but its layers are shared.
        images: calibration ones, (N, C, H, W), normalised.
        labels: (N,), in 0..K-1, each class present.
        fold: of the images, (N,); None if the method fits no head.
        how: the method.
        fitted: whether the last layer was fitted to these images; for smaller ones it is then fitted anew.
        budget: the fraction of the multiply-adds to which the network will be pruned; 0 if not known. It bounds the
            images (:func:`lrp_core.control.image_size.tried`).

    Raises:
        ValueError: no smaller image, no intermediate feature, or no earlier end is possible.
    """

    def judge(read: torch.Tensor) -> Judged:
        if how.intermediate_features:
            return fit_on_intermediate(model, read, labels, fold)
        if fitted:
            return refit_last_layer(model, read, labels, fold)
        return accuracy_with_error(predict(model, read), labels), model

    size, more, exit_ = None, (), ""
    if how.intermediate_features:
        more = tuple(intermediate_channels(model, images[:1]))
    if how.smaller_images:
        shares, enough = tried(budget, how.intermediate_features)
        errors = ERRORS_WITH_INTERMEDIATE if how.intermediate_features else 1
        size, found = smaller_images(model, images, judge, enough, errors, shares)
    elif how.intermediate_features:
        _, found = judge(images)
    if more or size is not None:  # a given last layer stays as it is for images of the given size
        model = found
    if how.early_exit:
        exit_, model = end_early(model, images if size is None else resize(images, size), labels, fold, fitted)
    return Prepared(model if size is None else resizing(model, size), size, more, exit_ or None)
