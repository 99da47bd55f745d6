"""Pruned networks on disk: one safetensors file holds the weights, the kept filters and how to build the network."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lrp_core.backbones import load_backbone
from lrp_core.heads import classifier
from lrp_core.paths import atomic
from lrp_core.pruning import PrunedNetwork, remove_filters


def save_pruned(path: Path, network: PrunedNetwork, recipe: dict | None = None) -> None:
    """Write a pruned network, whole or not at all.

    Args:
        path: the file to write, ``.safetensors``.
        network: as pruned.
        recipe: ``{"backbone": name, "head": [n_heads, n_classes, C]}`` if the network is the
            :func:`lrp_core.heads.classifier` of a backbone, C being the unpruned backbone's channels; None for any
            other network, which :func:`load_pruned` is then told how to build.
    """
    groups = network.coupling.filters
    kept = {name: np.flatnonzero((of < 0) | network.active[of]).tolist() for name, of in groups.items()}
    weights = [layer.weight for layer in network.model.modules() if isinstance(layer, nn.Conv2d)]
    description = {
        "recipe": recipe,
        "kept": kept,
        "example_shape": list(network.example_shape),
        "channels_last": all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights),
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.model.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, {"pruned": json.dumps(description)})


def load_pruned(path: Path, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Read a pruned network, in eval mode and frozen; its outputs are those of the saved one, bit by bit.

    Args:
        path: a file that :func:`save_pruned` wrote.
        build: makes the unpruned network, with any weights; needed where it was saved without a recipe.

    Raises:
        ValueError: the file was not written by :func:`save_pruned`, or is of another network than ``build`` makes.
    """
    try:
        with safe_open(path, "pt") as file:
            description = json.loads(file.metadata()["pruned"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no pruned network; expected a file written by save_pruned") from error
    recipe = description["recipe"]
    if build is None and recipe is None:
        raise ValueError(f"{path} does not say how its network is built; give build, which makes the unpruned one")
    model = _by_recipe(recipe) if build is None else build()
    try:
        gone = {
            name: sorted(set(range(model.get_submodule(name).out_channels)) - set(kept))
            for name, kept in description["kept"].items()
        }
        smaller = remove_filters(model, gone, torch.zeros(description["example_shape"]))
        _add_biases(smaller, tensors)
        smaller.load_state_dict(tensors)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is of another network than the one built for it: {error}") from error
    if description["channels_last"]:
        smaller.to(memory_format=torch.channels_last)
    return smaller.eval().requires_grad_(False)


def _add_biases(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Give the layers a bias for which one was saved: reconstruction adds them."""
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "bias" and model.get_submodule(layer).bias is None:
            model.get_submodule(layer).bias = nn.Parameter(torch.zeros_like(tensor))


def _by_recipe(recipe: dict) -> nn.Module:
    return classifier(load_backbone(recipe["backbone"], "random"), torch.zeros(recipe["head"]))
