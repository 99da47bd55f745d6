"""Views in a model's forward: sizes, reshapes, permutations, slices.

Each function takes the layers in the making, the node, and the arguments of torch's function under their names; it
returns what the node stands for. Arguments that do not fit raise whatever Python raises.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from lrp_core.graph.arrangement import Arranged, Size, flattened, merged, size_of, viewed
from lrp_core.graph.building import Builder, NotRead, shape_behind
from lrp_core.graph.calls import operands
from lrp_core.graph.layers import INPUT, ChannelPermutation, ChannelSlice, Subsample


@dataclass(frozen=True)
class Parts:
    """Several slices of one tensor: what ``x.chunk(2, 1)`` returns.

    Attributes:
        whole: the node that is cut.
        axis: along which dimension.
        bounds: of each slice, where it starts and stops.
    """

    whole: fx.Node
    axis: int
    bounds: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        """Return how many."""
        return len(self.bounds)


def _size(builder: Builder, node: fx.Node, input: Arranged, dim: int | None = None) -> object:
    sizes = tuple(size_of(axis) for axis in input.axes)
    return sizes if dim is None else sizes[dim]


def _attribute(builder: Builder, node: fx.Node, input: Arranged, name: str) -> object:
    if name == "data":
        return input
    if name in ("dtype", "device"):
        return getattr(builder.parameter, name)
    if name not in ("shape", "ndim"):
        raise NotRead
    return _size(builder, node, input) if name == "shape" else len(input.axes)


def _dimensions(builder: Builder, node: fx.Node, input: Arranged) -> int:
    return len(input.axes)


def _several(given: tuple) -> list:
    """Return arguments that may come as one tuple: of ``x.view(2, 3)`` and ``x.view((2, 3))``."""
    return list(given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given)


def _view(builder: Builder, node: fx.Node, input: Arranged, *shape: object) -> Arranged:
    sizes = _several(shape)
    axes = viewed(input.axes, sizes) if sizes and all(isinstance(each, int | Size) for each in sizes) else None
    if axes is None:
        raise NotRead
    return Arranged(input.layer, axes)


def _reshape(builder: Builder, node: fx.Node, input: Arranged, shape: object) -> Arranged:
    return _view(builder, node, input, shape)


def _flatten(builder: Builder, node: fx.Node, input: Arranged, start_dim: int = 0, end_dim: int = -1) -> Arranged:
    return Arranged(input.layer, flattened(input.axes, start_dim, end_dim))


def _permute(builder: Builder, node: fx.Node, input: Arranged, *dims: object) -> Arranged:
    dims = _several(dims)
    if sorted(dim % len(input.axes) for dim in dims) != list(range(len(input.axes))):
        raise NotRead
    return Arranged(input.layer, tuple(input.axes[dim] for dim in dims))


def _transpose(builder: Builder, node: fx.Node, input: Arranged, dim0: int, dim1: int) -> Arranged:
    axes = list(input.axes)
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return Arranged(input.layer, tuple(axes))


def _is_one(axis: tuple) -> bool:
    """Return whether a dimension has, or must have, since the code says so, the size 1."""
    return all(each.kind in ("h", "w") and each.size is None for each in axis)


def _squeeze(builder: Builder, node: fx.Node, input: Arranged, dim: object = None) -> Arranged:
    if dim is None and any(axis and _is_one(axis) for axis in input.axes):
        raise NotRead
    dims = range(len(input.axes)) if dim is None else _several((dim,))
    gone = {each % len(input.axes) for each in dims if _is_one(input.axes[each])}
    if dim is not None and len(gone) < len(dims):
        raise NotRead
    return Arranged(input.layer, tuple(axis for i, axis in enumerate(input.axes) if i not in gone))


def _unsqueeze(builder: Builder, node: fx.Node, input: Arranged, dim: int) -> Arranged:
    dim %= len(input.axes) + 1
    return Arranged(input.layer, (*input.axes[:dim], (), *input.axes[dim:]))


def _expand(builder: Builder, node: fx.Node, input: Arranged, *sizes: object) -> Arranged:
    """Read an expansion as nothing: the product that reads it expands by itself."""
    products = (torch.mul, torch.multiply, operator.mul, operator.imul, "mul", "mul_")
    for user in node.users:
        others = [each for each in operands(user) if each is not node]
        if user.target not in products or not all(isinstance(builder.values.get(each), Arranged) for each in others):
            raise NotRead
    if not node.users or any(len(operands(user)) < 2 for user in node.users):
        raise NotRead
    return input


def unflattened(value: Arranged, module: nn.Unflatten) -> Arranged:
    """Return a value behind ``nn.Unflatten``."""
    if not isinstance(module.dim, int) or not all(isinstance(each, int) for each in module.unflattened_size):
        raise NotRead
    dim = module.dim % len(value.axes)
    axes = viewed((value.axes[dim],), list(module.unflattened_size))
    if axes is None:
        raise NotRead
    return Arranged(value.layer, (*value.axes[:dim], *axes, *value.axes[dim + 1 :]))


def shuffled(value: Arranged, module: nn.ChannelShuffle) -> Arranged:
    """Return a value behind ``nn.ChannelShuffle``."""
    channels = size_of(value.axes[1])
    apart = viewed((value.axes[1],), [module.groups, channels // module.groups]) if isinstance(channels, int) else None
    if apart is None:
        raise NotRead
    return Arranged(value.layer, (value.axes[0], merged(apart[1] + apart[0]), *value.axes[2:]))


def _getitem(builder: Builder, node: fx.Node, input: object, index: object) -> object:
    if isinstance(input, Parts):
        return _slice(builder, node, input.whole, input.axis, *input.bounds[index])
    if not isinstance(input, Arranged):
        return input[index]
    (source, *_), value, kept, steps = operands(node), input, [], [1, 1]
    for axis, each in _by_axis(input, index):
        if each is None:
            kept.append(None)
        elif isinstance(each, int):
            if value.axes[axis] or each not in (0, -1):
                value = _part(builder, node, source, axis, slice(each, each + 1 or None))
        elif isinstance(each, tuple | list):
            kept.append(axis)
            value = _reordered(builder, node, source, axis, [*each])
        elif isinstance(each, slice):
            kept.append(axis)
            if each.step in (None, 1) and each != slice(None):
                value = _part(builder, node, source, axis, each)
            elif each != slice(None):
                if axis not in (2, 3) or each.start not in (None, 0) or each.stop is not None:
                    raise NotRead
                steps[axis - 2] = each.step
        else:
            raise NotRead
    if steps != [1, 1]:
        if value is not input or not all(isinstance(step, int) for step in steps):
            raise NotRead
        below, shape = builder.whole(source, 4)
        name, module = builder.unused(node), Subsample(*steps)
        value = builder.emit(name, module, (below,), shape_behind(name, module, shape))
    return Arranged(value.layer, tuple(() if i is None else value.axes[i] for i in kept))


def _by_axis(value: Arranged, index: object) -> list[tuple[int, object]]:
    """Return an index by dimension, with the dimension that each part of it stands for; None inserts one."""
    index = list(index) if isinstance(index, tuple) else [index]
    n_given = sum(each is not None and each is not Ellipsis for each in index)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    index = index[:at] + [slice(None)] * (len(value.axes) - n_given) + index[at + 1 :]
    axes = [sum(each is not None for each in index[:i]) for i in range(len(index))]
    return list(zip(axes, index, strict=True))


def _part(builder: Builder, node: fx.Node, source: fx.Node, axis: int, which: slice) -> Arranged:
    value = builder.values[source]
    size = size_of(value.axes[axis])
    if isinstance(size, int) and value.layer != INPUT:  # how many channels images have may be a guess
        return _slice(builder, node, source, axis, *which.indices(size)[:2])
    if not isinstance(which.start, int) or not isinstance(which.stop, int) or which.start < 0:
        raise NotRead
    return _slice(builder, node, source, axis, which.start, which.stop)


def _slice(builder: Builder, node: fx.Node, source: fx.Node, axis: int, start: int, stop: int) -> Arranged:
    """Return some channels of a value."""
    if axis == 0 or start >= stop:
        raise NotRead
    layer = builder.in_order(source, axis)
    value = builder.values[source]
    if builder.channel_axis(value) != axis:
        raise NotRead
    shape = replace(builder.shape(value), channels=stop - start)
    made = builder.emit(builder.unused(node), ChannelSlice(start, stop), (layer,), shape)
    return Arranged(made.layer, (*value.axes[:axis], shape.axes[1], *value.axes[axis + 1 :]))


def _reordered(builder: Builder, node: fx.Node, source: fx.Node, axis: int, index: list[int]) -> Arranged:
    """Return all channels of a value in another order, as of ``x[:, [2, 1, 0]]``."""
    layer = builder.in_order(source, axis)
    value = builder.values[source]
    if builder.channel_axis(value) != axis or sorted(index) != list(range(builder.shape(value).channels or 0)):
        raise NotRead("(only of all channels, each once)")
    name, module = builder.unused(node), ChannelPermutation(torch.tensor(index))
    made = builder.emit(name, module, (layer,), builder.shape(value))
    return Arranged(made.layer, value.axes)


def _flip(builder: Builder, node: fx.Node, input: Arranged, *given: int, dims: object = ()) -> Arranged:
    (axis,) = _several(given or dims)
    axis %= len(input.axes)
    return _reordered(builder, node, operands(node)[0], axis, [*range(size_of(input.axes[axis]))][::-1])


def _chunk(builder: Builder, node: fx.Node, input: Arranged, chunks: int, dim: int = 0) -> Parts:
    size = size_of(input.axes[dim])
    return _split(builder, node, input, -(-size // chunks), dim)


def _split(builder: Builder, node: fx.Node, tensor: Arranged, split_size: object, dim: int = 0) -> Parts:
    size = size_of(tensor.axes[dim])
    if not isinstance(size, int) or tensor.layer == INPUT:
        raise NotRead
    if isinstance(split_size, int):
        whole, rest = divmod(size, split_size)
        split_size = [split_size] * whole + [rest] * (rest > 0)
    ends = [sum(split_size[: i + 1]) for i in range(len(split_size))]
    bounds = tuple(zip([0, *ends[:-1]], ends, strict=True))
    return Parts(operands(node)[0], dim % len(tensor.axes), bounds)


VIEWS: dict[object, Callable[..., object]] = {
    "size": _size,
    getattr: _attribute,
    "dim": _dimensions,
    **dict.fromkeys(("view", "reshape"), _view),
    torch.reshape: _reshape,
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.transpose, torch.swapaxes, "transpose", "swapaxes"), _transpose),
    **dict.fromkeys((torch.squeeze, "squeeze"), _squeeze),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), _unsqueeze),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    operator.getitem: _getitem,
    **dict.fromkeys((torch.flip, "flip"), _flip),
    **dict.fromkeys((torch.chunk, "chunk"), _chunk),
    **dict.fromkeys((torch.split, "split"), _split),
}
