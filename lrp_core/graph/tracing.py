"""A network as a list of layers: one trace serves relevance, removal and partial forward passes."""

import operator
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from lrp_core.graph.layers import _NOTHING, _STATEFUL, ACTIVATIONS, INPUT, SUPPORTED, Concat, Layer, Sum


def _concat(tensors: object, dim: int = 0) -> nn.Module | None:
    return Concat() if dim == 1 else None


def _add(*addends: object, alpha: int = 1) -> nn.Module | None:
    return Sum() if alpha == 1 and all(isinstance(addend, fx.Node) for addend in addends) else None


def _mean(source: object, dim: object = None, keepdim: bool = False) -> nn.Module | None:
    if tuple(dim or ()) not in ((2, 3), (-2, -1)):
        return None
    pool = nn.AdaptiveAvgPool2d(1)
    return pool if keepdim else nn.Sequential(pool, nn.Flatten())


# What a call in a model's forward stands for: the module, or None if it is used in a way that is not supported.
_CALLS: dict[object, Callable[..., nn.Module | None]] = {
    torch.flatten: lambda source, *args, **kwargs: nn.Flatten(*(args or (0,)), **kwargs),
    torch.relu: lambda source: nn.ReLU(),
    F.relu: lambda source, inplace=False: nn.ReLU(),
    F.relu6: lambda source, inplace=False: nn.ReLU6(),
    F.dropout: lambda source, *args, **kwargs: nn.Identity(),
    F.max_pool2d: lambda source, *args, **kwargs: nn.MaxPool2d(*args, **kwargs),
    F.avg_pool2d: lambda source, *args, **kwargs: nn.AvgPool2d(*args, **kwargs),
    F.adaptive_avg_pool2d: lambda source, output_size: nn.AdaptiveAvgPool2d(output_size),
    torch.cat: _concat,
    torch.concat: _concat,
    torch.add: _add,
    operator.add: _add,
    operator.iadd: _add,
    torch.mean: _mean,
    "flatten": lambda source, *args, **kwargs: nn.Flatten(*(args or (0,)), **kwargs),
    "relu": lambda source: nn.ReLU(),
    "relu_": lambda source: nn.ReLU(),
    "add": _add,
    "add_": _add,
    "mean": _mean,
}


class _Tracer(fx.Tracer):
    """Looks into a model's own modules, but not into those that this project knows by their kind."""

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
    return _traced(model)[0]


def _traced(model: nn.Module) -> tuple[list[Layer], dict[fx.Node, str]]:
    """Return the layers of a network, and by node of its graph the layer that makes the node's value."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises under tracing
        raise ValueError(f"cannot trace {type(model).__name__}.forward: {error}") from error
    names, layers = {}, []
    for node in graph.nodes:
        if node.op == "placeholder":
            if INPUT in names.values():
                raise ValueError(f"{type(model).__name__} takes several inputs; one image tensor is supported")
            names[node] = INPUT
        elif node.op == "output":
            if not layers or names.get(node.args[0]) != layers[-1].name:
                raise ValueError(f"{type(model).__name__} must return the tensor that its last layer makes")
        else:
            chain = _layers(model, node, names)
            _check_use(model, node)
            names[node] = chain[-1].name if chain else names[node.all_input_nodes[0]]
            for layer in chain:
                if any(layer.module is other.module and isinstance(layer.module, _STATEFUL) for other in layers):
                    raise ValueError(f"layer {layer.name!r} is used twice; give each use a module of its own")
                layers.append(layer)
    return layers, names


def _layers(model: nn.Module, node: fx.Node, names: dict[fx.Node, str]) -> list[Layer]:
    """Turn a node of the trace into one layer, or into a chain of them where one module does several things."""
    inputs = tuple(names[source] for source in node.all_input_nodes)
    if node.op == "call_module":
        name, module = str(node.target), model.get_submodule(node.target)
        uses = [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]
        name += f"_{uses.index(node)}" if node is not uses[0] else ""  # an activation that serves twice
    else:
        name, module = node.name, _CALLS[node.target](*node.args, **node.kwargs) if node.target in _CALLS else None
        if module is None:
            raise _unsupported(name, f"{getattr(node.target, '__name__', node.target)}{_written(node)}")
    parts = list(module) if isinstance(module, nn.Sequential) else [module]
    if type(module).__name__ == "BatchNormAct2d":  # timm's
        parts += [module.drop, module.act]
    layers = []
    for part in parts:
        part_name = f"{name}.{len(layers)}" if layers else name
        if not isinstance(part, _NOTHING):
            layers.append(Layer(part_name, _as_it_predicts(part_name, part), (layers[-1].name,) if layers else inputs))
    return layers


def _check_use(model: nn.Module, node: fx.Node) -> None:
    """Refuse a layer that changes a value under its old name, or that nobody reads."""
    order = list(node.graph.nodes)
    later = [user for user in node.all_input_nodes[0].users if order.index(user) > order.index(node)]
    if later and _in_place(model, node):
        raise ValueError(
            f"layer {node.name!r} works in place on a tensor that {later[0].name!r} reads afterwards; "
            "use the layer's result there, or do not work in place"
        )
    if not node.users:
        raise ValueError(f"nothing reads the result of layer {node.name!r}; use it, or leave the layer out")


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(node.target), "inplace", False)
    if node.target in (F.relu, F.relu6):
        return (*node.args[1:], node.kwargs.get("inplace", False))[0]
    return node.target is operator.iadd or str(node.target).endswith("_")


def _written(node: fx.Node) -> str:
    arguments = [str(value) for value in node.args] + [f"{key}={value}" for key, value in node.kwargs.items()]
    return f"({', '.join(arguments)})"


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
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        raise _unsupported(name, f"Flatten({module.start_dim}, {module.end_dim}) (only from dimension 1 to the last)")
    return module


def _unsupported(name: str, kind: object) -> ValueError:
    supported = ", ".join(sorted(kind.__name__ for kind in SUPPORTED))
    return ValueError(f"layer {name!r} is of the unsupported kind {kind}; supported are: {supported}")


def rebind(layers: list[Layer], model: nn.Module) -> list[Layer]:
    """Return the trace of a network that differs from the traced one only in its tensors."""
    return [
        replace(layer, module=model.get_submodule(layer.name)) if isinstance(layer.module, _STATEFUL) else layer
        for layer in layers
    ]
