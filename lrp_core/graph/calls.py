"""Calls in a model's forward, read as modules: ``F.relu(x)`` is a ReLU, ``F.conv2d(x, weight)`` a convolution.

Here are calls that compute something from one tensor, whatever its place in the network. What depends on the place
(views, sums, slices, sizes) is in :mod:`lrp_core.graph.reading`.
"""

import operator
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from lrp_core.graph.arrangement import Arranged, Size, size_of
from lrp_core.graph.layers import PadChannels, SquarePool

# The functions below take their arguments as torch's do, under the same names, tensors of parameters as tensors. They
# return None for what has no module.


def _same(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    """Return a function for an activation that the module takes the same settings for."""
    return lambda input, *args, inplace=False, **kwargs: kind(*args, **kwargs)


def _in_place_last(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    """Return the same for one without settings."""
    return lambda input, inplace=False: kind()


def _is_number(setting: object) -> bool:
    """Return whether a setting is a number; a tensor would not be saved with a module that is made of the call."""
    return isinstance(setting, int | float)


def _leaky_relu(input: Arranged, negative_slope: float = 0.01, inplace: bool = False) -> nn.Module | None:
    return nn.LeakyReLU(negative_slope) if _is_number(negative_slope) else None


def _elu(input: Arranged, alpha: float = 1.0, inplace: bool = False) -> nn.Module | None:
    return nn.ELU(alpha) if _is_number(alpha) else None


def _hardtanh(input: Arranged, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> nn.Module | None:
    if not _is_number(min_val) or not _is_number(max_val) or min_val >= max_val:
        return None
    return nn.ReLU6() if (min_val, max_val) == (0, 6) else nn.Hardtanh(min_val, max_val)


def _clamp(input: Arranged, min: float | None = None, max: float | None = None) -> nn.Module | None:
    if max is None:
        return nn.ReLU() if _is_number(min) and min == 0 else None
    return _hardtanh(input, min, max)


def _prelu(input: Arranged, weight: torch.Tensor) -> nn.Module | None:
    return _given(nn.PReLU(weight.numel(), device="meta"), weight=weight)


def _identity(input: Arranged, *args: object, **kwargs: object) -> nn.Module | None:
    return nn.Identity()


def _dropout(input: Arranged, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module | None:
    return nn.Identity()


def _pool(kind: type[nn.Module], of_all: type[nn.Module]) -> Callable[..., nn.Module | None]:
    """Return a function for a pooling; by a window of the input's own size, it pools all positions."""

    def read(input: Arranged, kernel_size: object, stride: object = None, *args: object, **kwargs: object) -> nn.Module:
        given = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,)
        if not any(isinstance(each, Size) for each in given):
            return kind(kernel_size, stride, *args, **kwargs)
        sizes = tuple(size_of(axis) for axis in input.axes[2:])
        settings = ("padding", "ceil_mode", "return_indices", "divisor_override")
        if args or stride not in (None, kernel_size) or any(kwargs.get(name) for name in settings):
            return None
        if given == sizes:
            return of_all(1)
        return SquarePool(2 + sizes.index(kernel_size)) if kind is nn.AvgPool2d and kernel_size in sizes else None

    return read


def _adaptive_avg_pool(input: Arranged, output_size: object) -> nn.Module | None:
    return nn.AdaptiveAvgPool2d(output_size)


def _adaptive_max_pool(input: Arranged, output_size: object, return_indices: bool = False) -> nn.Module | None:
    return None if return_indices else nn.AdaptiveMaxPool2d(output_size)


def _pad(input: Arranged, pad: object, mode: str = "constant", value: float | None = None) -> nn.Module | None:
    numbers = [*pad] if isinstance(pad, tuple | list) and all(isinstance(n, int) for n in pad) else [-1]
    if min(numbers) < 0 or value or len(input.axes) != 4:
        return None
    if len(numbers) == 6 and not any(numbers[:4]) and mode == "constant":
        return PadChannels(*numbers[4:])
    kinds = {"constant": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}
    return kinds[mode](tuple(numbers)) if len(numbers) == 4 and mode in kinds else None


def _interpolate(
    input: Arranged,
    size: object = None,
    scale_factor: object = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> nn.Module | None:
    given = size if isinstance(size, tuple) else (size,)
    if antialias or any(isinstance(each, Size) for each in given):
        return None
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


def _softmax(input: Arranged, dim: int | None = None, _stacklevel: int = 3, dtype: object = None) -> nn.Module | None:
    return nn.Softmax(dim) if dtype is None else None


def _log_softmax(
    input: Arranged, dim: int | None = None, _stacklevel: int = 3, dtype: object = None
) -> nn.Module | None:
    return nn.LogSoftmax(dim) if dtype is None else None


def _conv2d(
    input: Arranged,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int | Size = 1,
) -> nn.Module | None:
    channels = weight.shape[1] * groups, weight.shape[0]
    conv = nn.Conv2d(*channels, tuple(weight.shape[2:]), stride, padding, dilation, groups, device="meta")
    return _given(conv, weight=weight, bias=bias)


def _linear(input: Arranged, weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Module | None:
    return _given(nn.Linear(*reversed(weight.shape), device="meta"), weight=weight, bias=bias)


def _batch_norm(
    input: Arranged,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module | None:
    if training or running_mean is None or (weight is None) != (bias is None):
        return None
    norm = nn.BatchNorm2d(len(running_mean), eps, affine=weight is not None, device="meta")
    norm.running_mean, norm.running_var, norm.num_batches_tracked = running_mean, running_var, None
    return _given(norm.eval(), weight=weight, bias=bias)


def _layer_norm(
    input: Arranged,
    normalized_shape: object,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> nn.Module | None:
    return _given(nn.LayerNorm(normalized_shape, eps, device="meta"), weight=weight, bias=bias)


def _group_norm(
    input: Arranged,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> nn.Module | None:
    if weight is None or bias is None:
        return None
    return _given(nn.GroupNorm(num_groups, len(weight), eps, device="meta"), weight=weight, bias=bias)


def as_parameter(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a parameter if it is one, or a view of one; else without its history."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    base = tensor._base
    return nn.Parameter(tensor.detach(), base.requires_grad) if isinstance(base, nn.Parameter) else tensor.detach()


def _given(module: nn.Module, **tensors: torch.Tensor | None) -> nn.Module:
    """Give a module its parameters; they are shared with whoever else has them."""
    for name, tensor in tensors.items():
        if tensor is not None:
            tensor = as_parameter(tensor)
            tensor = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
        setattr(module, name, tensor)
    return module


_CALLS: dict[object, Callable[..., nn.Module | None]] = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, "relu", "relu_"), _in_place_last(nn.ReLU)),
    **dict.fromkeys((F.relu6,), _in_place_last(nn.ReLU6)),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"), _in_place_last(nn.Sigmoid)),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh", "tanh_"), _in_place_last(nn.Tanh)),
    F.hardsigmoid: _in_place_last(nn.Hardsigmoid),
    F.hardswish: _in_place_last(nn.Hardswish),
    F.silu: _in_place_last(nn.SiLU),
    F.mish: _in_place_last(nn.Mish),
    F.selu: _in_place_last(nn.SELU),
    F.gelu: _same(nn.GELU),
    F.softplus: _same(nn.Softplus),
    F.leaky_relu: _leaky_relu,
    F.elu: _elu,
    F.hardtanh: _hardtanh,
    **dict.fromkeys((torch.clamp, "clamp", "clamp_"), _clamp),
    **dict.fromkeys((F.prelu, torch.prelu), _prelu),
    **dict.fromkeys((F.dropout, F.dropout2d), _dropout),
    **dict.fromkeys(("contiguous", "clone", "detach", torch.clone), _identity),
    **dict.fromkeys(("float", "double", "half", "bfloat16", "to", "type", "type_as"), _identity),  # one type throughout
    F.max_pool2d: _pool(nn.MaxPool2d, nn.AdaptiveMaxPool2d),
    F.avg_pool2d: _pool(nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    F.adaptive_max_pool2d: _adaptive_max_pool,
    F.pad: _pad,
    F.interpolate: _interpolate,
    **dict.fromkeys((torch.softmax, F.softmax, "softmax"), _softmax),
    **dict.fromkeys((torch.log_softmax, F.log_softmax, "log_softmax"), _log_softmax),
    **dict.fromkeys((torch.conv2d, F.conv2d), _conv2d),
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
_NAMED = {"stochastic_depth": _identity}  # torchvision's, which need not be installed
_NUMPY = {"axis": "dim", "keepdims": "keepdim"}  # torch takes numpy's names, too


def torch_names(kwargs: dict[str, object]) -> dict[str, object]:
    """Return keyword arguments by torch's names, where numpy's were used."""
    return {_NUMPY.get(name, name): value for name, value in kwargs.items()}


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the values that a node reads, in the order of its arguments, each as often as it is read.

    ``node.all_input_nodes`` has ``x`` once for ``x + x``.
    """
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), lambda source: found.append(source) or source)
    return tuple(found)


def module_of_call(target: object, args: tuple, kwargs: dict[str, object]) -> nn.Module | None:
    """Return the module that computes what a call of a function or method does; None if there is none.

    Args:
        target: the function, or the method's name.
        args: of which the first, or the keyword ``input``, is the tensor that the module takes.
        kwargs: by name.
    """
    call = _CALLS.get(target) or _NAMED.get(getattr(target, "__name__", None))
    return None if call is None else call(*args, **kwargs)


def overwrites(node: fx.Node) -> bool:
    """Return whether a call of a function or method changes its first operand."""
    if node.op == "call_method":
        return node.target.endswith("_")
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    if "inplace" in names:
        return bool({**dict(zip(names, node.args, strict=False)), **node.kwargs}.get("inplace", False))
    return node.target in (operator.iadd, operator.imul, operator.isub, operator.itruediv, torch.relu_)


def written(node: fx.Node, name: str) -> str:
    """Return a call as it stands in the model's code, but for the names of the values."""
    arguments = [str(value) for value in node.args] + [f"{key}={value}" for key, value in node.kwargs.items()]
    return f"{name}({', '.join(arguments)})"
