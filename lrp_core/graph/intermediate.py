"""Heads that read intermediate features: those of earlier layers, averaged over positions, before the last ones."""

from collections.abc import Sequence

import torch
from torch import nn

from lrp_core.graph.exits import features_by_exit, own_end
from lrp_core.graph.explicit import of_layers
from lrp_core.graph.layers import ChannelScale, Concat, Layer
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import up_to

HEAD = "head_on_intermediate"  # the part of a network that reads them


def intermediate_channels(model: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Return the layers whose features a head may read beside the last ones, and how many channels they have.

    They are the exits of its backbone (:mod:`lrp_core.graph.exits`) from the middle one on, without its own end.

    Args:
        model: images to logits, made of supported layers.
        image: (1, C, H, W).

    Raises:
        ValueError: there are none, the head reads them already, or it reads the maps of several layers.
    """
    if any(HEAD in layer.name.split(".") for layer in trace(model)):
        raise ValueError(
            "the last layer of this network reads intermediate features already: choose a method without "
            "intermediate-features"
        )
    found = features_by_exit(up_to(model, own_end(model)), image)
    names = list(found)[(len(found) - 1) // 2 : -1]
    if not names:
        raise ValueError(
            "intermediate-features needs a layer, before the last convolution, whose maps are all that goes on there; "
            "this network has none, so choose another method"
        )
    return {name: found[name].shape[1] for name in names}


def has_intermediate(model: nn.Module, image: torch.Tensor) -> bool:
    """Return whether there are such layers; arguments as those of :func:`intermediate_channels`."""
    try:
        intermediate_channels(model, image)
    except ValueError:
        return False
    return True


def with_intermediate(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return the network that gives features of some layers, then what the last layer reads, (N, C).

    Args:
        model: images to logits, made of supported layers; untouched, its layers are shared.
        names: of layers that make maps; their features are averaged over positions.
    """
    return of_layers(_features(model, names))


def head_on_intermediate(
    model: nn.Module, names: Sequence[str], scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> nn.Module:
    """Return a classifier with another last layer, which reads intermediate features, too.

    Args:
        model: as for :func:`with_intermediate`.
        names: as there.
        scale: of the features, which are multiplied by it first, (C,).
        weight: of the last layer, (K, C).
        bias: of the last layer, (K,).
    """
    like = next(model.parameters(), weight)
    dense = nn.Linear(weight.shape[1], weight.shape[0], device="meta").eval()
    scale, dense.weight, dense.bias = (
        nn.Parameter(each.to(like), requires_grad=False) for each in (scale, weight, bias)
    )
    layers = _features(model, names)
    scaled = Layer(f"{HEAD}.scale", ChannelScale(scale), (layers[-1].name,))
    return of_layers([*layers, scaled, Layer(f"{HEAD}.dense", dense, (scaled.name,))])


def _features(model: nn.Module, names: Sequence[str]) -> list[Layer]:
    *layers, last = trace(model)
    pools = [Layer(f"{HEAD}.pool{i}", nn.AdaptiveAvgPool2d(1), (name,)) for i, name in enumerate(names)]
    flat = [Layer(f"{HEAD}.flatten{i}", nn.Flatten(), (pool.name,)) for i, pool in enumerate(pools)]
    read = (*(layer.name for layer in flat), last.inputs[0])
    return [*layers, *pools, *flat, Layer(f"{HEAD}.features", Concat(), read)]
