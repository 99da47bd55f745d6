"""Batch normalisation in eval mode: as the affine map that it is, folded into the convolution before it."""

from dataclasses import replace

import torch
from torch import nn

from lrp_core.graph.layers import BATCH_NORMS, Layer, readers
from lrp_core.graph.sharing import with_weight


def affine(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift by channel, (C,) each, of a batch normalisation in eval mode."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean * scale
    return (scale * norm.weight, shift * norm.weight + norm.bias) if norm.affine else (scale, shift)


class ChannelAffine(nn.Module):
    """A batch normalisation in eval mode, as the scale and shift that it is."""

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm):
        """Take scale and shift from the running statistics."""
        super().__init__()
        scale, shift = affine(norm)
        self.scale, self.shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Scale and shift (N, C, H, W) by channel."""
        return torch.addcmul(self.shift, a, self.scale)


def fold_batchnorm(layers: list[Layer]) -> list[Layer]:
    """Fold each batch normalisation into the convolution before it, exactly; the traced model is untouched.

    A batch normalisation behind anything else, or behind a convolution that others read too, becomes the scale and
    shift by channel that it is.
    """
    read_by = readers(layers)
    folded: dict[str, Layer] = {}
    renamed: dict[str, str] = {}
    for layer in layers:
        layer = replace(layer, inputs=tuple(renamed.get(name, name) for name in layer.inputs))
        if isinstance(layer.module, BATCH_NORMS):
            source = folded.get(layer.inputs[0])
            if source is not None and isinstance(source.module, nn.Conv2d) and len(read_by[source.name]) == 1:
                scale, shift = affine(layer.module)
                weight = source.module.weight.detach() * scale.view(-1, 1, 1, 1)
                bias = shift if source.module.bias is None else torch.addcmul(shift, source.module.bias, scale)
                folded[source.name] = replace(source, module=with_weight(source.module, weight, bias.detach()))
                renamed[layer.name] = source.name
                continue
            layer = replace(layer, module=ChannelAffine(layer.module))
        folded[layer.name] = layer
    return list(folded.values())
