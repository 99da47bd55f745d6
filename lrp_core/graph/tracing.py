"""A network as a list of layers: one trace serves relevance, removal and partial forward passes."""

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import fx, nn

from lrp_core.graph.arrangement import Arranged
from lrp_core.graph.calls import operands, overwrites
from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT, STATEFUL, SUPPORTED, Layer, needed, pads_like_tensorflow
from lrp_core.graph.reading import Reader
from lrp_core.graph.views import Parts
from lrp_core.utils.devices import device_of

_getattr = nn.Module.__getattr__
_VARIABLE = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD  # *args, **kwargs


def _noted(function: object) -> object:
    def assign(self: fx.Proxy, other: object) -> fx.Proxy:
        name = function.__name__.removeprefix("i")
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=name)

    return assign


class _Proxy(fx.Proxy):
    """A value under tracing.

    Notes ``x += y`` as what it is; fx's own would note ``x + y``, as if ``x`` were still there afterwards. Numbers that
    are known, such as those of channels, may be asked for: ``if x.shape[1] > 8``. What has a known length may be taken
    apart: ``*x.shape``, ``for part in x.chunk(2, 1)``.
    """

    __iadd__, __imul__ = _noted(operator.iadd), _noted(operator.imul)
    __isub__, __itruediv__ = _noted(operator.isub), _noted(operator.itruediv)

    def __bool__(self) -> bool:
        known = self.tracer.known(self.node)
        if not isinstance(known, int):
            raise TypeError("an `if` or `assert` asks for a value that is not known before the network is run")
        return bool(known)

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([self[i] for i in range(len(self))])

    def __len__(self) -> int:
        known = self.tracer.known(self.node, length=True)
        if not isinstance(known, tuple | Parts | torch.Tensor):
            raise TypeError(f"the length of {self.node} is not known before the network is run")
        return len(known)

    def __index__(self) -> int:
        known = self.tracer.known(self.node)
        if not isinstance(known, int):
            raise TypeError(f"{self.node} is not known before the network is run")
        return known

    def __int__(self) -> int:
        known = self.tracer.known(self.node)
        return int(known) if isinstance(known, float) else self.__index__()

    def __getattr__(self, name: str) -> fx.Proxy:
        return _Attribute(self, name)


class _Attribute(_Proxy, fx.proxy.Attribute):
    """A tensor's attribute or method under tracing: ``x.shape``, ``x.size``."""


class _Tracer(fx.Tracer):
    """Looks into a model's own modules, but not into those that this project knows by their kind."""

    def __init__(self, model: nn.Module, channels: int | None):
        super().__init__()
        self.reader = Reader(model, channels)
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        self._names = {id(tensor): name for name, tensor in tensors}
        self.asked = False

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: object = None
    ) -> tuple[Callable, list[object]]:
        """Give a forward one image tensor; its other arguments keep their defaults."""
        first, *others = [*inspect.signature(root_fn).parameters.values()][1:]
        if any(each.default is each.empty and each.kind not in _VARIABLE for each in others):
            raise ValueError(f"{type(self.root).__name__} takes several inputs; one image tensor is supported")
        return root_fn, [self.root, self.create_proxy("placeholder", first.name, (), {})]

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        """Note parameters and buffers by name; fx would search the whole model for each."""
        name = self._names.get(id(attr_val))
        if name is not None and name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache.get(name, attr_val)

    def known(self, node: fx.Node, *, length: bool = False) -> object:
        """Return what a node stands for, as far as that is known already; ``length``: only its length matters."""
        under_tracing, nn.Module.__getattr__ = nn.Module.__getattr__, _getattr  # else parameters come as proxies
        try:
            self.reader.read(self.graph)
        finally:
            nn.Module.__getattr__ = under_tracing
        self.asked = self.asked or (not length and self._is_size(node))
        return self.reader.values[node]

    def _is_size(self, node: fx.Node) -> bool:
        """Return whether a value comes from sizes of a tensor, and not only from how many dimensions it has."""
        if isinstance(self.reader.values[node], Arranged):
            return False
        read = node.target == "size" or (node.target is getattr and node.args[1] == "shape")
        value = self.reader.values[node.args[0]] if read else None
        if isinstance(value, Arranged) and value.layer == INPUT:  # images stay as they are
            return False
        return read or any(self._is_size(each) for each in node.all_input_nodes)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, object]) -> object:
        """Note a module's call; one that the code makes on the spot is looked into: ``nn.ReLU()``, ``layers[:3]``."""
        made = m not in self.submodule_paths and not m._parameters
        return forward(*args, **kwargs) if made else super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        known = type(module) in SUPPORTED or pads_like_tensorflow(module)
        return known or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> list[Layer]:
    """List the layers of a network, as it predicts (eval mode), in the order in which they run.

    Args:
        model: takes one tensor, returns one tensor, and is made of supported layers.

    Raises:
        ValueError: a layer is not supported (its name and type are in the message), a layer is used twice, a layer
            overwrites what another still reads, the model's forward cannot be traced or was replaced on an object, or
            another module wraps the model.
    """
    layers, _, _ = trace_with_nodes(model)
    return layers


