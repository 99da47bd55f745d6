"""A network as a list of layers: one trace serves relevance, removal and partial forward passes."""

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from lrp_core.errors import check_choice


class Add(nn.Module):
    """The sum of its inputs, as at the end of a residual block."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Add inputs of one shape."""
        return sum(inputs[1:], inputs[0])


class Concat(nn.Module):
    """Its inputs side by side along the channels, as in a dense block."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Concatenate along dimension 1."""
        return torch.cat(inputs, dim=1)


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

WEIGHTED = (nn.Conv2d, nn.Linear)  # kinds (with their subclasses) that hold a weight
ACTIVATIONS = (nn.ReLU, nn.ReLU6)  # not negative, by channel and position
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_STATEFUL = (*WEIGHTED, nn.BatchNorm2d)
# Kinds behind which nothing is negative if nothing was before.
_SIGN_KEEPING = (nn.Flatten, *POOLING, Add, Concat)
_NOTHING = (nn.Dropout, nn.Identity)  # in a network that predicts
SUPPORTED = (*WEIGHTED, nn.BatchNorm2d, *ACTIVATIONS, *POOLING, nn.Flatten, Add, Concat, *_NOTHING)


def _concat(tensors: object, dim: int = 0) -> nn.Module | None:
    return Concat() if dim == 1 else None


def _add(*addends: object, alpha: int = 1) -> nn.Module | None:
    return Add() if alpha == 1 and all(isinstance(addend, fx.Node) for addend in addends) else None


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


def shallow_copy(module: nn.Module) -> nn.Module:
    """Return a network with modules of its own and the tensors of the given one."""
    other = object.__new__(type(module))  # fx.GraphModule's own __new__ would make a class without a forward
    other.__dict__ = module.__dict__ | {
        "_parameters": module._parameters.copy(),
        "_buffers": module._buffers.copy(),
        "_modules": {name: child and shallow_copy(child) for name, child in module._modules.items()},
    }
    return other


def identity_blocks(layers: list[Layer]) -> dict[str, tuple[str, ...]]:
    """Return the residual blocks whose shortcut is the identity, from input to output.

    Args:
        layers: a trace.

    Returns:
        By name of the sum that ends the block, the layers of its other branch, last first.
    """
    by_name, blocks = {layer.name: layer for layer in layers}, {}
    for layer in layers:
        if isinstance(layer.module, Add) and len(layer.inputs) == 2:
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


def affine(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift by channel, (C,) each, of a batch normalisation in eval mode."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean * scale
    return (scale * norm.weight, shift * norm.weight + norm.bias) if norm.affine else (scale, shift)


class ChannelAffine(nn.Module):
    """A batch normalisation in eval mode, as the scale and shift that it is."""

    def __init__(self, norm: nn.BatchNorm2d):
        """Take scale and shift from the running statistics."""
        super().__init__()
        scale, shift = affine(norm)
        self.scale, self.shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Scale and shift (N, C, H, W) by channel."""
        return torch.addcmul(self.shift, a, self.scale)


def with_weight(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Module:
    """Return the layer with other weights; it shares nothing but its settings with the given one."""
    other = type(layer).__new__(type(layer))
    other.__dict__ = layer.__dict__ | {"_parameters": {"weight": weight, "bias": bias}}
    return other


def fold_batchnorm(layers: list[Layer]) -> list[Layer]:
    """Fold each batch normalisation into the convolution before it, exactly; the traced model is untouched.

    A batch normalisation behind anything else, or behind a convolution that others read too, becomes the scale and
    shift by channel that it is.
    """
    readers = _readers(layers)
    folded: dict[str, Layer] = {}
    renamed: dict[str, str] = {}
    for layer in layers:
        layer = replace(layer, inputs=tuple(renamed.get(name, name) for name in layer.inputs))
        if isinstance(layer.module, nn.BatchNorm2d):
            source = folded.get(layer.inputs[0])
            if source is not None and isinstance(source.module, nn.Conv2d) and len(readers[source.name]) == 1:
                scale, shift = affine(layer.module)
                weight = source.module.weight.detach() * scale.view(-1, 1, 1, 1)
                bias = shift if source.module.bias is None else torch.addcmul(shift, source.module.bias, scale)
                folded[source.name] = replace(source, module=with_weight(source.module, weight, bias.detach()))
                renamed[layer.name] = source.name
                continue
            layer = replace(layer, module=ChannelAffine(layer.module))
        folded[layer.name] = layer
    return list(folded.values())


def _readers(layers: list[Layer]) -> dict[str, list[Layer]]:
    readers: dict[str, list[Layer]] = {name: [] for name in (INPUT, *(layer.name for layer in layers))}
    for layer in layers:
        for source in layer.inputs:
            readers[source].append(layer)
    return readers


def nonnegative(layers: list[Layer]) -> set[str]:
    """Return the names of the layers whose outputs cannot be negative."""
    names: set[str] = set()
    for layer in layers:
        keeps = isinstance(layer.module, _SIGN_KEEPING) and names.issuperset(layer.inputs)
        if keeps or isinstance(layer.module, ACTIVATIONS):
            names.add(layer.name)
    return names


def rectified(layers: list[Layer]) -> set[str]:
    """Return the names of the layers that are read by nothing but activations, so that negative outputs are lost."""
    readers = _readers(layers)
    return {
        layer.name
        for layer in layers
        if readers[layer.name] and all(isinstance(reader.module, ACTIVATIONS) for reader in readers[layer.name])
    }


def batched(images: torch.Tensor, device: torch.device, size: int = 40) -> list[dict[str, torch.Tensor]]:
    """Return images (N, C, H, W) as batches for :func:`run_together`, on a device."""
    return [{INPUT: images[i : i + size].to(device)} for i in range(0, len(images), size)]


def run(
    layers: list[Layer], values: dict[str, torch.Tensor], visit: Callable[[Layer, dict], None] | None = None
) -> torch.Tensor:
    """Run the layers and return the last one's output.

    Args:
        layers: a trace, or the end of one.
        values: the tensors that these layers read from outside, by name; ``{"input": images}`` for a whole trace.
        visit: called before each layer with it and all values that it or a later layer still reads.
    """
    (output,) = run_together(layers, [values], visit and (lambda layer, lives: visit(layer, lives[0])))
    return output


def run_together(
    layers: list[Layer],
    batches: list[dict[str, torch.Tensor]],
    visit: Callable[[Layer, list[dict]], None] | None = None,
) -> list[torch.Tensor]:
    """Run the layers on several batches, layer by layer, and return the last one's outputs.

    Args:
        layers: a trace, or the end of one.
        batches: of each, the tensors that these layers read from outside, by name.
        visit: called before each layer with it and, of each batch, all values that it or a later layer still reads. It
            may change the layer.
    """
    last_use = {source: i for i, layer in enumerate(layers) for source in layer.inputs}
    lives = [{name: value for name, value in values.items() if name in last_use} for values in batches]
    for i, layer in enumerate(layers):
        if visit is not None:
            visit(layer, lives)
        outputs = []
        for k, live in enumerate(lives):
            outputs.append(layer.module(*(live[source] for source in layer.inputs)))
            lives[k] = {name: value for name, value in live.items() if last_use[name] > i} | {layer.name: outputs[-1]}
            del live
    return outputs
