"""Residual blocks: which of them a network can do without, and the network that skips some."""

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from lrp_core.graph.explicit import of_layers
from lrp_core.graph.layers import Layer, Sum, needed
from lrp_core.graph.tracing import trace
from lrp_core.utils.errors import check_choice


def identity_blocks(layers: list[Layer]) -> dict[str, tuple[str, ...]]:
    """Return the residual blocks whose shortcut is the identity, from input to output.

    Args:
        layers: a trace.

    Returns:
        By name of the sum that ends the block, the layers of its other branch, last first.
    """
    by_name, blocks = {layer.name: layer for layer in layers}, {}
    for layer in layers:
        if isinstance(layer.module, Sum) and len(layer.inputs) == 2:
            for shortcut, name in (layer.inputs, layer.inputs[::-1]):
                branch = []
                while name != shortcut and name in by_name and len(by_name[name].inputs) == 1:
                    branch.append(name)
                    (name,) = by_name[name].inputs
                if name == shortcut and branch:
                    blocks[layer.name] = tuple(branch)
    return blocks


def without_blocks(model: nn.Module, blocks: Collection[str]) -> nn.Module:
    """Return a network that skips some of its :func:`identity_blocks`; the layers that are kept keep their names.

    Args:
        model: as for :func:`lrp_core.graph.tracing.trace`; untouched, its layers are shared.
        blocks: names of the sums that end them.

    Raises:
        ValueError: there is no such block.
    """
    layers = trace(model)
    known = identity_blocks(layers)
    for block in blocks:
        check_choice("residual block", block, known)
    skipped, by_name, kept = {}, {layer.name: layer for layer in layers}, []
    for layer in layers:
        layer = replace(layer, inputs=tuple(skipped.get(name, name) for name in layer.inputs))
        if layer.name in blocks:
            branch = by_name[layer.name].inputs.index(known[layer.name][0])
            skipped[layer.name] = layer.inputs[1 - branch]
        else:
            kept.append(layer)
    return of_layers(needed(kept, skipped.get(layers[-1].name, layers[-1].name)))
