"""A network whose forward calls one module for each of its layers."""

import operator
from collections.abc import Collection, Iterable
from types import MethodType

from torch import fx, nn

from lrp_core.graph.layers import INPUT, STATEFUL, Layer
from lrp_core.graph.sharing import shallow_copy
from lrp_core.graph.tracing import trace_with_nodes

_RESHAPING = ("view", "reshape", "expand", "unflatten")
_ARITHMETIC = (operator.mul, operator.floordiv, operator.add)  # of sizes, before they go to one of these


def with_modules(model: nn.Module) -> nn.Module:
    """Return a network that can become smaller: one in which all that depends on numbers of channels is a module.

    ``F.pad(x, (0, 0, 0, 0, 4, 4))`` in a model's own code would go on padding with 4 channels.

    Args:
        model: as for :func:`lrp_core.graph.tracing.trace`; untouched, its layers are shared. It is returned itself if
            its code depends on no number of channels.
    """
    layers, names, asks = trace_with_nodes(model)
    modules, graph = dict(model.named_modules()), next(iter(names)).graph
    own = {layer.name for layer in layers if modules.get(layer.name) is layer.module}
    kept = all(layer.name in own for layer in layers if isinstance(layer.module, STATEFUL))
    counts = asks or any(_counts(node, modules, own, names) for node in graph.nodes)
    return model if kept and not counts and not _has_more(model) else of_layers(layers)


def of_layers(layers: Iterable[Layer]) -> nn.Module:
    """Return the network that runs some layers, one module each, under their names; it shares their tensors."""
    graph, root = fx.Graph(), {}
    values = {INPUT: graph.placeholder(INPUT)}
    for layer in layers:
        root[layer.name] = shallow_copy(layer.module)  # the name of another layer may begin with this one's
        values[layer.name] = graph.call_module(layer.name, tuple(values[name] for name in layer.inputs))
    graph.output(values[layer.name])
    return fx.GraphModule(root, graph).eval()


def _has_more(model: nn.Module) -> bool:
    """Return whether modules are also kept where copies would not replace them: in lists, or by bound methods."""
    values = [value for module in model.modules() for value in vars(module).values()]
    lists = [value for value in values if isinstance(value, list | tuple)]
    return any(isinstance(value, MethodType) for value in values) or any(
        isinstance(each, nn.Module) for value in lists for each in value
    )


def _counts(node: fx.Node, modules: dict[str, nn.Module], own: set[str], made: Collection[fx.Node]) -> bool:
    """Return whether a node depends on how many channels there are, other than as one of the network's own layers."""
    if node.op == "call_module":
        module = modules[node.target]
        return isinstance(module, nn.Unflatten) or (isinstance(module, STATEFUL) and node.target not in own)
    of_sizes = node.target in _ARITHMETIC and not any(each in made for each in node.all_input_nodes)
    if node.op == "get_attr" or not (of_sizes or getattr(node.target, "__name__", node.target) in _RESHAPING):
        return False
    given = [*node.args[0 if of_sizes else 1 :], *node.kwargs.values()]
    sizes = [each for arg in given for each in (arg if isinstance(arg, tuple | list) else (arg,))]
    return any(isinstance(size, int) and size > 1 for size in sizes)
