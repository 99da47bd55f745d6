"""A network as a list of layers: one trace serves relevance, removal and partial forward passes."""

import operator
from dataclasses import replace

from torch import fx, nn

from lrp_core.graph.calls import module_of_call, operands, overwrites, without_sizes, written
from lrp_core.graph.layers import ACTIVATIONS, IDENTITIES, INPUT, STATEFUL, SUPPORTED, VIEWS, Concat, Layer, Sum


class _Proxy(fx.Proxy):
    """Notes ``x += y`` as what it is; fx's own would note ``x + y``, as if ``x`` were still there afterwards."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {}, name="add")


class _Tracer(fx.Tracer):
    """Looks into a model's own modules, but not into those that this project knows by their kind."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, SUPPORTED) or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> list[Layer]:
    """List the layers of a network, as it predicts (eval mode), in the order in which they run.

    Args:
        model: takes one tensor, returns one tensor, and is made of supported layers.

    Raises:
        ValueError: a layer is not supported (its name and type are in the message), a layer is used twice, a layer
            overwrites what another still reads, or the model's forward cannot be traced.
    """
    return trace_with_nodes(model)[0]


def trace_with_nodes(model: nn.Module) -> tuple[list[Layer], dict[fx.Node, str]]:
    """Return the layers of a network, and by node of its graph the name of the layer that makes the node's value.

    Raises:
        ValueError: as :func:`trace`.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises under tracing
        raise ValueError(f"cannot trace {type(model).__name__}.forward: {error}") from error
    without_sizes(graph)
    names: dict[fx.Node, str] = {}
    memory: dict[fx.Node, fx.Node] = {}  # by node, the one whose memory its value lies in
    layers: list[Layer] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            if INPUT in names.values():
                raise ValueError(f"{type(model).__name__} takes several inputs; one image tensor is supported")
            names[node], memory[node] = INPUT, node
        elif node.op == "output":
            (output,) = node.args
            if not layers or not isinstance(output, fx.Node) or names[output] != layers[-1].name:
                raise ValueError(f"{type(model).__name__} must return the tensor that its last layer makes")
        else:
            chain = _layers(model, node, names)
            in_place = bool(chain) and _in_place(model, node)
            _check_use(node, in_place, memory)
            names[node] = chain[-1].name if chain else names[operands(node)[0]]
            view = len(chain) == 1 and isinstance(chain[0].module, VIEWS)
            memory[node] = memory[operands(node)[0]] if in_place or view or not chain else node
            for layer in chain:
                if any(layer.module is other.module and isinstance(layer.module, STATEFUL) for other in layers):
                    raise ValueError(f"layer {layer.name!r} is used twice; give each use a module of its own")
                layers.append(layer)
    return layers, names


def _layers(model: nn.Module, node: fx.Node, names: dict[fx.Node, str]) -> list[Layer]:
    """Turn a node of the trace into one layer, or into a chain of them where one module does several things."""
    if node.op == "call_module":
        name, module = str(node.target), model.get_submodule(node.target)
        uses = [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]
        name += f"_{uses.index(node)}" if node is not uses[0] else ""  # an activation that serves twice
        n_arguments = len(node.args) + len(node.kwargs)
        if n_arguments != len(operands(node)) or (n_arguments != 1 and not isinstance(module, Sum | Concat)):
            raise _unsupported(name, written(node, type(module).__name__))
    else:
        name, module = node.name, module_of_call(node)
        if node.op == "get_attr":
            raise _unsupported(name, f"{node.target}, a parameter, buffer or constant")
        if module is None:
            raise _unsupported(name, written(node, getattr(node.target, "__name__", node.target)))
    parts = list(module) if isinstance(module, nn.Sequential) else [module]
    if type(module).__name__ == "BatchNormAct2d":  # timm's
        parts += [module.drop, module.act]
    inputs, layers = tuple(names[source] for source in operands(node)), []
    for part in parts:
        part_name = f"{name}.{len(layers)}" if layers else name
        if not isinstance(part, IDENTITIES):
            layers.append(Layer(part_name, _as_it_predicts(part_name, part), (layers[-1].name,) if layers else inputs))
    return layers


def _check_use(node: fx.Node, in_place: bool, memory: dict[fx.Node, fx.Node]) -> None:
    """Refuse a layer that overwrites a value that is read later, under whatever name, or that nobody reads."""
    if in_place:
        order = {other: i for i, other in enumerate(node.graph.nodes)}
        overwritten = memory[operands(node)[0]]
        uses = {user for other, owner in memory.items() if owner is overwritten for user in other.users}
        later = sorted((user for user in uses if order[user] > order[node]), key=order.get)
        if later:
            raise ValueError(
                f"layer {node.name!r} works in place on a tensor that {later[0].name!r} reads afterwards; "
                "use the layer's result there, or do not work in place"
            )
    if not node.users:
        raise ValueError(f"nothing reads the result of layer {node.name!r}; use it, or leave the layer out")


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(node.target), "inplace", False)
    return overwrites(node)


def _as_it_predicts(name: str, module: nn.Module) -> nn.Module:
    """Return the layer's computation in eval mode and not in place, or refuse it."""
    if type(module) in ACTIVATIONS:
        return type(module)()
    # timm's convolution with TensorFlow's padding and its normalisation with an activation are what they are a kind
    # of, apart from that; other subclasses may compute anything.
    if type(module) not in SUPPORTED and type(module).__name__ not in ("Conv2dSame", "BatchNormAct2d"):
        raise _unsupported(name, type(module).__name__)
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        raise _unsupported(name, "BatchNorm2d without running statistics")
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise _unsupported(name, f"Conv2d with padding_mode={module.padding_mode!r}")
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        raise _unsupported(name, "MaxPool2d with return_indices=True")
    if isinstance(module, nn.Flatten):
        if module.start_dim not in (1, -3) or module.end_dim not in (-1, 3):
            kind = f"Flatten({module.start_dim}, {module.end_dim}) (only from dimension 1 to the last)"
            raise _unsupported(name, kind)
        return nn.Flatten()
    return module


def _unsupported(name: str, kind: object) -> ValueError:
    supported = ", ".join(sorted(kind.__name__ for kind in SUPPORTED))
    return ValueError(f"layer {name!r} is of the unsupported kind {kind}; supported are: {supported}")


def rebind(layers: list[Layer], model: nn.Module) -> list[Layer]:
    """Return the trace of a network that differs from the traced one only in its tensors."""
    return [
        replace(layer, module=model.get_submodule(layer.name)) if isinstance(layer.module, STATEFUL) else layer
        for layer in layers
    ]
