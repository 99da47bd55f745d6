"""The exits of a backbone: where it may end, and what it gives and costs there.

An exit is wherever one tensor is all that goes on, and a convolution reads it; and where the backbone ends now, which
comes last.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import INPUT, POOLING, Layer
from lrp_core.graph.tracing import trace
from lrp_core.utils.devices import device_of


def own_end(model: nn.Module) -> str:
    """Return the layer whose feature maps the head of a classifier reads: the last one before pooling and flattening.

    Args:
        model: images to logits, made of supported layers.

    Raises:
        ValueError: the head reads the maps of several layers, or of none.
    """
    layers = trace(model)
    by_name, name = {layer.name: layer for layer in layers}, layers[-1].name
    if not any(isinstance(layer.module, nn.Flatten) for layer in layers):
        return name
    flattened = False
    while name != INPUT:
        layer = by_name[name]
        if flattened and not isinstance(layer.module, POOLING):
            return name
        if len(layer.inputs) > 1:
            raise ValueError(
                f"the head reads several layers, which meet in {name!r}: early exits, budget search and "
                "intermediate features need one layer after which a network can end, so choose another method"
            )
        flattened = flattened or isinstance(layer.module, nn.Flatten)
        (name,) = layer.inputs
    raise ValueError("the head reads the images themselves: this network has no layer after which it can end")


def features_by_exit(backbone: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a head would read at each exit: by layer, its output averaged over positions, (N, C).

    Args:
        backbone: images to feature maps, made of supported layers.
        images: (N, C, H, W), normalised.
    """
    features = {}

    def keep(name: str, maps: list[torch.Tensor]) -> None:
        features[name] = torch.cat([part.mean(dim=(2, 3)) for part in maps]).cpu()

    with torch.no_grad():
        _visit_exits(backbone, images, keep)
    return features


def multiply_adds_by_exit(backbone: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Return the multiply-adds of one image (1, C, H, W) up to each exit, without a head."""
    found = {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _visit_exits(backbone, image, lambda name, _: found.update({name: counter.get_total_flops() // 2}))
    return found


def _visit_exits(backbone: nn.Module, images: torch.Tensor, visit: Callable[[str, list[torch.Tensor]], None]) -> None:
    """Run a backbone, and show what it has at each exit: the layer's name and, by batch, its feature maps."""
    layers = trace(backbone)
    first = next((layer for layer in layers if isinstance(layer.module, nn.Conv2d)), None)

    def before(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
        if isinstance(layer.module, nn.Conv2d) and layer is not first and len(lives[0]) == 1:
            visit(layer.inputs[0], [live[layer.inputs[0]] for live in lives])

    visit(layers[-1].name, run_together(layers, batched(images, device_of(backbone)), before))
