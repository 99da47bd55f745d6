"""Arithmetic in a model's forward: sums, products and concatenations of values, numbers and parameters; averages.

Each function takes the layers in the making, the node, and the arguments of torch's function under their names; it
returns what the node stands for. Arguments that do not fit raise whatever Python raises.
"""

import operator
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx, nn

from lrp_core.graph.arrangement import Arranged, alike
from lrp_core.graph.building import Builder, NotRead
from lrp_core.graph.calls import as_parameter, operands
from lrp_core.graph.layers import ChannelScale, Concat, Product, Sum


def joined(builder: Builder, node: fx.Node, module: nn.Module, dim: int = 1) -> Arranged:
    """Return a sum, product or concatenation of all that a node reads.

    Args:
        builder: gets the layer.
        node: reads two or more values.
        module: computes it on maps, or on vectors.
        dim: of a concatenation, the dimension.
    """
    read = operands(node)
    values = [builder.values[each] for each in read]
    if not all(isinstance(value, Arranged) and len(value.axes) == len(values[0].axes) for value in values):
        raise NotRead
    dimensions = len(values[0].axes)
    if not _fit(builder, module, values, dim) or (dimensions == 2 and _mixed(builder, values)):
        for each in read:
            builder.whole(each, dimensions)
        values = [builder.values[each] for each in read]
        if not _fit(builder, module, values, dim):
            raise NotRead
    if _mixed(builder, values):
        for value in values:
            if builder.shape(value).height is None:
                builder.make_maps(value)
    shapes = [builder.shape(value) for value in values]
    largest = max(range(len(values)), key=lambda i: sum(map(len, values[i].axes)))
    shape, axes = shapes[largest], values[largest].axes
    if isinstance(module, Concat):
        known = all(each.channels is not None for each in shapes)
        shape = replace(shape, channels=sum(each.channels for each in shapes) if known else None)
        axes = (*axes[:dim], shape.axes[1], *axes[dim + 1 :])
    made = builder.emit(builder.name(node), module, tuple(builder.layer(value) for value in values), shape)
    return Arranged(made.layer, axes)


def _mixed(builder: Builder, values: list[Arranged]) -> bool:
    """Return whether some values are of layers that make maps, and others of layers that make vectors."""
    return len({builder.shape(value).height is None for value in values}) > 1


def _fit(builder: Builder, module: nn.Module, values: list[Arranged], dim: int) -> bool:
    """Return whether the layers behind some values can be joined as they are."""
    if isinstance(module, Concat):
        rest = [(*value.axes[:dim], (), *value.axes[dim + 1 :]) for value in values]
        of_channels = all(builder.channel_axis(value) == dim for value in values)
        return of_channels and all(alike(rest[0], other) for other in rest[1:])
    if isinstance(module, Product):  # a gate of one position scales all
        largest = max(values, key=lambda value: sum(map(len, value.axes)))
        return all(
            alike((a,), (b,)) or (not a and b and all(each.kind in ("h", "w") for each in b))
            for value in values
            for a, b in zip(value.axes, largest.axes, strict=True)
        )
    return all(alike(values[0].axes, value.axes) for value in values)


def _scaled(builder: Builder, node: fx.Node, value: Arranged, weight: object, bias: object = None) -> Arranged:
    """Return a value times a number or parameter, plus another; by channel, or one for all."""
    tensors = [_by_channel(builder, each, value) for each in (weight, bias) if each is not None]
    longest = max(len(tensor) for tensor in tensors)
    tensors = [tensor if len(tensor) == longest else tensor.expand(longest).clone() for tensor in tensors]
    name = builder.name(node)
    builder.emit(name, ChannelScale(*map(as_parameter, tensors)), (builder.layer(value),), builder.shape(value))
    return Arranged(name, value.axes)


