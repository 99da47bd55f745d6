"""A head that is fitted anew: whatever a smaller network's features are, its last layer is the best for them."""

from collections.abc import Callable

import torch

from lrp_core.graph.layers import Layer
from lrp_core.pruning.surgery import replace_tensor
from lrp_core.repair.ridge_head import fit_heads
from lrp_core.utils.sites import AllReduce, single_site


class Refit:
    """Fits the last layer of every smaller network to the calibration images, and out-of-fold heads where it has some.

    The plainest of all repairs, and no pruning method should be judged without it: most of what looks like features
    that are lost is a head that no longer fits them (``03_baseline_lrp_pruning.ipynb``).

    A last layer that has a bias keeps one, fitted without a penalty; one without a bias gets none. The outputs are a
    regression's (:func:`lrp_core.repair.ridge_head.fit_heads`): they rank the classes, but their softmax is no
    probability. :func:`lrp_core.repair.temperature.scale_head` makes it one: :func:`lrp_core.prune` calls it once, at
    the end. The study never does, since it reads outputs as a regression's.
    """

    def __init__(self, head: str, labels: torch.Tensor, fold: torch.Tensor, all_reduce: AllReduce = single_site):
        """Take what a head is fitted to.

        Args:
            head: name of the last layer, a dense one.
            labels: of the calibration images, (N,), in 0..n_classes-1, each class present.
            fold: of the images, (N,): out-of-fold head k is fitted without fold k.
            all_reduce: sums over images, over all sites.
        """
        self._head, self._labels, self._fold, self._all_reduce = head, labels, fold, all_reduce

    def compensation(self, *_: object) -> Callable[[Layer, list[dict[str, torch.Tensor]]], None]:
        """Return what fits the head when it is about to be run (see :class:`lrp_core.pruning.network.Compensation`)."""

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
