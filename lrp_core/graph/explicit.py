"""A network whose forward calls modules where its code has calls that depend on how many channels there are."""

from collections.abc import Callable

from torch import fx, nn

from lrp_core.graph.calls import operands
from lrp_core.graph.layers import Layer, PadChannels
from lrp_core.graph.sharing import shallow_copy
from lrp_core.graph.tracing import trace_with_nodes


def with_modules(model: nn.Module) -> nn.Module:
    """Return a network in which what pads channels is a module, so that it can become smaller.

    ``F.pad(x, (0, 0, 0, 0, 4, 4))`` in a model's own code would go on padding with 4 channels.

    Args:
        model: as for :func:`lrp_core.graph.tracing.trace`; untouched, its layers are shared. It is returned itself if
            its code pads no channels.
    """
    layers, names = trace_with_nodes(model)
    pads = {layer.name for layer in layers if isinstance(layer.module, PadChannels)}
    if pads <= {name for name, _ in model.named_modules()}:
        return model
    graph, root = next(iter(names)).graph, shallow_copy(model)
    call_modules(layers, names, root, lambda layer: layer.name in pads)
    return fx.GraphModule(root, graph).eval()


def call_modules(
    layers: list[Layer], names: dict[fx.Node, str], root: nn.Module, chosen: Callable[[Layer], bool]
) -> None:
    """Make nodes that are no calls of modules call some, in place, under the names of their layers.

    Args:
        layers: of :func:`lrp_core.graph.tracing.trace_with_nodes`.
        names: of the same.
        root: gets the modules.
        chosen: which layers.
    """
    for layer in filter(chosen, layers):
        node = next((node for node, name in names.items() if name == layer.name), None)
        if node is not None and layer.name != node.target and not layer.name.startswith(f"{node.target}."):
            parent, _, name = layer.name.rpartition(".")
            root.get_submodule(parent).add_module(name, layer.module)
            node.args, node.kwargs = operands(node), {}
            node.op, node.target = "call_module", layer.name
