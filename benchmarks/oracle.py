"""Relevance as zennit computes it: what tests compare with, and what the benchmark measures beside."""

import lrp_core  # first: it makes torchvision, which zennit asks for, importable

import torch
from torch import nn
from torch.nn import functional as F
from zennit.core import Composite


def zennit_relevance(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor, composite: Composite
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return relevance by convolution, (N, C), and at the pixels, (N, 3, H, W), from 1 at each target."""
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            outputs[name] = output

        return hook

    pixels = images.clone().requires_grad_()
    with composite.context(model) as explained:
        hooks = [
            layer.register_forward_hook(keep(name))
            for name, layer in explained.named_modules()
            if isinstance(layer, nn.Conv2d)
        ]
        logits = explained(pixels)
        logits.backward(F.one_hot(targets, logits.shape[1]).to(logits))
        for hook in hooks:
            hook.remove()
    return {name: output.grad.sum(dim=(2, 3)) for name, output in outputs.items()}, pixels.grad
