"""Layers in the making while a forward is read: their list, what shapes they make, and rearrangements where needed."""

from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from lrp_core.graph.arrangement import BATCH, Arranged, Axes, Axis, described, order, part, size_of
from lrp_core.graph.layers import (
    BATCH_NORMS,
    INPUT,
    OUTPUTS,
    PADDING,
    POOLING,
    RESIZING,
    ChannelPermutation,
    ChannelSlice,
    Layer,
    PadChannels,
    PointwiseConv,
    Subsample,
)


class NotRead(Exception):
    """A node whose computation has no layer; the message says why, where its name and arguments do not."""


@dataclass(frozen=True)
class Maps:
    """The shape of a layer's outputs.

    Attributes:
        channels: how many; None if that is not known.
        height, width: as dimensions; None for vectors.
    """

    channels: int | None
    height: Axis | None = None
    width: Axis | None = None

    @property
    def axes(self) -> Axes:
        """Its dimensions: (N, C, H, W), or (N, C) of vectors."""
        first = ((BATCH,), part("c", self.channels, "channels"))
        return first if self.height is None else (*first, self.height, self.width)


class Builder:
    """Layers in the making.

    Attributes:
        layers: by name, in the order in which they run.
        values: by node, what it stands for: a layer's outputs, rearranged; a size, a number, a parameter's tensor.
        parameter: one of the model's; all values have its type, and are on its device.
    """

    def __init__(self, model: nn.Module, channels: int | None):
        """Take a model, and how many channels its images have; None if that is not known."""
        self._model, self.layers = model, {}
        self.parameter = next(model.parameters(), torch.empty(0))
        self.values: dict[fx.Node, object] = {}
        self._shapes = {INPUT: Maps(channels, part("h", None, INPUT), part("w", None, INPUT))}
        self._replaced: dict[str, str] = {}  # flattenings that are gone, since their vectors are maps after all
        self._uses: dict[str, list[fx.Node]] = {}  # by module, the nodes that call it

    def name(self, node: fx.Node) -> str:
        """Return the name for a layer that a node makes; that of no other part of the model."""
        if node.op == "call_module":
            uses = self._uses.setdefault(node.target, [])
            if node not in uses:
                uses.append(node)
            return node.target + (f"_{uses.index(node)}" if node is not uses[0] else "")
        return f"{node.name}_call" if node.op != "get_attr" and hasattr(self._model, node.name) else node.name

    def unused(self, node: fx.Node) -> str:
        """Return a name for one more layer that a node makes."""
        name, n = self.name(node), 0
        while (candidate := f"{name}.{n}" if n else name) in self.layers:
            n += 1
        return candidate

    def number(self, number: float) -> torch.Tensor:
        """Return a number as a tensor (1,) like the model's parameters."""
        like = next(self._model.parameters(), torch.zeros(0))
        return torch.full((1,), float(number), dtype=like.dtype, device=like.device)

    def emit(self, name: str, module: nn.Module, inputs: tuple[str, ...], shape: Maps) -> Arranged:
        """Add a layer, and return what it makes."""
        if name in self.layers:
            raise ValueError(f"layer {name!r} is used twice; give each use a module of its own")
        self.layers[name], self._shapes[name] = Layer(name, module, inputs), shape
        return Arranged(name, shape.axes)

    def layer(self, value: Arranged) -> str:
        """Return the name of the layer behind a value."""
        name = value.layer
        while name in self._replaced:
            name = self._replaced[name]
        return name

    def shape(self, value: Arranged) -> Maps:
        """Return the shape of what the layer behind a value makes."""
        return self._shapes[self.layer(value)]

    def channels(self, name: str) -> int | None:
        """Return how many channels a layer, or the images, have; None if that is not known."""
        return self._shapes[name].channels

    def channel_axis(self, value: Arranged) -> int | None:
        """Return which of a value's dimensions runs over all channels of its layer, and over nothing else."""
        channels = self.shape(value).axes[1]
        found = [i for i, axis in enumerate(value.axes) if channels and axis == channels]
        if not channels and len(value.axes) > 1 and not value.axes[1]:  # one channel
            found = [1]
        return found[0] if found else None

    def whole(self, node: fx.Node, dimensions: int) -> tuple[str, Maps]:
        """Return the layer that makes a node's value as maps (4 dimensions) or vectors (2), rearranged where needed."""
        value = self.values[node]
        if not isinstance(value, Arranged):
            raise NotRead
        if dimensions == len(value.axes) == 4 and self.shape(value).height is None:
            self.make_maps(value)
        if not self._is_whole(value, dimensions):
            raise NotRead(f"on a tensor {described(value.axes)}")
        self.in_order(node, 1, value.axes[1][: len(self._channels(value))])
        value = self.values[node]
        name, shape = self.layer(value), self.shape(value)
        if dimensions == 2 and shape.height is not None:
            sizes = [size_of(axis) for axis in shape.axes[1:]]
            known = all(isinstance(size, int) for size in sizes)
            flat = Maps(sizes[0] * sizes[1] * sizes[2] if known else None)
            name, shape = self.emit(self.unused(node), nn.Flatten(), (name,), flat).layer, flat
        self.values[node] = Arranged(name, shape.axes)
        return name, shape

    def _channels(self, value: Arranged) -> Axis:
        return tuple(each for each in value.axes[1] if each.kind == "c")

    def _is_whole(self, value: Arranged, dimensions: int) -> bool:
        """Return whether a value's dimensions are those of maps or vectors, but for the order of the channels."""
        shape = self.shape(value)
        if len(value.axes) != dimensions or value.axes[0] != (BATCH,):
            return False
        channels = self._channels(value)
        behind = value.axes[1][len(channels) :]
        positions = (shape.height or (), shape.width or ())
        if value.axes[1][: len(channels)] != channels or (dimensions == 4 and behind):
            return False
        found = (behind,) if dimensions == 2 else value.axes[2:]
        expected = (positions[0] + positions[1],) if dimensions == 2 else positions
        # A dimension is left out where a view showed that its size, unknown here, is 1.
        return all(
            a == b or (not a and all(each.size is None for each in b)) for a, b in zip(found, expected, strict=True)
        )

    def in_order(self, node: fx.Node, axis: int, channels: Axis | None = None) -> str:
        """Return the layer that makes maps whose channels are, in their order, a dimension of a node's value.

        Args:
            node: its value is rearranged if the order is another one.
            axis: the dimension.
            channels: of it, the part that is looked at; None: all.
        """
        value = self.values[node]
        axis %= len(value.axes)
        channels = value.axes[axis] if channels is None else channels
        shape = self.shape(value)
        if channels == shape.axes[1]:
            return self.layer(value)
        index = order(channels)
        if index is None or len(index) != shape.channels:
            raise NotRead(f"on a tensor {described(value.axes)}")
        made = self.emit(self.unused(node), ChannelPermutation(index), (self.layer(value),), shape)
        rest = value.axes[axis][len(channels) :]
        self.values[node] = Arranged(made.layer, (*value.axes[:axis], shape.axes[1] + rest, *value.axes[axis + 1 :]))
        return made.layer

    def make_maps(self, value: Arranged) -> None:
        """Make maps with one position of the vectors behind a value, and of all vectors that these are made of."""
        self._make_maps(self.layer(value))
        for layer in self.layers.values():
            read = {self._shapes[source].height is None for source in layer.inputs}
            vectors = self._shapes[layer.name].height is None
            if not isinstance(layer.module, nn.Flatten) and read != {vectors}:
                raise NotRead("which makes maps of vectors that others read as vectors")

    def _make_maps(self, name: str) -> None:
        layer = self.layers.get(name)
        if layer is None or isinstance(layer.module, (*BATCH_NORMS, *OUTPUTS)):
            raise NotRead
        if isinstance(layer.module, nn.Flatten):
            shape, source = self._shapes[layer.inputs[0]], layer.inputs[0]
            if any(each.size is not None for each in (*shape.height, *shape.width)):
                raise NotRead("which makes maps of vectors")
            self._replaced[name] = source
            del self.layers[name]
            for other in [*self.layers.values()]:
                inputs = tuple(source if each == name else each for each in other.inputs)
                self.layers[other.name] = replace(other, inputs=inputs)
            return
        for source in layer.inputs:
            if source not in self._replaced and self._shapes[source].height is None:
                self._make_maps(source)
        layer = self.layers[name]
        if isinstance(layer.module, nn.Linear):
            if self._shapes[layer.inputs[0]].channels != layer.module.in_features:  # it reads several positions
                raise NotRead("which makes maps of vectors")
            self.layers[name] = replace(layer, module=PointwiseConv(layer.module))
        self._shapes[name] = Maps(self._shapes[name].channels, (), ())


def shape_behind(name: str, module: nn.Module, before: Maps) -> Maps:
    """Return the shape of what a layer, by name and module, makes of one input of a shape."""
    channels, height, width = before.channels, before.height, before.width
    if isinstance(module, nn.Conv2d):
        channels = module.out_channels
        if module.kernel_size == module.stride == (1, 1) and module.padding in ((0, 0), "same", "valid"):
            return Maps(channels, height, width)
    elif isinstance(module, ChannelSlice):
        channels = module.stop - module.start
    elif isinstance(module, PadChannels) and channels is not None:
        channels += module.before + module.behind
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        size = module.output_size
        size = size if isinstance(size, tuple | list) else (size, size)
        height = height if size[0] is None else part("h", size[0])
        width = width if size[1] is None else part("w", size[1])
    elif isinstance(module, (nn.Conv2d, *POOLING, *PADDING, *RESIZING, Subsample)):
        height, width = part("h", None, name), part("w", None, name)
    return Maps(channels, height, width)