def _by_channel(builder: Builder, number: object, value: Arranged) -> torch.Tensor:
    """Return a number or parameter as a tensor, (1,) or (C,)."""
    if isinstance(number, int | float):
        return builder.number(number)
    if not isinstance(number, torch.Tensor) or number.dim() > len(value.axes):
        raise NotRead
    wide = [i for i, size in enumerate(number.shape, len(value.axes) - number.dim()) if size != 1]
    if wide and wide != [builder.channel_axis(value)]:
        raise NotRead
    return number.reshape(-1)


def _cat(builder: Builder, node: fx.Node, tensors: object, dim: int = 0) -> Arranged:
    if not isinstance(tensors, tuple | list) or len(operands(node)) != len(tensors):
        raise NotRead
    return joined(builder, node, Concat(), dim % len(tensors[0].axes))


def _add(builder: Builder, node: fx.Node, input: object, other: object, *, alpha: float = 1) -> Arranged:
    if alpha != 1:
        raise NotRead
    if isinstance(input, Arranged) and isinstance(other, Arranged):
        return joined(builder, node, Sum())
    value, number = (input, other) if isinstance(input, Arranged) else (other, input)
    return _scaled(builder, node, value, 1, number)


def _sub(builder: Builder, node: fx.Node, input: object, other: object, *, alpha: float = 1) -> Arranged:
    if alpha != 1 or (isinstance(input, Arranged) and isinstance(other, Arranged)):
        raise NotRead
    if isinstance(input, Arranged):
        return _scaled(builder, node, input, 1, -other)
    return _scaled(builder, node, other, -1, input)


def _mul(builder: Builder, node: fx.Node, input: object, other: object) -> Arranged:
    if isinstance(input, Arranged) and isinstance(other, Arranged):
        return joined(builder, node, Product())
    value, number = (input, other) if isinstance(input, Arranged) else (other, input)
    return _scaled(builder, node, value, number)


def _div(builder: Builder, node: fx.Node, input: Arranged, other: object) -> Arranged:
    if not isinstance(input, Arranged):
        raise NotRead
    return _scaled(builder, node, input, 1 / other)


def _mean(
    builder: Builder, node: fx.Node, input: Arranged, dim: object = None, keepdim: bool = False, *, dtype: object = None
) -> Arranged:
    if dtype is not None:
        raise NotRead
    return _pooled(builder, node, input, nn.AdaptiveAvgPool2d(1), dim, keepdim)


def _amax(builder: Builder, node: fx.Node, input: Arranged, dim: object = (), keepdim: bool = False) -> Arranged:
    return _pooled(builder, node, input, nn.AdaptiveMaxPool2d(1), dim, keepdim)


def _pooled(builder: Builder, node: fx.Node, input: Arranged, pool: nn.Module, dim: object, keepdim: bool) -> Arranged:
    """Return an average or maximum over all positions."""
    given = list(dim) if isinstance(dim, tuple | list) else [dim]
    dims, shape = {each % len(input.axes) for each in given}, builder.shape(input)
    over = [each for i in sorted(dims) for each in input.axes[i]]
    whole = shape.height is not None and sorted(over) == sorted((*shape.height, *shape.width))
    if not dims or len(dims) < len(given) or not whole or keepdim not in (False, True):
        raise NotRead
    made = builder.emit(builder.name(node), pool, (builder.layer(input),), replace(shape, height=(), width=()))
    kept = [() if i in dims else axis for i, axis in enumerate(input.axes) if keepdim or i not in dims]
    return Arranged(made.layer, tuple(kept))


JOINS: dict[object, Callable[..., object]] = {
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    **dict.fromkeys((torch.add, operator.add, operator.iadd, "add", "add_"), _add),
    **dict.fromkeys((torch.sub, operator.sub, operator.isub, "sub", "sub_"), _sub),
    **dict.fromkeys((torch.mul, torch.multiply, operator.mul, operator.imul, "mul", "mul_"), _mul),
    **dict.fromkeys((torch.div, operator.truediv, operator.itruediv, "div", "div_"), _div),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.amax, "amax"), _amax),
}
