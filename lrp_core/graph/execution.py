"""Runs a traced network, whole or from some layer on, on one batch or on several layer by layer."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from lrp_core.graph.layers import INPUT, Layer
from lrp_core.graph.sharing import shallow_copy


def batched(images: torch.Tensor, device: torch.device, size: int = 40) -> list[dict[str, torch.Tensor]]:
    """Return images (N, C, H, W) as batches for :func:`run_together`, on a device."""
    return [{INPUT: images[i : i + size].to(device)} for i in range(0, len(images), size)]


ROOM = 3 * 2**27  # bytes that the values of the images that are run at a time may take


def bytes_of(layers: list[Layer], image: torch.Tensor) -> tuple[int, int]:
    """Return the bytes that one image (1, C, H, W) needs: of all values, and the most that are alive together."""
    total = most = 0

    def visit(layer: Layer, live: dict[str, torch.Tensor]) -> None:
        nonlocal total, most
        now = {tensor.data_ptr(): tensor.nbytes for tensor in live.values()}
        total, most = total + sum(live[name].nbytes for name in set(layer.inputs)), max(most, sum(now.values()))

    with torch.no_grad():
        run(layers, {INPUT: image}, visit)
    return total, most


def images_at_a_time(layers: list[Layer], image: torch.Tensor, copies: int) -> int:
    """Return how many images can be run at a time, 1 to 40, if so many copies of all values are kept."""
    return max(1, min(40, ROOM // (copies * max(1, bytes_of(layers, image)[0]))))


def shapes(layers: list[Layer], image: torch.Tensor) -> dict[str, torch.Size]:
    """Return the shape of each layer's output, and of the input, for one image (1, C, H, W); nothing is computed."""
    found = {INPUT: image.shape}

    def keep(layer: Layer, live: dict[str, torch.Tensor]) -> None:
        found.update({name: live[name].shape for name in layer.inputs})

    parameters = (tensor for layer in layers for tensor in layer.module.parameters())
    dtype = next((tensor.dtype for tensor in parameters), image.dtype)
    on_meta = [replace(layer, module=_without_data(layer.module)) for layer in layers]
    with torch.no_grad():
        output = run(on_meta, {INPUT: torch.empty(image.shape, dtype=dtype, device="meta")}, keep)
    return found | {layers[-1].name: output.shape}


def _without_data(module: nn.Module) -> nn.Module:
    other = shallow_copy(module)
    for tensors in (other._parameters, other._buffers):
        tensors.update({name: tensor if tensor is None else tensor.to("meta") for name, tensor in tensors.items()})
    other.training = False
    return other


def run(
    layers: list[Layer], values: dict[str, torch.Tensor], visit: Callable[[Layer, dict], None] | None = None
) -> torch.Tensor:
    """Run the layers and return the last one's output.

    Args:
        layers: a trace, or the end of one.
        values: the tensors that these layers read from outside, by name; ``{"input": images}`` for a whole trace.
        visit: called before each layer with it and all values that it or a later layer still reads.
    """
    (output,) = run_together(layers, [values], visit and (lambda layer, lives: visit(layer, lives[0])))
    return output


def run_together(
    layers: list[Layer],
    batches: list[dict[str, torch.Tensor]],
    visit: Callable[[Layer, list[dict]], None] | None = None,
) -> list[torch.Tensor]:
    """Run the layers on several batches, layer by layer, and return the last one's outputs.

    Args:
        layers: a trace, or the end of one.
        batches: of each, the tensors that these layers read from outside, by name.
        visit: called before each layer with it and, of each batch, all values that it or a later layer still reads. It
            may change the layer.
    """
    last_use = {source: i for i, layer in enumerate(layers) for source in layer.inputs}
    lives = [{name: value for name, value in values.items() if name in last_use} for values in batches]
    for i, layer in enumerate(layers):
        if visit is not None:
            visit(layer, lives)
        outputs = []
        for k, live in enumerate(lives):
            outputs.append(layer.module(*(live[source] for source in layer.inputs)))
            lives[k] = {name: value for name, value in live.items() if last_use[name] > i} | {layer.name: outputs[-1]}
            del live
    return outputs
