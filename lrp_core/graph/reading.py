"""Reads the nodes of a traced forward, one after the other, and makes the list of layers of them."""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from lrp_core.graph.arrangement import (
    BATCH,
    Arranged,
    Axes,
    Axis,
    Part,
    Size,
    alike,
    flattened,
    merged,
    order,
    part,
    size_of,
    viewed,
)
from lrp_core.graph.calls import as_parameter, module_of_call, operands, overwrites, torch_names, written
from lrp_core.graph.layers import (
    ACTIVATIONS,
    IDENTITIES,
    INPUT,
    OUTPUTS,
    PADDING,
    POOLING,
    STATEFUL,
    SUPPORTED,
    ChannelConv,
    ChannelNorm,
    ChannelPermutation,
    ChannelScale,
    ChannelSlice,
    Concat,
    Layer,
    PadChannels,
    Product,
    Subsample,
    Sum,
)


@dataclass(frozen=True)
class _Maps:
    """The shape of a layer's outputs.

    Attributes:
        channels: how many; None if that is not known.
        height, width: as dimensions; None for vectors.
    """

    channels: int | None
    height: Axis | None
    width: Axis | None

    @property
    def axes(self) -> Axes:
        """Its dimensions: (N, C, H, W), or (N, C) of vectors."""
        first = ((BATCH,), part("c", self.channels, "channels"))
        return first if self.height is None else (*first, self.height, self.width)


@dataclass(frozen=True)
class _Parts:
    """Several tensors side by side in one: what ``x.chunk(2, 1)`` returns."""

    whole: fx.Node
    axis: int
    bounds: tuple[tuple[int, int], ...]


class _NotRead(Exception):
    """A node whose computation has no layer."""


