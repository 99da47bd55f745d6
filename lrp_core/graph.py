"""A network as a list of layers: one trace serves relevance, removal and partial forward passes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layer:
    """One operation of a traced network.

    Attributes:
        name: as in ``named_modules()``; for a bare function, its name in the trace.
        module: what it computes, never in place; shares its parameters with the traced model.
        inputs: names of the layers that it reads, ``"input"`` being the network's input.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


INPUT = "input"

# Layers that hold weights, and layers that neither mix nor reorder channels.
WEIGHTED = (nn.Conv2d, nn.Linear)
CHANNELWISE = (nn.ReLU, nn.Dropout, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
SUPPORTED = (*WEIGHTED, *CHANNELWISE, nn.Flatten)

_FUNCTIONS: dict[Callable, Callable[..., nn.Module]] = {
    torch.flatten: nn.Flatten,
    torch.relu: nn.ReLU,
    F.relu: lambda inplace=False: nn.ReLU(),
}


def trace(model: nn.Module) -> list[Layer]:
    """List the layers of a network in the order in which they run.

    Args:
        model: takes one tensor, returns one tensor, and is made of supported layers.

    Raises:
        ValueError: a layer is not supported (its name and type are in the message), a layer is used twice, or the
            model's forward cannot be traced.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises under tracing
        raise ValueError(f"cannot trace {type(model).__name__}.forward: {error}") from error
    names, layers = {}, []
    for node in graph.nodes:
        if node.op == "placeholder":
            if INPUT in names.values():
                raise ValueError(f"{type(model).__name__} takes several inputs; one image tensor is supported")
            names[node] = INPUT
        elif node.op == "output":
            if names.get(node.args[0]) != layers[-1].name:
                raise ValueError(f"{type(model).__name__} must return the tensor that its last layer makes")
        else:
            layer = _layer(model, node, names)
            if layer.name in names.values():
                raise ValueError(f"layer {layer.name!r} is used twice; give each use a module of its own")
            names[node] = layer.name
            layers.append(layer)
    return layers


def _layer(model: nn.Module, node: fx.Node, names: dict[fx.Node, str]) -> Layer:
    inputs = tuple(names[source] for source in node.all_input_nodes)
    if node.op == "call_module":
        name, module = str(node.target), model.get_submodule(node.target)
    elif node.op == "call_function" and node.target in _FUNCTIONS:
        name, module = node.name, _FUNCTIONS[node.target](*node.args[1:], **node.kwargs)
    else:
        raise _unsupported(node.name, getattr(node.target, "__name__", node.target))
    if type(module) not in SUPPORTED:
        raise _unsupported(name, type(module).__name__)
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        raise _unsupported(name, f"Conv2d with groups={module.groups}, padding_mode={module.padding_mode!r}")
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        raise _unsupported(name, f"Flatten({module.start_dim}, {module.end_dim}) (only from dimension 1 to the last)")
    if isinstance(module, nn.ReLU):
        module = nn.ReLU()
    elif isinstance(module, nn.Dropout):
        module = nn.Identity()  # the network as it predicts
    return Layer(name, module, inputs)


def _unsupported(name: str, kind: object) -> ValueError:
    supported = ", ".join(sorted(kind.__name__ for kind in SUPPORTED))
    return ValueError(f"layer {name!r} is of the unsupported kind {kind}; supported are: {supported}")


def run(
    layers: list[Layer], values: dict[str, torch.Tensor], visit: Callable[[Layer, dict], None] | None = None
) -> torch.Tensor:
    """Run the layers and return the last one's output.

    Args:
        layers: a trace, or the end of one.
        values: the tensors that these layers read from outside, by name; ``{"input": images}`` for a whole trace.
        visit: called before each layer with it and all values that it or a later layer still reads.
    """
    last_use = {source: i for i, layer in enumerate(layers) for source in layer.inputs}
    live = {name: value for name, value in values.items() if name in last_use}
    for i, layer in enumerate(layers):
        if visit is not None:
            visit(layer, live)
        output = layer.module(*(live[source] for source in layer.inputs))
        live = {name: value for name, value in live.items() if last_use[name] > i}
        live[layer.name] = output
    return output
