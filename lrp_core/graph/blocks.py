"""Residual blocks: which of them a network can do without, and the network that skips some."""

from collections.abc import Collection

from torch import fx, nn

from lrp_core.graph.calls import operands
from lrp_core.graph.explicit import call_modules
from lrp_core.graph.layers import Layer, Sum
from lrp_core.graph.sharing import shallow_copy
from lrp_core.graph.tracing import trace_with_nodes
from lrp_core.utils.errors import check_choice


def identity_blocks(layers: list[Layer]) -> dict[str, tuple[str, ...]]:
    """Return the residual blocks whose shortcut is the identity, from input to output.

    Args:
        layers: a trace.

    Returns:
        By name of the sum that ends the block, the layers of its other branch, last first.
    """
    by_name, blocks = {layer.name: layer for layer in layers}, {}
    for layer in layers:
        if isinstance(layer.module, Sum) and len(layer.inputs) == 2:
            for shortcut, name in (layer.inputs, layer.inputs[::-1]):
                branch = []
                while name != shortcut and name in by_name and len(by_name[name].inputs) == 1:
                    branch.append(name)
                    (name,) = by_name[name].inputs
                if name == shortcut and branch:
                    blocks[layer.name] = tuple(branch)
    return blocks


def without_blocks(model: nn.Module, blocks: Collection[str]) -> nn.Module:
    """Return a network that skips some of its :func:`identity_blocks`; the layers that are kept keep their names.

    Args:
        model: as for :func:`lrp_core.graph.tracing.trace`; untouched, its layers are shared.
        blocks: names of the sums that end them.

    Raises:
        ValueError: there is no such block.
    """
    layers, names = trace_with_nodes(model)
    known = identity_blocks(layers)
    for block in blocks:
        check_choice("residual block", block, known)
    graph, root = next(iter(names)).graph, shallow_copy(model)
    # Modules of their own, so that no layer's name depends on how many like it are before it.
    call_modules(layers, names, root, lambda layer: layer.name not in blocks)
    for layer in layers:
        if layer.name in blocks:
            node = next(node for node, name in names.items() if name == layer.name)
            branch = layer.inputs.index(known[layer.name][0])
            node.replace_all_uses_with(operands(node)[1 - branch])
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(root, graph).eval()