class Reader:
    """Makes layers of nodes.

    Attributes:
        layers: by name, in the order in which they run.
        values: by node, what it stands for: a rearranged layer's output, a size, a number, a parameter's tensor.
        shares: nodes whose value lies in the memory of their first operand.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph):
        """Take a model, and the graph of its forward."""
        self._model, self.layers = model, {}
        self.values: dict[fx.Node, object] = {}
        self.shares: set[fx.Node] = set()
        self._shapes = {INPUT: _Maps(None, part("h", None, INPUT), part("w", None, INPUT))}
        self._replaced: dict[str, str] = {}  # flattenings that are gone, since their vectors are maps after all
        self._modules = dict(model.named_modules())
        self._uses: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self._uses.setdefault(node.target, []).append(node)
        settings = next((tensor for tensor in model.parameters()), torch.zeros(0))
        self._like = settings.dtype, settings.device

    def input(self, node: fx.Node) -> None:
        """Take a node as the network's input."""
        self.values[node] = Arranged(INPUT, self._shapes[INPUT].axes)

    def read(self, node: fx.Node) -> None:
        """Read one node, which stands behind all those that it reads.

        Raises:
            ValueError: it has no layer.
        """
        n_layers = len(self.layers)
        try:
            self.values[node] = self._value(node)
        except _NotRead as error:
            name, kind = self.name(node), getattr(node.target, "__name__", node.target)
            if node.op == "call_module":
                kind = type(self._modules[node.target]).__name__
                plain = node.args == operands(node) and len(node.args) == 1
                kind = str(error) or (kind if plain else written(node, kind))
            else:
                kind = written(node, kind)
            raise unsupported(name, kind) from None
        whole = operands(node)[0] if operands(node) else None
        if isinstance(self.values.get(whole), Arranged | _Parts) and not isinstance(self.values[node], Size | int | tuple):
            made = [*self.layers.values()][n_layers:]
            if all(isinstance(layer.module, nn.Flatten | Subsample | ChannelSlice) for layer in made):
                self.shares.add(node)

    def layer_of(self, node: fx.Node) -> str | None:
        """Return the layer that makes a node's value; None if the value is no tensor of this network."""
        value = self.values[node]
        return self._resolved(value.layer) if isinstance(value, Arranged) else None

    def output(self, node: fx.Node) -> str:
        """Return the layer that makes the network's output.

        Raises:
            ValueError: there is none that does.
        """
        value = self.values[node]
        try:
            return self._whole(node, len(value.axes)) if isinstance(value, Arranged) else ""
        except _NotRead:
            return ""

    def name(self, node: fx.Node) -> str:
        """Return the name for a layer that a node makes."""
        if node.op == "call_module":
            uses = self._uses[node.target]
            return node.target + (f"_{uses.index(node)}" if node is not uses[0] else "")
        return f"{node.name}_call" if node.op != "get_attr" and hasattr(self._model, node.name) else node.name

    # What a node stands for

    def _value(self, node: fx.Node) -> object:
        if node.op == "get_attr":
            value = self._model
            for name in node.target.split("."):
                value = getattr(value, name)
            return value
        read = operands(node)
        if any(isinstance(self.values[each], Arranged | _Parts) for each in read):
            return self._of_module(node) if node.op == "call_module" else self._of_call(node)
        if node.op == "call_module":
            raise _NotRead
        args, kwargs = self._known(node)
        try:  # sizes, numbers, and what is computed of parameters alone
            with torch.no_grad():
                if node.op == "call_method":
                    return getattr(args[0], node.target)(*args[1:], **kwargs)
                return node.target(*args, **kwargs)
        except Exception:
            raise _NotRead from None

    def _known(self, node: fx.Node) -> tuple[tuple, dict[str, object]]:
        """Return a node's arguments with the values of the nodes among them."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: _Box(self.values[each]))
        return _unboxed(args), torch_names(_unboxed(kwargs))

    def _of_call(self, node: fx.Node) -> object:
        args, kwargs = self._known(node)
        reading = _READINGS.get(node.target)
        if reading is not None:
            try:
                return reading(self, node, *args, **kwargs)
            except (TypeError, IndexError):  # arguments that the function does not know
                raise _NotRead from None
        module = module_of_call(node.target, args, kwargs)
        tensors = [each for each in operands(node) if isinstance(self.values[each], Arranged)]
        if module is None or len(tensors) != 1:
            raise _NotRead
        owner = next((each for each in operands(node) if isinstance(self.values[each], torch.Tensor)), None)
        return self._applied(node, module, tensors[0], self.name(node) if owner is None else self._owner(owner, node))

    def _owner(self, node: fx.Node, user: fx.Node) -> str:
        """Return the name of the module that a parameter belongs to, for the layer that is made of it."""
        while node.op != "get_attr":
            node = next(iter(node.all_input_nodes))
        name = node.target.rpartition(".")[0]
        return name if name and name not in self.layers else self.name(user)

    def _of_module(self, node: fx.Node) -> object:
        module, read = self._modules[node.target], operands(node)
        if isinstance(module, Sum | Product | Concat) and len(node.args) == len(read):
            return self._joined(node, module, read)
        if len(read) != 1 or len(node.args) + len(node.kwargs) != 1 or not isinstance(self.values[read[0]], Arranged):
            raise _NotRead
        return self._applied(node, module, read[0], self.name(node))

    def _applied(self, node: fx.Node, module: nn.Module, read: fx.Node, name: str) -> object:
        """Return what a module makes of one tensor."""
        value, module = self.values[read], _as_it_predicts(name, module)
        if isinstance(module, IDENTITIES):
            return value
        if isinstance(module, nn.Flatten):
            return Arranged(value.layer, flattened(value.axes, module.start_dim, module.end_dim))
        if isinstance(module, nn.Unflatten):
            return self._unflattened(value, module)
        if isinstance(module, nn.ChannelShuffle):
            return self._shuffled(read, module)
        if isinstance(module, nn.Linear):
            return self._dense(name, module, read)
        if isinstance(module, nn.LayerNorm):
            return self._layer_norm(name, module, read)
        if isinstance(module, nn.Conv1d):
            return self._conv_of_channels(name, module, read)
        if isinstance(module, OUTPUTS):
            source = self._whole(read, 2)
            if module.dim not in (1, -1) or any(user.op != "output" for user in node.users):
                raise _NotRead(f"{type(module).__name__}, other than over the classes at the network's end")
            return self._emit(name, module, (source,), self._shapes[source])
        if isinstance(module, ACTIVATIONS) and not (isinstance(module, nn.PReLU) and module.num_parameters > 1):
            source = self._resolved(value.layer)
            self._emit(name, module, (source,), self._shapes[source])
            return Arranged(name, value.axes)
        dimensions = 4 if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, *POOLING, *PADDING)) else len(value.axes)
        source = self._whole(read, dimensions)
        return self._emit(name, module, (source,), self._shape_behind(name, module, self._shapes[source]))

    def _shape_behind(self, name: str, module: nn.Module, before: _Maps) -> _Maps:
        channels, height, width = before.channels, before.height, before.width
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels
        elif isinstance(module, ChannelSlice):
            channels = module.stop - module.start
        elif isinstance(module, PadChannels) and channels is not None:
            channels += module.before + module.behind
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1)
        if pointwise and module.padding in ((0, 0), "same", "valid"):
            return _Maps(channels, height, width)
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            size = module.output_size
            size = size if isinstance(size, tuple | list) else (size, size)
            height = height if size[0] is None else part("h", size[0])
            width = width if size[1] is None else part("w", size[1])
        elif isinstance(module, (nn.Conv2d, *POOLING, *PADDING, Subsample)):
            height, width = part("h", None, name), part("w", None, name)
        return _Maps(channels, height, width)

    # Layers

    def _emit(self, name: str, module: nn.Module, inputs: tuple[str, ...], shape: _Maps) -> Arranged:
        """Add a layer."""
        if name in self.layers:
            raise ValueError(f"layer {name!r} is used twice; give each use a module of its own")
        self.layers[name], self._shapes[name] = Layer(name, module, inputs), shape
        return Arranged(name, shape.axes)

    def _unused(self, name: str) -> str:
        n = 1
        while (candidate := f"{name}.{n}" if name in self.layers else name) in self.layers:
            n += 1
        return candidate

    def _resolved(self, layer: str) -> str:
        while layer in self._replaced:
            layer = self._replaced[layer]
        return layer

    def _whole(self, node: fx.Node, dimensions: int) -> str:
        """Return the layer that makes a node's value as maps (4 dimensions) or vectors (2), rearranged where needed."""
        value = self.values[node]
        if not isinstance(value, Arranged) or dimensions not in (2, 4) or len(value.axes) != dimensions:
            raise _NotRead
        name = self._resolved(value.layer)
        if dimensions == 4 and self._shapes[name].height is None:
            self._make_maps(name)
            name = self._resolved(name)
        shape = self._shapes[name]
        positions = (*(shape.height or ()), *(shape.width or ()))
        behind = value.axes[1][len([each for each in value.axes[1] if each.kind == "c"]) :]
        channels = value.axes[1][: len(value.axes[1]) - len(behind)]
        found = (*behind, *(each for axis in value.axes[2:] for each in axis))
        if dimensions == 4 and (behind or any(a not in (b, ()) for a, b in zip(value.axes[2:], shape.axes[2:], strict=True))):
            raise _NotRead
        if value.axes[0] != (BATCH,) or any(each.kind not in ("h", "w") for each in behind):
            raise _NotRead
        if found != positions and (found or any(each.size is not None for each in positions)):
            raise _NotRead
        if channels != shape.axes[1]:
            index = order(channels)
            if index is None or len(index) != shape.channels:
                raise _NotRead
            other = self._unused(self.name(node))
            self._emit(other, ChannelPermutation(index), (name,), shape)
            name = other
        if dimensions == 2 and shape.height is not None:
            sizes = [size_of(axis) for axis in (shape.axes[1], shape.height, shape.width)]
            known = all(isinstance(size, int) for size in sizes)
            other = self._unused(self.name(node))
            features = sizes[0] * sizes[1] * sizes[2] if known else None
            self._emit(other, nn.Flatten(), (name,), _Maps(features, None, None))
            name = other
        self.values[node] = Arranged(name, self._shapes[name].axes)
        return name

    def _make_maps(self, name: str) -> None:
        """Make maps with one position of a layer's vectors, and of all vectors that it is made of."""
        layer = self.layers[name]
        if isinstance(layer.module, nn.Flatten):
            shape = self._shapes[layer.inputs[0]]
            if any(each.size is not None for each in (*shape.height, *shape.width)):
                raise _NotRead
            self._replaced[name] = layer.inputs[0]
            del self.layers[name]
            for other in self.layers.values():
                if name in other.inputs:
                    inputs = tuple(layer.inputs[0] if each == name else each for each in other.inputs)
                    self.layers[other.name] = replace(other, inputs=inputs)
            return
        if isinstance(layer.module, (nn.BatchNorm2d, *OUTPUTS)) or INPUT in layer.inputs:
            raise _NotRead
        for source in layer.inputs:
            if self._shapes[self._resolved(source)].height is None:
                self._make_maps(source)
        layer = self.layers[name]
        if isinstance(layer.module, nn.Linear):
            self.layers[name] = replace(layer, module=_pointwise(layer.module))
        self._shapes[name] = _Maps(self._shapes[name].channels, (), ())

    def _dense(self, name: str, module: nn.Linear, read: fx.Node) -> Arranged:
        """Read a dense layer: on vectors it is one, on the channels of maps a convolution with a kernel of 1 x 1."""
        value = self.values[read]
        if len(value.axes) == 2:
            source = self._whole(read, 2)
            return self._emit(name, module, (source,), _Maps(module.out_features, None, None))
        source = self._in_order(read, -1)
        if self._shapes[source].height is None:
            self._make_maps(source)
            source = self._resolved(source)
        shape = replace(self._shapes[source], channels=module.out_features)
        self._emit(name, _pointwise(module), (source,), shape)
        return Arranged(name, (*self.values[read].axes[:-1], shape.axes[1]))

    def _in_order(self, read: fx.Node, axis: int) -> str:
        """Return the layer that makes maps whose channels are, in their order, a dimension of a node's value."""
        value = self.values[read]
        name, axis = self._resolved(value.layer), axis % len(value.axes)
        shape = self._shapes[name]
        if value.axes[axis] == shape.axes[1]:
            return name
        index = order(value.axes[axis])
        if index is None or len(index) != shape.channels:
            raise _NotRead
        other = self._unused(self.name(read))
        self._emit(other, ChannelPermutation(index), (name,), shape)
        self.values[read] = Arranged(other, (*value.axes[:axis], shape.axes[1], *value.axes[axis + 1 :]))
        return other

    def _layer_norm(self, name: str, module: nn.LayerNorm, read: fx.Node) -> Arranged:
        if len(module.normalized_shape) != 1:
            raise _NotRead(f"LayerNorm over {len(module.normalized_shape)} dimensions (only over the channels)")
        norm = ChannelNorm(module.weight, module.bias, module.eps)
        if len(self.values[read].axes) == 2 and self._shapes[self._resolved(self.values[read].layer)].height is None:
            source = self._whole(read, 2)
            return self._emit(name, norm, (source,), self._shapes[source])
        source = self._in_order(read, -1)
        self._emit(name, norm, (source,), self._shapes[source])
        return Arranged(name, self.values[read].axes)

    def _conv_of_channels(self, name: str, module: nn.Conv1d, read: fx.Node) -> Arranged:
        """Read a convolution along the channels of a pooled map."""
        value, (size,) = self.values[read], module.kernel_size
        source = self._resolved(value.layer)
        shape = self._shapes[source]
        alone = module.in_channels == module.out_channels == 1 and module.stride == module.dilation == (1,)
        same = size % 2 == 1 and module.padding in ((size // 2,), "same") and module.padding_mode == "zeros"
        if not alone or not same or value.axes != ((BATCH,), (), shape.axes[1]) or shape.channels is None:
            raise _NotRead("Conv1d, other than along the channels with as many outputs")
        weight, bias = nn.Parameter(module.weight.detach().view(-1), module.weight.requires_grad), module.bias
        conv = ChannelConv(weight, bias, shape.channels)
        self._emit(name, conv, (source,), shape)
        return Arranged(name, value.axes)

    # Views

    def _size(self, node: fx.Node, input: Arranged, dim: int | None = None) -> object:
        sizes = tuple(size_of(axis) for axis in input.axes)
        return sizes if dim is None else sizes[dim]

    def _attribute(self, node: fx.Node, input: Arranged, name: str) -> object:
        if name not in ("shape", "ndim"):
            raise _NotRead
        return self._size(node, input) if name == "shape" else len(input.axes)

    def _dimensions(self, node: fx.Node, input: Arranged) -> int:
        return len(input.axes)

    def _view(self, node: fx.Node, input: Arranged, *shape: object) -> Arranged:
        sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else list(shape)
        axes = viewed(input.axes, sizes) if all(isinstance(each, int | Size) for each in sizes) else None
        if axes is None:
            raise _NotRead
        return Arranged(input.layer, axes)

    def _reshape(self, node: fx.Node, input: Arranged, shape: object) -> Arranged:
        return self._view(node, input, shape)

    def _unflattened(self, value: Arranged, module: nn.Unflatten) -> Arranged:
        dim, sizes = module.dim % len(value.axes), module.unflattened_size
        if not isinstance(dim, int) or not all(isinstance(each, int) for each in sizes):
            raise _NotRead
        axes = viewed((value.axes[dim],), list(sizes))
        if axes is None:
            raise _NotRead
        return Arranged(value.layer, (*value.axes[:dim], *axes, *value.axes[dim + 1 :]))

    def _flatten(self, node: fx.Node, input: Arranged, start_dim: int = 0, end_dim: int = -1) -> Arranged:
        return Arranged(input.layer, flattened(input.axes, start_dim, end_dim))

    def _permute(self, node: fx.Node, input: Arranged, *dims: object) -> Arranged:
        dims = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
        if sorted(dim % len(input.axes) for dim in dims) != list(range(len(input.axes))):
            raise _NotRead
        return Arranged(input.layer, tuple(input.axes[dim] for dim in dims))

    def _transpose(self, node: fx.Node, input: Arranged, dim0: int, dim1: int) -> Arranged:
        axes = list(input.axes)
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
        return Arranged(input.layer, tuple(axes))

    def _squeeze(self, node: fx.Node, input: Arranged, dim: object = None) -> Arranged:
        dims = range(len(input.axes)) if dim is None else dim if isinstance(dim, tuple | list) else (dim,)
        dims = {each % len(input.axes) for each in dims}
        empty = {i for i in dims if not input.axes[i] or (dim is not None and input.axes[i][0].kind in ("h", "w"))}
        if dim is not None and empty != dims:
            raise _NotRead
        return Arranged(input.layer, tuple(axis for i, axis in enumerate(input.axes) if i not in empty))

    def _unsqueeze(self, node: fx.Node, input: Arranged, dim: int) -> Arranged:
        dim %= len(input.axes) + 1
        return Arranged(input.layer, (*input.axes[:dim], (), *input.axes[dim:]))

    def _expanded(self, node: fx.Node, input: Arranged, *sizes: object) -> Arranged:
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
        return self._expanded_as(node, input, sizes)

    def _expanded_as(self, node: fx.Node, input: Arranged, other: object) -> Arranged:
        """Read an expansion as nothing: the product that reads it expands by itself."""
        users = set(node.users)
        if not users or any(_READINGS.get(user.target) not in (Reader._mul, Reader._imul) for user in users):
            raise _NotRead
        return input

    def _shuffled(self, read: fx.Node, module: nn.ChannelShuffle) -> Arranged:
        value = self.values[read]
        channels = size_of(value.axes[1])
        if not isinstance(channels, int):
            raise _NotRead
        apart = viewed((value.axes[1],), [module.groups, channels // module.groups])
        if apart is None:
            raise _NotRead
        return Arranged(value.layer, (value.axes[0], merged(apart[1] + apart[0]), *value.axes[2:]))

    # Slices

    def _getitem(self, node: fx.Node, input: object, index: object) -> object:
        if isinstance(input, _Parts):
            start, stop = input.bounds[index]
            return self._sliced(node, input.whole, input.axis, start, stop)
        if not isinstance(input, Arranged):
            return input[index]
        index = list(index) if isinstance(index, tuple) else [index]
        n_given = sum(each is not None and each is not Ellipsis for each in index)
        rest = [slice(None)] * (len(input.axes) - n_given)
        at = index.index(Ellipsis) if Ellipsis in index else len(index)
        index = index[:at] + rest + index[at + 1 :]
        steps, source, axis, kept = {}, operands(node)[0], 0, []
        value = input
        for each in index:
            if each is None:
                kept.append(None)
                continue
            of_channels = value.axes[axis] == self._shapes[self._resolved(value.layer)].axes[1] and axis > 0
            if isinstance(each, int) and not isinstance(each, bool):
                if of_channels and value.axes[axis]:
                    each = each % size_of(value.axes[axis]) if isinstance(size_of(value.axes[axis]), int) else each
                    value = self._sliced(node, source, axis, each, each + 1)
                elif each not in (0, -1) or any(p.kind not in ("h", "w") or p.size is not None for p in value.axes[axis]):
                    raise _NotRead
                elif value.axes[axis]:
                    raise _NotRead
            elif isinstance(each, slice):
                kept.append(axis)
                if each != slice(None):
                    start, stop, step = each.start, each.stop, each.step
                    if of_channels and step in (None, 1):
                        size = size_of(value.axes[axis])
                        if not isinstance(size, int) and (start is None or stop is None or min(start, stop) < 0):
                            raise _NotRead
                        bounds = slice(start, stop).indices(size)[:2] if isinstance(size, int) else (start, stop)
                        value = self._sliced(node, source, axis, *bounds)
                    elif axis >= 2 and start in (None, 0) and stop is None and isinstance(step, int | None):
                        steps[axis] = step or 1
                    else:
                        raise _NotRead
            else:
                raise _NotRead
            axis += 1
        if steps:
            if len(value.axes) != 4 or value is not input:
                raise _NotRead
            below, name = self._whole(source, 4), self._unused(self.name(node))
            module = Subsample(steps.get(2, 1), steps.get(3, 1))
            value = self._emit(name, module, (below,), self._shape_behind(name, module, self._shapes[below]))
        return Arranged(value.layer, tuple(() if i is None else value.axes[i] for i in kept))

    def _sliced(self, node: fx.Node, source: fx.Node, axis: int, start: int, stop: int) -> Arranged:
        """Return some channels of a value."""
        layer = self._in_order(source, axis)
        value, shape = self.values[source], self._shapes[layer]
        if start >= stop:
            raise _NotRead
        name, shape = self._unused(self.name(node)), replace(shape, channels=stop - start)
        self._emit(name, ChannelSlice(start, stop), (layer,), shape)
        return Arranged(name, (*value.axes[:axis], shape.axes[1], *value.axes[axis + 1 :]))

    def _chunk(self, node: fx.Node, input: Arranged, chunks: int, dim: int = 0) -> _Parts:
        size = size_of(input.axes[dim])
        return self._split(node, input, -(-size // chunks) if isinstance(size, int) else None, dim)

    def _split(self, node: fx.Node, tensor: Arranged, split_size: object, dim: int = 0) -> _Parts:
        size, dim = size_of(tensor.axes[dim]), dim % len(tensor.axes)
        if not isinstance(size, int):
            raise _NotRead
        if isinstance(split_size, int):
            whole, rest = divmod(size, split_size)
            split_size = [split_size] * whole + [rest] * (rest > 0)
        ends = [sum(split_size[: i + 1]) for i in range(len(split_size))]
        return _Parts(operands(node)[0], dim, tuple(zip([0, *ends[:-1]], ends, strict=True)))

    # Several values

    def _joined(self, node: fx.Node, module: nn.Module, read: tuple[fx.Node, ...], dim: int = 1) -> Arranged:
        """Return a sum, product or concatenation."""
        values = [self.values[each] for each in read]
        if not all(isinstance(value, Arranged) and len(value.axes) == len(values[0].axes) for value in values):
            raise _NotRead
        if not self._fit(module, values, dim):
            for each in read:
                self._whole(each, len(values[0].axes))
            values = [self.values[each] for each in read]
            if not self._fit(module, values, dim):
                raise _NotRead
        shapes = [self._shapes[self._resolved(value.layer)] for value in values]
        if len({shape.height is None for shape in shapes}) > 1:  # vectors and maps
            for value, shape in zip(values, shapes, strict=True):
                if len(value.axes) > 2 and shape.height is None:
                    self._make_maps(self._resolved(value.layer))
            if len(values[0].axes) == 2:
                for each in read:
                    self._whole(each, 2)
            values = [self.values[each] for each in read]
            shapes = [self._shapes[self._resolved(value.layer)] for value in values]
        inputs = tuple(self._resolved(value.layer) for value in values)
        largest = max(range(len(values)), key=lambda i: sum(map(len, values[i].axes)))
        shape, axes = shapes[largest], values[largest].axes
        if isinstance(module, Concat):
            known = all(each.channels is not None for each in shapes)
            shape = replace(shape, channels=sum(each.channels for each in shapes) if known else None)
            axes = (*axes[:dim], shape.axes[1], *axes[dim + 1 :])
        elif shape.channels is None:
            shape = replace(shape, channels=next((each.channels for each in shapes if each.channels), None))
            axes = shape.axes if axes == shapes[largest].axes else axes
        self._emit(self.name(node), module, inputs, shape)
        return Arranged(self.name(node), axes)

    def _fit(self, module: nn.Module, values: list[Arranged], dim: int) -> bool:
        """Return whether the layers behind some values can be joined as they are."""
        if isinstance(module, Concat):
            channels = [self._shapes[self._resolved(value.layer)].axes[1] for value in values]
            whole = all(value.axes[dim] == of for value, of in zip(values, channels, strict=True))
            axes = [(*value.axes[:dim], (), *value.axes[dim + 1 :]) for value in values]
            return whole and dim > 0 and all(alike(axes[0], other) for other in axes[1:])
        largest = max(values, key=lambda value: sum(map(len, value.axes)))
        if isinstance(module, Product):  # a gate of one position scales all
            return all(
                all(
                    alike((a,), (b,)) or (not a and b and all(each.kind in ("h", "w") for each in b))
                    for a, b in zip(value.axes, largest.axes, strict=True)
                )
                for value in values
            )
        return all(alike(values[0].axes, value.axes) for value in values)

    def _cat(self, node: fx.Node, tensors: object, dim: int = 0) -> Arranged:
        read = operands(node)
        if not isinstance(tensors, tuple | list) or len(read) != len(tensors):
            raise _NotRead
        return self._joined(node, Concat(), read, dim % len(tensors[0].axes))

    def _add(self, node: fx.Node, input: object, other: object, *, alpha: float = 1) -> Arranged:
        if isinstance(input, Arranged) and isinstance(other, Arranged):
            return self._joined(node, Sum(), operands(node)) if alpha == 1 else self._refuse()
        value, number = (input, other) if isinstance(input, Arranged) else (other, input)
        return self._scaled(node, value, 1, number if alpha == 1 else self._refuse())

    def _sub(self, node: fx.Node, input: object, other: object) -> Arranged:
        if isinstance(input, Arranged) and isinstance(other, Arranged):
            raise _NotRead
        if isinstance(input, Arranged):
            return self._scaled(node, input, 1, -other)
        return self._scaled(node, other, -1, input)

    def _mul(self, node: fx.Node, input: object, other: object) -> Arranged:
        if isinstance(input, Arranged) and isinstance(other, Arranged):
            return self._joined(node, Product(), operands(node))
        value, number = (input, other) if isinstance(input, Arranged) else (other, input)
        return self._scaled(node, value, number)

    def _imul(self, node: fx.Node, input: Arranged, other: object) -> Arranged:
        return self._mul(node, input, other)

    def _div(self, node: fx.Node, input: object, other: object) -> Arranged:
        if not isinstance(input, Arranged) or isinstance(other, Arranged | Size):
            raise _NotRead
        return self._scaled(node, input, 1 / other)

    def _refuse(self) -> object:
        raise _NotRead

    def _scaled(self, node: fx.Node, value: Arranged, weight: object, bias: object = None) -> Arranged:
        """Return a value times a number or parameter, plus another; by channel, or one for all."""
        layer = self._resolved(value.layer)
        shape = self._shapes[layer]
        given = [self._by_channel(each, value) for each in (weight, bias) if each is not None]
        for each, axis in given:
            if axis is not None and value.axes[axis] != shape.axes[1]:
                raise _NotRead
        of_channels = [len(each) for each, _ in given]
        if len(given) == 2 and len(set(of_channels)) > 1:
            given = [(each.expand(max(of_channels)).clone(), axis) for each, axis in given]
        tensors = [as_parameter(each) for each, _ in given]
        self._emit(self.name(node), ChannelScale(*tensors), (layer,), shape)
        return Arranged(self.name(node), value.axes)

    def _by_channel(self, number: object, value: Arranged) -> tuple[torch.Tensor, int | None]:
        """Return a number or parameter as a tensor (1,) or (C,), and the dimension of the channels, if it is by these."""
        dtype, device = self._like
        if isinstance(number, int | float):
            return torch.full((1,), float(number), dtype=dtype, device=device), None
        if not isinstance(number, torch.Tensor) or number.dim() > len(value.axes):
            raise _NotRead
        if number.numel() == 1:
            return number.reshape(1), None
        wide = [i - number.dim() for i, size in enumerate(number.shape) if size != 1]
        if len(wide) != 1:
            raise _NotRead
        return number.reshape(-1), wide[0] + len(value.axes)

    def _mean(self, node: fx.Node, input: Arranged, dim: object = None, keepdim: bool = False, *, dtype=None) -> Arranged:
        return self._pooled(node, input, nn.AdaptiveAvgPool2d(1), dim, keepdim, dtype)

    def _amax(self, node: fx.Node, input: Arranged, dim: object = (), keepdim: bool = False) -> Arranged:
        return self._pooled(node, input, nn.AdaptiveMaxPool2d(1), dim, keepdim, None)

    def _pooled(
        self, node: fx.Node, input: Arranged, pool: nn.Module, dim: object, keepdim: bool, dtype: object
    ) -> Arranged:
        """Return an average or maximum over all positions."""
        dims = list(dim) if isinstance(dim, tuple | list) else [dim]
        if not dims or not all(isinstance(each, int) for each in dims) or keepdim not in (False, True) or dtype is not None:
            raise _NotRead
        dims = {each % len(input.axes) for each in dims} if len(dims) == len({*dims}) else set()
        name = self._resolved(input.layer)
        shape = self._shapes[name]
        over = [each for i in sorted(dims) for each in input.axes[i]]
        if shape.height is None or sorted(over) != sorted((*shape.height, *shape.width)):
            raise _NotRead
        self._emit(self.name(node), pool, (name,), replace(shape, height=(), width=()))
        kept = [() if i in dims else axis for i, axis in enumerate(input.axes) if keepdim or i not in dims]
        return Arranged(self.name(node), tuple(kept))


_READINGS: dict[object, Callable[..., object]] = {
    "size": Reader._size,
    getattr: Reader._attribute,
    "dim": Reader._dimensions,
    **dict.fromkeys(("view", "reshape"), Reader._view),
    torch.reshape: Reader._reshape,
    **dict.fromkeys((torch.flatten, "flatten"), Reader._flatten),
    **dict.fromkeys((torch.permute, "permute"), Reader._permute),
    **dict.fromkeys((torch.transpose, torch.swapaxes, "transpose", "swapaxes"), Reader._transpose),
    **dict.fromkeys((torch.squeeze, "squeeze"), Reader._squeeze),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), Reader._unsqueeze),
    "expand": Reader._expanded,
    "expand_as": Reader._expanded_as,
    operator.getitem: Reader._getitem,
    **dict.fromkeys((torch.chunk, "chunk"), Reader._chunk),
    **dict.fromkeys((torch.split, "split"), Reader._split),
    **dict.fromkeys((torch.cat, torch.concat), Reader._cat),
    **dict.fromkeys((torch.add, operator.add, operator.iadd, "add", "add_"), Reader._add),
    **dict.fromkeys((torch.sub, operator.sub, operator.isub, "sub", "sub_"), Reader._sub),
    **dict.fromkeys((torch.mul, operator.mul, "mul", torch.multiply), Reader._mul),
    **dict.fromkeys((operator.imul, "mul_"), Reader._imul),
    **dict.fromkeys((torch.div, operator.truediv, operator.itruediv, "div", "div_"), Reader._div),
    **dict.fromkeys((torch.mean, "mean"), Reader._mean),
    **dict.fromkeys((torch.amax, "amax"), Reader._amax),
}


class _Box:
    """Holds a value that is a tuple or list of its own, such as a shape, where map_arg would look into it."""

    def __init__(self, value: object):
        self.value = value


def _unboxed(value: object) -> object:
    if isinstance(value, _Box):
        return value.value
    if isinstance(value, tuple | list):
        return type(value)(map(_unboxed, value)) if type(value) in (tuple, list) else tuple(map(_unboxed, value))
    if isinstance(value, dict):
        return {key: _unboxed(each) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(_unboxed(value.start), _unboxed(value.stop), _unboxed(value.step))
    return value


def _pointwise(module: nn.Linear) -> nn.Conv2d:
    """Return the convolution with a kernel of 1 x 1 that a dense layer is on channels; it shares the parameters."""
    conv = nn.Conv2d(module.in_features, module.out_features, 1, device="meta")
    conv.weight = nn.Parameter(module.weight.detach()[:, :, None, None], module.weight.requires_grad)
    conv.bias = module.bias
    return conv.train(module.training)


_READ = (nn.Unflatten, nn.ChannelShuffle, nn.LayerNorm, nn.Conv1d)  # as layers of other kinds


def _as_it_predicts(name: str, module: nn.Module) -> nn.Module:
    """Return the layer's computation in eval mode and not in place, or refuse it."""
    if type(module) in ACTIVATIONS:
        if not getattr(module, "inplace", False):
            return module
        other = copy.copy(module)
        other.inplace = False
        return other
    if _is_parametrized(module):
        return _with_plain_weight(module)
    # timm's convolution with TensorFlow's padding is what it is a kind of, apart from that; other subclasses may
    # compute anything.
    if type(module) not in (*SUPPORTED, *_READ) and type(module).__name__ != "Conv2dSame":
        raise _NotRead
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        raise _NotRead("BatchNorm2d without running statistics")
    if isinstance(module, nn.Conv2d | nn.Linear) and "weight" not in module._parameters:
        raise _NotRead(f"{type(module).__name__} whose weight a hook computes; remove the hook, which keeps the weight")
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise _NotRead(f"Conv2d with padding_mode={module.padding_mode!r}")
    if isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) and module.return_indices:
        raise _NotRead(f"{type(module).__name__} with return_indices=True")
    return module


def _is_parametrized(module: nn.Module) -> bool:
    base = next((kind for kind in (nn.Conv2d, nn.Linear) if type(module).__bases__ == (kind,)), None)
    return base is not None and "parametrizations" in module._modules


def _with_plain_weight(module: nn.Module) -> nn.Module:
    """Return a layer whose weight is computed, as by weight normalisation, with the weight as it is now."""
    other = object.__new__(type(module).__bases__[0])
    other.__dict__ = module.__dict__ | {"_modules": {}, "_parameters": module._parameters.copy()}
    for name in ("weight", "bias"):
        value = getattr(module, name)
        plain = value is None or isinstance(value, nn.Parameter)
        other._parameters[name] = value if plain else nn.Parameter(value.detach(), False)
    return other


def unsupported(name: str, kind: object) -> ValueError:
    """Return the refusal of a layer."""
    supported = ", ".join(sorted(each.__name__ for each in SUPPORTED))
    return ValueError(f"layer {name!r} is of the unsupported kind {kind}; supported are: {supported}")


def in_place(model: nn.Module, node: fx.Node) -> bool:
    """Return whether a node overwrites what it reads."""
    if node.op == "call_module":
        return getattr(model.get_submodule(node.target), "inplace", False)
    return overwrites(node)


def stateful_twice(layers: list[Layer]) -> str | None:
    """Return the name of a layer whose module, which holds state, is that of another one; None if there is none."""
    seen: set[int] = set()
    for layer in layers:
        if isinstance(layer.module, STATEFUL):
            if id(layer.module) in seen:
                return layer.name
            seen.add(id(layer.module))
    return None


def unknown_size(value: object) -> bool:
    """Return whether a value is a size that is not known before the network is run."""
    return isinstance(value, Size | Part)
