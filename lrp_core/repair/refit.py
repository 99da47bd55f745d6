"""Refitted heads: the last layer of a smaller network is fitted to its remaining features."""

from collections.abc import Callable

import torch

from lrp_core.graph.layers import Layer
from lrp_core.pruning.surgery import replace_tensor
from lrp_core.repair.ridge_head import fit_heads
from lrp_core.utils.sites import AllReduce, single_site


class Refit:
    """Fits the last layer of every smaller network to the calibration images, and its out-of-fold heads if it has some.

    This is the simplest repair, and no pruning method should be evaluated without it: most of what looks like lost
    features is a head that no longer fits them (``03_baseline_lrp_pruning.ipynb``).

    If the last layer has a bias, the new one has a bias too, fitted without a penalty. The outputs are those of a
    regression (:func:`lrp_core.repair.ridge_head.fit_heads`): they rank the classes, but their softmax is not a
    probability. At the end, :func:`lrp_core.prune` scales them by :func:`lrp_core.repair.temperature.scale_head`, so
    that it is. The study does not, because it uses the regression outputs.
    """

    def __init__(self, head: str, labels: torch.Tensor, fold: torch.Tensor, all_reduce: AllReduce = single_site):
        """Store the targets of the fit.

        Args:
            head: name of the last layer, a dense one.
            labels: of the calibration images, (N,), in 0..n_classes-1, each class present.
            fold: of the images, (N,): out-of-fold head k is fitted without fold k.
            all_reduce: sums over images, over all sites.
        """
        self._head, self._labels, self._fold, self._all_reduce = head, labels, fold, all_reduce

    def compensation(self, *_: object) -> Callable[[Layer, list[dict[str, torch.Tensor]]], None]:
        """Return a visitor that fits the head right before it runs (:class:`lrp_core.pruning.network.Compensation`)."""

        def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
            if layer.name == self._head:
                features = torch.cat([live[layer.inputs[0]] for live in lives])
                has_bias, n_outputs = layer.module.bias is not None, layer.module.out_features
                heads = fit_heads(features, self._labels, self._fold, self._all_reduce, has_bias)
                weight = torch.cat([heads.weight, heads.out_of_fold.weight.flatten(0, 1)])
                replace_tensor(layer.module, "weight", weight[:n_outputs].to(features))
                if has_bias:
                    bias = torch.cat([heads.bias, heads.out_of_fold.bias.flatten()])
                    replace_tensor(layer.module, "bias", bias[:n_outputs].to(features))

        return visit
