"""Pruned networks on disk: one safetensors file holds the weights and says which filters were kept."""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lrp_core.graph.exits import own_end
from lrp_core.graph.explicit import with_modules
from lrp_core.graph.intermediate import HEAD, head_on_intermediate, with_intermediate
from lrp_core.graph.outputs import before_softmax, with_softmax
from lrp_core.graph.resizing import NETWORK, resizing
from lrp_core.graph.truncation import classifier, truncated, up_to
from lrp_core.pruning.surgery import remove_filters
from lrp_core.utils.devices import layout_of
from lrp_core.utils.files import atomic


def save_pruned(
    path: Path,
    model: nn.Module,
    kept: dict[str, list[int]],
    example_shape: tuple[int, ...],
    recipe: dict | None = None,
    truncation: str | None = None,
    image_size: tuple[int, int] | None = None,
    intermediate: Sequence[str] = (),
) -> None:
    """Write a pruned network, whole or not at all.

    Args:
        path: the file to write, ``.safetensors``.
        model: as pruned.
        kept: by convolution, the filters that were kept, by their numbers in the unpruned network
            (:meth:`lrp_core.pruning.network.PrunedNetwork.kept`).
        example_shape: of one input, (1, C, H, W).
        recipe: a note for whoever builds the unpruned network again; whatever JSON holds.
        truncation: what is left of the depth (:class:`lrp_core.graph.truncation.Truncation`), with a head of its own;
            None for the unpruned network's.
        image_size: to which the network resizes its images first, (H, W); None if it does not.
        intermediate: layers whose features its last layer reads beside the last ones
            (:func:`lrp_core.graph.intermediate.head_on_intermediate`).
    """
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    description = {
        "recipe": recipe,
        "kept": kept,
        "truncation": truncation,
        "image_size": image_size,
        "intermediate_features": list(intermediate),
        "example_shape": list(example_shape),
        "channels_last": all(layout_of(weight) == torch.channels_last for weight in weights),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, {"pruned": json.dumps(description)})


def read_recipe(path: Path) -> dict | None:
    """Return the note that a pruned network was saved with.

    Raises:
        ValueError: the file was not written by :func:`save_pruned`.
    """
    return _read(path)[0]["recipe"]


def load_pruned(path: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """Read a pruned network, in eval mode and frozen; its outputs are those of the saved one, bit by bit.

    It has the dtype and device of the network that ``build`` makes; with another dtype outputs are rounded.

    Args:
        path: a file that :func:`save_pruned` wrote.
        build: makes the unpruned network, with any weights.

    Raises:
        ValueError: the file was not written by :func:`save_pruned`, or is of another network than ``build`` makes.
    """
    description, tensors = _read(path)
    model = with_modules(build().eval())
    try:
        first = next(model.parameters())
        example = torch.zeros(description["example_shape"], dtype=first.dtype, device=first.device)
        truncation, size = description.get("truncation"), description.get("image_size")  # which older files lack
        inside = "" if size is None else f"{NETWORK}."
        if truncation is not None:
            part = truncated(up_to(model, own_end(model)), truncation)
            head = tensors[f"{inside}head.weight"]
            model, softmax = classifier(part, example.new_zeros(len(head), part(example).shape[1])), None
        else:
            model, softmax = before_softmax(model)
        if names := description.get("intermediate_features"):
            head = tensors[f"{inside}{HEAD}.dense.weight"]
            zeros = example.new_zeros(len(head), with_intermediate(model, names)(example).shape[1])
            model = head_on_intermediate(model, names, zeros[0], zeros, zeros[:, 0])
        model = model if softmax is None else with_softmax(model, softmax)
        if size is not None:
            model = resizing(model, size)
        pruned = {
            name: sorted(set(range(model.get_submodule(name).out_channels)) - set(kept))
            for name, kept in description["kept"].items()
        }
        smaller = remove_filters(model, pruned, example)
        _add_biases(smaller, tensors)
        state = OrderedDict(tensors)
        state._metadata = smaller.state_dict()._metadata  # the versions of its modules, which MNASNet asks for
        smaller.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, AttributeError, StopIteration) as error:
        raise ValueError(f"{path} is of another network than the one built for it: {error}") from error
    if description["channels_last"]:
        smaller.to(memory_format=torch.channels_last)
    return smaller.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            description = json.loads(file.metadata()["pruned"])
            return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no pruned network; expected a file written by save_pruned") from error


def _add_biases(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Give the layers a bias for which one was saved: reconstruction adds them."""
    for name, tensor in tensors.items():
        name, _, kind = name.rpartition(".")
        layer = model.get_submodule(name)
        if kind == "bias" and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(tensor.shape))
