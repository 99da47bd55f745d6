"""A network whose forward calls one module for each of its layers."""

from collections.abc import Iterable

from torch import fx, nn

from lrp_core.graph.layers import INPUT, STATEFUL, Layer
from lrp_core.graph.tracing import trace_with_nodes

_RESHAPING = ("view", "reshape", "expand", "unflatten")


def with_modules(model: nn.Module) -> nn.Module:
    """Return a network that can become smaller: one in which all that depends on numbers of channels is a module.

    ``F.pad(x, (0, 0, 0, 0, 4, 4))`` in a model's own code would go on padding with 4 channels.

    Args:
        model: as for :func:`lrp_core.graph.tracing.trace`; untouched, its layers are shared. It is returned itself if
            its code depends on no number of channels.
    """
    layers, names = trace_with_nodes(model)
    modules, graph = dict(model.named_modules()), next(iter(names)).graph
    own = {layer.name for layer in layers if modules.get(layer.name) is layer.module}
    kept = all(layer.name in own for layer in layers if isinstance(layer.module, STATEFUL))
    return model if kept and not any(_counts(node, modules, own) for node in graph.nodes) else of_layers(layers)


def of_layers(layers: Iterable[Layer]) -> nn.Module:
    """Return the network that runs some layers, one module each, under their names; it shares their tensors."""
    graph, root = fx.Graph(), {}
    values = {INPUT: graph.placeholder(INPUT)}
    for layer in layers:
        root[layer.name] = layer.module
        values[layer.name] = graph.call_module(layer.name, tuple(values[name] for name in layer.inputs))
    graph.output(values[layer.name])
    return fx.GraphModule(root, graph).eval()


def _counts(node: fx.Node, modules: dict[str, nn.Module], own: set[str]) -> bool:
    """Return whether a node depends on how many channels there are, other than as one of the network's own layers."""
    if node.op == "call_module":
        module = modules[node.target]
        return isinstance(module, nn.Unflatten) or (isinstance(module, STATEFUL) and node.target not in own)
    if node.op == "get_attr" or getattr(node.target, "__name__", node.target) not in _RESHAPING:
        return False
    sizes = [each for arg in node.args[1:] for each in (arg if isinstance(arg, tuple | list) else (arg,))]
    return any(isinstance(size, int) and size > 1 for size in sizes)
