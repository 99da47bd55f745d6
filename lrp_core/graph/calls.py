"""Calls in a model's forward, read as modules: ``F.relu(x)`` is a ReLU, ``x.mean((2, 3))`` a global average pooling."""

import operator
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from lrp_core.graph.layers import Concat, PadChannels, SquarePool, Subsample, Sum

# The functions below take their arguments as torch's do, under the same names. They return None for what has no module.


def _flatten(input: fx.Node, start_dim: int = 0, end_dim: int = -1) -> nn.Module | None:
    return nn.Flatten(start_dim, end_dim)


def _relu(input: fx.Node, inplace: bool = False) -> nn.Module | None:
    return nn.ReLU()


def _relu6(input: fx.Node, inplace: bool = False) -> nn.Module | None:
    return nn.ReLU6()


def _dropout(input: fx.Node, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module | None:
    return nn.Identity()


def _max_pool(input: fx.Node, *args: object, **kwargs: object) -> nn.Module | None:
    return nn.MaxPool2d(*args, **kwargs)


def _avg_pool(input: fx.Node, *args: object, **kwargs: object) -> nn.Module | None:
    return nn.AvgPool2d(*args, **kwargs)


def _adaptive_avg_pool(input: fx.Node, output_size: object) -> nn.Module | None:
    return nn.AdaptiveAvgPool2d(output_size)


def _concat(tensors: object, dim: int = 0) -> nn.Module | None:
    beside = dim in (1, -3) and isinstance(tensors, tuple | list)
    return Concat() if beside and all(isinstance(tensor, fx.Node) for tensor in tensors) else None


def _add(input: object, other: object, *, alpha: float = 1) -> nn.Module | None:
    return Sum() if alpha == 1 and isinstance(input, fx.Node) and isinstance(other, fx.Node) else None


def _mean(input: fx.Node, dim: object = None, keepdim: bool = False, *, dtype: object = None) -> nn.Module | None:
    over_positions = isinstance(dim, tuple | list) and len(dim) == 2 and {*dim} in ({2, 3}, {2, -1}, {-2, 3}, {-2, -1})
    if not over_positions or keepdim not in (False, True) or dtype is not None:
        return None
    pool = nn.AdaptiveAvgPool2d(1)
    return pool if keepdim else nn.Sequential(pool, nn.Flatten())


def _pad(input: fx.Node, pad: object, mode: str = "constant", value: float | None = None) -> nn.Module | None:
    numbers = [*pad] if isinstance(pad, tuple | list) and all(isinstance(n, int) for n in pad) else []
    if len(numbers) != 6 or any(numbers[:4]) or min(numbers) < 0 or mode != "constant" or value:
        return None
    return PadChannels(*numbers[4:])


def _getitem(input: fx.Node, index: object) -> nn.Module | None:
    every = [slice(None)] * 2
    if not isinstance(index, tuple) or len(index) != 4 or [*index[:2]] != every:
        return None
    parts = [part for part in index[2:] if isinstance(part, slice) and part.start in (None, 0) and part.stop is None]
    steps = [part.step or 1 for part in parts]
    return Subsample(*steps) if len(steps) == 2 and all(isinstance(step, int) for step in steps) else None


_CALLS: dict[object, Callable[..., nn.Module | None]] = {
    torch.flatten: _flatten,
    torch.relu: _relu,
    F.relu: _relu,
    F.relu6: _relu6,
    F.dropout: _dropout,
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    torch.cat: _concat,
    torch.concat: _concat,
    torch.add: _add,
    operator.add: _add,
    operator.iadd: _add,
    torch.mean: _mean,
    F.pad: _pad,
    operator.getitem: _getitem,
    "flatten": _flatten,
    "relu": _relu,
    "relu_": _relu,
    "add": _add,
    "add_": _add,
    "mean": _mean,
}
_NUMPY = {"axis": "dim", "keepdims": "keepdim"}  # torch takes numpy's names, too


def is_size(node: object) -> bool:
    """Return whether a node is a tensor's size, or a part of it: ``x.size()``, ``x.size(0)``, ``x.shape[3]``."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size"
    if node.op != "call_function":
        return False
    return (node.target is getattr and node.args[1] == "shape") or (
        node.target is operator.getitem and is_size(node.args[0])
    )


def _dimension(node: object) -> tuple[fx.Node, int] | None:
    """Return the tensor and the dimension whose size a node is: of ``x.shape[0]``, ``x`` and 0."""
    if not is_size(node):
        return None
    if node.op == "call_method":  # x.size(0)
        index = [*node.args[1:], *node.kwargs.values()]
        return (node.args[0], index[0]) if len(index) == 1 and isinstance(index[0], int) else None
    whole, index = node.args
    if node.target is not operator.getitem or not is_size(whole) or not isinstance(index, int):
        return None
    return (whole.args[0], index)


def without_sizes(graph: fx.Graph) -> None:
    """Rewrite, in place, calls that read a size of their own input as calls that do not: views that flatten, pools.

    ``x.view(x.size(0), -1)`` and ``x.reshape(x.shape[0], -1)`` become ``x.flatten(1)``, ``F.avg_pool2d(x, x.size(3))``
    becomes :class:`lrp_core.graph.layers.SquarePool`. What reads sizes otherwise stays, and is refused as a call that
    is not known.
    """
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target in ("view", "reshape") and not node.kwargs:
            shape = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
            batch = _dimension(shape[0]) if len(shape) == 2 and shape[1] == -1 else None
            if batch is not None and batch[1] == 0:
                node.target, node.args = "flatten", (node.args[0], 1)
        elif node.op == "call_function" and node.target is F.avg_pool2d:
            kernel = [*node.args[1:], *node.kwargs.values()]
            if len(kernel) == 1 and _dimension(kernel[0]) in ((node.args[0], 3), (node.args[0], -1)):
                node.target, node.args, node.kwargs = _square_pool, node.args[:1], {}
    for node in reversed(graph.nodes):
        if is_size(node) and not node.users:
            graph.erase_node(node)


def _square_pool(input: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(input, input.size(3))


_CALLS[_square_pool] = lambda input: SquarePool()


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the values that a node reads, in the order of its arguments, each as often as it is read.

    ``node.all_input_nodes`` has ``x`` once for ``x + x``.
    """
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), lambda source: found.append(source) or source)
    return tuple(found)


def module_of_call(node: fx.Node) -> nn.Module | None:
    """Return the module that computes what a call of a function or method does; None if there is none.

    The module takes the call's :func:`operands`. A chain of modules comes as ``nn.Sequential``.
    """
    if node.op not in ("call_function", "call_method") or node.target not in _CALLS:
        return None
    kwargs = {_NUMPY.get(name, name): value for name, value in node.kwargs.items()}
    try:
        module = _CALLS[node.target](*node.args, **kwargs)
    except TypeError:  # arguments that the function above does not know
        return None
    return module if isinstance(module, Sum | Concat) or len(operands(node)) == 1 else None


def overwrites(node: fx.Node) -> bool:
    """Return whether a call of a function or method changes its first operand."""
    if node.target in (F.relu, F.relu6):
        return bool((*node.args[1:], node.kwargs.get("inplace", False))[0])
    return node.target is operator.iadd or (node.op == "call_method" and node.target.endswith("_"))


def written(node: fx.Node, name: str) -> str:
    """Return a call as it stands in the model's code, but for the names of the values."""
    arguments = [str(value) for value in node.args] + [f"{key}={value}" for key, value in node.kwargs.items()]
    return f"{name}({', '.join(arguments)})"