def trace_with_nodes(model: nn.Module) -> tuple[list[Layer], dict[fx.Node, str], bool]:
    """Return the layers of a network, by node of its graph the name of the layer that makes the node's value, and asks.

    Nodes whose value is a rearranged one, such as a permutation of a layer's outputs, are left out. Whether the code
    asks for a size, as in ``if x.shape[1] > 8``, comes last: it might decide otherwise in a smaller network.

    Raises:
        ValueError: as :func:`trace`.
    """
    _refuse_wrapped(model)
    try:
        tracer, graph = _traced(model, None)
    except ValueError:  # the code may ask for the channels of the images: those that the first convolution reads
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        if first is None:
            raise
        tracer, graph = _traced(model, first.in_channels)
    reader = tracer.reader
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # by node, the one whose memory its value lies in
    output = ""
    for node in graph.nodes:
        read = [other for other in operands(node) if other in memory]
        if node.op == "output":
            output = reader.output(node.args[0])
        elif node.op == "placeholder":
            memory[node] = node
        elif read:
            changes = node in reader.made and _in_place(model, node)
            if changes:
                _check_use(node, memory, order)
            memory[node] = memory[read[0]] if changes or node in reader.shares else node
            if not node.users and memory[node] is node and isinstance(reader.values[node], Arranged):
                name = reader.name(node)
                raise ValueError(f"nothing reads the result of layer {name!r}; use it, or leave the layer out")
    layers = needed([*reader.layers.values()], output)
    if any(layer.name == INPUT for layer in layers):
        raise ValueError(f"a module of {type(model).__name__} is named {INPUT!r}, as the images are; rename it")
    if not layers or output != layers[-1].name:
        kind = type(model).__name__
        raise ValueError(
            f"{kind} must return the tensor that its last layer makes. If it returns more, as Hugging Face's networks "
            f"do, wrap it in a module whose forward returns its logits alone: return self.network(x).logits"
        )
    modules: set[nn.Module] = set()
    for layer in layers:
        twice = isinstance(layer.module, STATEFUL) and layer.module in modules
        if twice or layer.name == reader.reused:
            raise ValueError(f"layer {layer.name!r} is used twice; give each use a module of its own")
        modules.add(layer.module)
    tensors = [(node, value) for node, value in reader.values.items() if isinstance(value, Arranged)]
    names = {node: reader.layer(value) for node, value in tensors if value.axes == reader.shape(value).axes}
    return layers, names, tracer.asked


