"""A network that ends earlier, or skips residual blocks."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from lrp_core.graph.execution import batched, run_together
from lrp_core.graph.layers import INPUT, Layer, Sum, shallow_copy
from lrp_core.graph.tracing import _traced, trace
from lrp_core.utils.devices import device_of
from lrp_core.utils.errors import check_choice


def up_to(model: nn.Module, name: str) -> nn.Module:
    """Return the part of a network that ends with a layer, which is all that is read behind it.

    Args:
        model: as for :func:`trace`; untouched, the part shares its layers.
        name: of the layer.
    """
    _, names = _traced(model)
    last = next(node for node, layer in names.items() if layer == name)
    for node in reversed(last.graph.nodes):
        if node is last:
            break
        last.graph.erase_node(node)
    last.graph.output(last)
    return fx.GraphModule(model, last.graph).eval()


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
    """Return a network that skips some of its :func:`identity_blocks`; what is left keeps its names.

    Args:
        model: as for :func:`trace`; untouched, its layers are shared.
        blocks: names of the sums that end them.

    Raises:
        ValueError: there is no such block.
    """
    layers, names = _traced(model)
    known = identity_blocks(layers)
    for block in blocks:
        check_choice("residual block", block, known)
    graph, root = next(iter(names)).graph, shallow_copy(model)
    for layer in layers:
        node = next((node for node, name in names.items() if name == layer.name), None)
        if layer.name in blocks:
            branch = layer.inputs.index(known[layer.name][0])
            node.replace_all_uses_with(node.all_input_nodes[1 - branch])
        elif node is not None and layer.name != node.target and not layer.name.startswith(f"{node.target}."):
            # A module of its own, so that its name does not depend on how many like it are before it.
            parent, _, name = layer.name.rpartition(".")
            root.get_submodule(parent).add_module(name, layer.module)
            node.op, node.target, node.args, node.kwargs = "call_module", layer.name, tuple(node.all_input_nodes), {}
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(root, graph).eval()


def features_by_depth(backbone: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a head would read, had the backbone ended earlier: by layer, averaged over positions, (N, C).

    A backbone can end wherever one tensor is all that goes on, and a convolution reads it; and where it ends now, which
    comes last.

    Args:
        backbone: images to feature maps, made of supported layers.
        images: (N, C, H, W), normalised.
    """
    features = {}

    def keep(name: str, maps: list[torch.Tensor]) -> None:
        features[name] = torch.cat([part.mean(dim=(2, 3)) for part in maps]).cpu()

    with torch.no_grad():
        _visit_exits(backbone, images, keep)
    return features


def multiply_adds_by_depth(backbone: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Return the multiply-adds of one image (1, C, H, W) up to wherever the backbone may end, without a head."""
    found = {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _visit_exits(backbone, image, lambda name, _: found.update({name: counter.get_total_flops() // 2}))
    return found


@dataclass(frozen=True)
class Truncation:
    """What is left of a backbone's depth; in tables, as text: the end, then each block that is skipped, after " -".

    Attributes:
        exit_: the name of the layer behind which the backbone ends, "" for its own end.
        skipped: those of the sums that end the residual blocks that are skipped
            (:func:`lrp_core.graph.truncation.without_blocks`).
    """

    exit_: str
    skipped: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Truncation":
        """Return the cut that a text says."""
        exit_, *skipped = text.split(" -")
        return cls(exit_, tuple(skipped))

    def __str__(self) -> str:
        """Return the text for :meth:`parse`."""
        return " -".join([self.exit_, *self.skipped])


def truncated(backbone: nn.Module, truncation: str) -> nn.Module:
    """Return the part of a backbone that a cut leaves; its layers are shared.

    Args:
        backbone: images to feature maps, made of supported layers; untouched.
        truncation: see :class:`Cut`.
    """
    left = Truncation.parse(truncation)
    part = without_blocks(backbone, left.skipped) if left.skipped else backbone
    return up_to(part, left.exit_) if left.exit_ else part


def _visit_exits(backbone: nn.Module, images: torch.Tensor, exit_: Callable[[str, list[torch.Tensor]], None]) -> None:
    """Run a backbone, and show what it has wherever it may end: the layer's name and, by batch, its feature maps."""
    layers = trace(backbone)

    def visit(layer: Layer, lives: list[dict[str, torch.Tensor]]) -> None:
        single = len(lives[0]) == 1 and layer.inputs[0] != INPUT
        if single and isinstance(layer.module, nn.Conv2d):
            exit_(layer.inputs[0], [live[layer.inputs[0]] for live in lives])

    exit_(layers[-1].name, run_together(layers, batched(images, device_of(backbone)), visit))
