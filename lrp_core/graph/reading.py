"""Reads the nodes of a traced forward, one after the other, and makes the list of layers of them."""

import copy
import operator

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from lrp_core.graph.arrangement import BATCH, UNKNOWN, Arranged, Size, described, equal_sizes, flattened
from lrp_core.graph.batchnorm import affine
from lrp_core.graph.building import Builder, Maps, NotRead, shape_behind
from lrp_core.graph.calls import module_of_call, operands, torch_names, written
from lrp_core.graph.joins import JOINS, joined
from lrp_core.graph.layers import (
    ACTIVATIONS,
    BATCH_NORMS,
    IDENTITIES,
    INPUT,
    OUTPUTS,
    PADDING,
    POOLING,
    RESIZING,
    SUPPORTED,
    ChannelConv,
    ChannelNorm,
    ChannelScale,
    Concat,
    PointwiseConv,
    Product,
    Sum,
    pads_like_tensorflow,
)
from lrp_core.graph.layers import (
    VIEWS as SHARING,
)
from lrp_core.graph.views import VIEWS, Parts, shuffled, unflattened

_CALLS = VIEWS | JOINS


class Reader(Builder):
    """Makes layers of nodes.

    Attributes:
        made: nodes that some layers are made of.
        shares: nodes whose value lies in the memory of their first operand.
        reused: the name of a layer whose module, which has parameters, has served another one; "" if there is none.
    """

    def __init__(self, model: nn.Module, channels: int | None):
        """Take a model, and how many channels its images have; None if that is not known."""
        super().__init__(model, channels)
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self.made: set[fx.Node] = set()
        self.shares: set[fx.Node] = set()
        self.reused = ""

    def read(self, graph: fx.Graph) -> None:
        """Read those nodes of a graph that have not been read yet.

        Raises:
            ValueError: one has no layer.
        """
        for node in graph.nodes:
            if node.op == "placeholder" and node not in self.values:
                self.values[node] = Arranged(INPUT, self.shape(Arranged(INPUT, ())).axes)
            elif node.op != "output" and node not in self.values:
                self._read(node)

    def _read(self, node: fx.Node) -> None:
        n_layers = len(self.layers)
        try:
            value = self.values[node] = self._value(node)
        except (NotRead, IndexError) as error:
            raise self._refusal(node, str(error) if isinstance(error, NotRead) else "") from None
        made = list(self.layers.values())[n_layers:]
        if made:
            self.made.add(node)
        of_tensor = any(isinstance(self.values[each], Arranged | Parts) for each in operands(node)[:1])
        if of_tensor and isinstance(value, Arranged | Parts) and all(isinstance(each.module, SHARING) for each in made):
            self.shares.add(node)

    def output(self, node: object) -> str:
        """Return the layer that makes the network's output; "" if there is none that does."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        try:
            return self.whole(node, len(value.axes))[0] if isinstance(value, Arranged) else ""
        except (NotRead, IndexError):
            return ""

    def _refusal(self, node: fx.Node, why: str) -> ValueError:
        name = self.name(node)
        if node.op == "call_module":
            kind = type(self._modules[node.target]).__name__
            kind = kind if node.args == operands(node) and len(node.args) == 1 else written(node, kind)
        else:
            kind = written(node, getattr(node.target, "__name__", node.target))
        supported = ", ".join(sorted({each.__name__ for each in SUPPORTED}))
        kind = f"{kind} {why}".strip()
        return ValueError(f"layer {name!r} is of the unsupported kind {kind}; supported are: {supported}")

    def _value(self, node: fx.Node) -> object:
        if node.op == "get_attr":
            value = self._model
            for name in node.target.split("."):
                value = getattr(value, name)
            return value
        args, kwargs = self._known(node)
        if any(isinstance(self.values[each], Arranged | Parts) for each in operands(node)):
            return self._of_module(node) if node.op == "call_module" else self._of_call(node, args, kwargs)
        if any(self._is_unknown(each, node) for each in operands(node)):
            return UNKNOWN
        if node.target in (operator.eq, operator.ne) and any(isinstance(each, tuple) for each in args):
            equal = equal_sizes(*args)
            return equal if equal is UNKNOWN else equal is (node.target is operator.eq)
        try:  # sizes, numbers, and what is computed of parameters alone
            function = getattr(args[0], node.target) if node.op == "call_method" else node.target
            with torch.no_grad():
                return function(*args[node.op == "call_method" :], **kwargs)
        except Exception:  # whatever torch or Python raises
            raise NotRead from None

    def _is_unknown(self, read: fx.Node, node: fx.Node) -> bool:
        """Return whether what a node computes of a value is not known, since that value is not."""
        value = self.values[read]
        if isinstance(value, tuple) and any(isinstance(each, Size) for each in value):
            return node.target not in (operator.getitem, operator.add, operator.eq, operator.ne, len)
        return value is UNKNOWN or (isinstance(value, Size) and node.target not in (operator.mul, operator.floordiv))

    def _known(self, node: fx.Node) -> tuple[tuple, dict[str, object]]:
        """Return a node's arguments with the values of the nodes among them."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: _Box(self.values[each]))
        return _unboxed(args), torch_names(_unboxed(kwargs))

    def _of_call(self, node: fx.Node, args: tuple, kwargs: dict[str, object]) -> object:
        if any(self.values[each] is UNKNOWN for each in operands(node)):
            raise NotRead
        try:
            if node.target in _CALLS:
                return _CALLS[node.target](self, node, *args, **kwargs)
            module = module_of_call(node.target, args, kwargs)
        except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError):  # arguments that do not fit
            raise NotRead from None
        tensors = [each for each in operands(node) if isinstance(self.values[each], Arranged)]
        if module is None or (len(tensors) != 1 and not isinstance(module, nn.Identity)):  # x.type_as(y)
            raise NotRead
        parameters = [each for each in operands(node) if isinstance(self.values[each], torch.Tensor)]
        return self._applied(node, module, tensors[0], self._owner(parameters[0], node) if parameters else None)

    def _owner(self, parameter: fx.Node, node: fx.Node) -> str | None:
        """Return the name of the module that a parameter belongs to, for the layer that is made of it."""
        while parameter.op != "get_attr" and parameter.all_input_nodes:
            parameter = parameter.all_input_nodes[0]
        if parameter.op != "get_attr":
            return None
        name = parameter.target.rpartition(".")[0]
        return name if name and name not in self.layers else None

    def _of_module(self, node: fx.Node) -> object:
        module, read = self._modules[node.target], operands(node)
        if isinstance(module, Sum | Product | Concat) and len(node.args) == len(read):
            return joined(self, node, module)
        if len(read) != 1 or len(node.args) + len(node.kwargs) != 1 or not isinstance(self.values[read[0]], Arranged):
            raise NotRead
        if self.name(node) != node.target and any(True for _ in module.parameters()):
            self.reused = self.reused or self.name(node)
        return self._applied(node, module, read[0])

    def _applied(self, node: fx.Node, module: nn.Module, read: fx.Node, name: str | None = None) -> object:
        """Return what a module makes of one tensor."""
        value, module, name = self.values[read], _as_it_predicts(module), name or self.name(node)
        if isinstance(module, IDENTITIES):
            return value
        if isinstance(module, nn.Flatten):
            return Arranged(value.layer, flattened(value.axes, module.start_dim, module.end_dim))
        if isinstance(module, nn.Unflatten):
            return unflattened(value, module)
        if isinstance(module, nn.ChannelShuffle):
            return shuffled(value, module)
        if isinstance(module, nn.Linear):
            return self._dense(name, module, read)
        if isinstance(module, nn.LayerNorm):
            return self._layer_norm(name, module, read)
        if isinstance(module, nn.Conv1d):
            return self._conv_of_channels(name, module, value)
        if isinstance(module, ACTIVATIONS) and not (isinstance(module, nn.PReLU) and module.num_parameters > 1):
            made = self.emit(name, module, (self.layer(value),), self.shape(value))
            return Arranged(made.layer, value.axes)
        if isinstance(module, OUTPUTS) and (
            module.dim not in (1, -1) or any(user.op != "output" for user in node.users)
        ):
            raise NotRead("(only over the classes, at the network's end)")
        dimensions = len(value.axes)
        of_vectors = isinstance(module, nn.BatchNorm1d) or (isinstance(module, nn.SyncBatchNorm) and dimensions == 2)
        if of_vectors or isinstance(module, OUTPUTS):
            dimensions = 2
        elif isinstance(module, (nn.Conv2d, *BATCH_NORMS, *POOLING, *PADDING, *RESIZING)):
            dimensions = 4
        source, shape = self.whole(read, dimensions)
        if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is None:  # of a call; in a state_dict
            module.num_batches_tracked = getattr(self._modules.get(name), "num_batches_tracked", None)
        if of_vectors:
            module = ChannelScale(*(each.detach() for each in affine(module)))
        return self.emit(name, module, (source,), shape_behind(name, module, shape))

    def _dense(self, name: str, module: nn.Linear, read: fx.Node) -> Arranged:
        """Read a dense layer: on vectors it is one, on the channels of maps a convolution with a kernel of 1 x 1."""
        if len(self.values[read].axes) == 2:
            source, _ = self.whole(read, 2)
            return self.emit(name, module, (source,), Maps(module.out_features))
        self.in_order(read, -1)
        value = self.values[read]
        if self.shape(value).height is None:
            self.make_maps(value)
        shape = self.shape(value)
        shape = Maps(module.out_features, shape.height, shape.width)
        made = self.emit(name, PointwiseConv(module), (self.layer(value),), shape)
        return Arranged(made.layer, (*value.axes[:-1], shape.axes[1]))

    def _layer_norm(self, name: str, module: nn.LayerNorm, read: fx.Node) -> Arranged:
        if len(module.normalized_shape) != 1:
            raise NotRead(f"over {len(module.normalized_shape)} dimensions (only over the channels)")
        source = self.in_order(read, -1)
        value = self.values[read]
        made = self.emit(name, ChannelNorm(module.weight, module.bias, module.eps), (source,), self.shape(value))
        return Arranged(made.layer, value.axes)

    def _conv_of_channels(self, name: str, module: nn.Conv1d, value: Arranged) -> Arranged:
        (size,), shape = module.kernel_size, self.shape(value)
        alone = module.in_channels == module.out_channels == 1 and module.stride == module.dilation == (1,)
        same = size % 2 == 1 and module.padding in ((size // 2,), "same") and module.padding_mode == "zeros"
        if not alone or not same or value.axes != ((BATCH,), (), shape.axes[1]) or shape.channels is None:
            raise NotRead(f"on a tensor {described(value.axes)} (only along the channels, one output for each)")
        weight = nn.Parameter(module.weight.detach().view(-1), module.weight.requires_grad)
        made = self.emit(name, ChannelConv(weight, module.bias, shape.channels), (self.layer(value),), shape)
        return Arranged(made.layer, value.axes)


class _Box:
    """Holds a value that may be a tuple, such as a shape, where map_arg would look into it."""

    def __init__(self, value: object):
        self.value = value


def _unboxed(value: object) -> object:
    if isinstance(value, _Box):
        return value.value
    if isinstance(value, tuple | list):
        return tuple(map(_unboxed, value))
    if isinstance(value, dict):
        return {key: _unboxed(each) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(_unboxed(value.start), _unboxed(value.stop), _unboxed(value.step))
    return value


_OTHERS = (nn.Unflatten, nn.ChannelShuffle, nn.LayerNorm, nn.Conv1d, nn.BatchNorm1d)  # become layers of other kinds


def _as_it_predicts(module: nn.Module) -> nn.Module:
    """Return a layer's computation in eval mode and not in place, or refuse it."""
    if type(module) in ACTIVATIONS:
        if not getattr(module, "inplace", False):
            return module
        other = copy.copy(module)
        other.inplace = False
        return other
    if "parametrizations" in module._modules and type(module).__bases__[0] in (nn.Conv2d, nn.Linear):
        return _with_plain_weight(module)
    if type(module) is nn.ConstantPad2d and module.value == 0:
        return nn.ZeroPad2d(module.padding)
    if type(module) not in (*SUPPORTED, *_OTHERS) and not pads_like_tensorflow(module):
        raise NotRead
    if isinstance(module, (nn.BatchNorm1d, *BATCH_NORMS)) and module.running_mean is None:
        raise NotRead("without running statistics")
    if isinstance(module, nn.Conv2d | nn.Linear) and "weight" not in module._parameters:
        raise NotRead("whose weight a hook computes (remove the hook, which leaves the weight)")
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise NotRead(f"with padding_mode={module.padding_mode!r}")
    if isinstance(module, RESIZING) and module.mode not in ("nearest", "nearest-exact", "bilinear"):
        raise NotRead(f"with mode={module.mode!r} (only nearest, nearest-exact or bilinear)")
    if isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) and module.return_indices:
        raise NotRead("with return_indices=True")
    return module


def _with_plain_weight(module: nn.Module) -> nn.Module:
    """Return a layer whose weight is computed, as by weight normalisation, with the weight as it is now."""
    other = object.__new__(type(module).__bases__[0])
    other.__dict__ = module.__dict__ | {"_modules": {}, "_parameters": module._parameters.copy()}
    for name in ("weight", "bias"):
        value = getattr(module, name)
        plain = value is None or isinstance(value, nn.Parameter)
        other._parameters[name] = value if plain else nn.Parameter(value.detach(), False)
    return other