def _traced(model: nn.Module, channels: int | None) -> tuple[_Tracer, fx.Graph]:
    """Trace a model, taking for granted how many channels images have, if that is given, and read its graph."""
    tracer, kind = _Tracer(model, channels), type(model).__name__
    reader = tracer.reader
    with _predicting(model):
        try:
            graph = tracer.trace(model)
        except Exception as error:  # whatever the model's own code raises under tracing
            raise ValueError(f"cannot trace {kind}.forward: {error}") from error
        reader.read(graph)
    for layer in reader.layers.values() if channels else ():
        read = reader.channels(layer.inputs[0])
        if isinstance(layer.module, nn.Conv2d) and read not in (None, layer.module.in_channels):
            raise ValueError(
                f"{kind} asks for the channels of its images, which were taken to be the {channels} of its first "
                f"convolution; but layer {layer.name!r} reads {layer.module.in_channels} channels, not {read}"
            )
    return tracer, graph


_INSIDE = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def check_trace(model: nn.Module, image: torch.Tensor) -> None:
    """Refuse a network whose code does something else while it is traced, as with ``isinstance(x, torch.Tensor)``.

    Args:
        model: as for :func:`trace`.
        image: one input, (1, C, H, W).

    Raises:
        ValueError: its output, in eval mode, is not that of its layers; or as :func:`trace`.
    """
    layers, image = trace(model), image.to(device_of(model))
    with torch.no_grad(), _predicting(model):
        found, again = model(image), model(image)
        try:
            read = run(layers, {INPUT: image})
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the layers that were read from {type(model).__name__} cannot be run on images {tuple(image.shape)}: "
                f"does its code treat these otherwise than images of as many channels as its first convolution reads? "
                f"Do that before the network. ({error})"
            ) from error
    apart = (found - read).abs().max() / found.abs().max()
    if torch.equal(found, again) and apart > torch.finfo(found.dtype).eps ** 0.5:  # nothing is drawn at random
        raise ValueError(
            f"the layers that were read from {type(model).__name__} give another output than it does, by {apart:.2g} "
            "of the largest number: its code decides by what is not known while it is traced, as by "
            "isinstance(x, torch.Tensor)"
        )


def _refuse_wrapped(model: nn.Module) -> None:
    """Refuse what tracing does not see: a wrapper, a forward that was replaced (copies would still call it), hooks."""
    kind = type(model).__name__
    if kind in _INSIDE:
        raise ValueError(f"{kind} wraps the network: give the network itself, model.{_INSIDE[kind]}")
    for module in model.modules():
        if "forward" in vars(module) and not isinstance(module, torch.jit.ScriptModule):
            kind = type(module).__name__
            raise ValueError(
                f"{kind}.forward was replaced on an object (`x.forward = ...`), and a pruned copy would still call the "
                f"unpruned one: define it in a class instead (`class Mine({kind}): def forward(self, x): ...`)"
            )
        computes_weight = isinstance(module, nn.Conv2d | nn.Linear) and "weight" not in module._parameters
        if (module._forward_hooks or module._forward_pre_hooks) and not computes_weight:
            raise ValueError(f"a {type(module).__name__} has a forward hook, which may change values: remove it")


@contextmanager
def _predicting(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, and take back what tracing does to it, such as setting attributes."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    before = {module: vars(module).copy() for module in model.modules()}
    try:
        yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
        for module in training:
            module.training = True


def _check_use(node: fx.Node, memory: dict[fx.Node, fx.Node], order: dict[fx.Node, int]) -> None:
    """Refuse a layer that overwrites a value that is read later, under whatever name."""
    overwritten = memory[operands(node)[0]]
    uses = {user for other, owner in memory.items() if owner is overwritten for user in other.users}
    later = sorted((user for user in uses if order[user] > order[node]), key=order.get)
    if later:
        raise ValueError(
            f"layer {node.name!r} works in place on a tensor that {later[0].name!r} reads afterwards; "
            "use the layer's result there, or do not work in place"
        )


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    """Return whether a node overwrites what it reads."""
    if node.op == "call_module":
        return getattr(model.get_submodule(node.target), "inplace", False)
    return overwrites(node)


def rebind(layers: list[Layer], model: nn.Module) -> list[Layer]:
    """Return the trace of a network that differs from the traced one only in its tensors."""
    return [
        replace(layer, module=model.get_submodule(layer.name)) if isinstance(layer.module, STATEFUL) else layer
        for layer in layers
    ]
