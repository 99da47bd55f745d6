"""The logits of a network that ends in a softmax."""

from dataclasses import replace

from torch import nn

from lrp_core.graph.explicit import of_layers
from lrp_core.graph.layers import OUTPUTS, Layer
from lrp_core.graph.tracing import trace


def up_to_logits(layers: list[Layer]) -> list[Layer]:
    """Return the layers of a network without a softmax at its end."""
    return layers[:-1] if isinstance(layers[-1].module, OUTPUTS) else layers


def before_softmax(model: nn.Module) -> tuple[nn.Module, Layer | None]:
    """Return a network without a softmax at its end, and that softmax; the network itself and None if it has none."""
    layers = trace(model)
    logits = up_to_logits(layers)
    return (model, None) if logits is layers else (of_layers(logits), layers[-1])


def with_softmax(model: nn.Module, softmax: Layer) -> nn.Module:
    """Return a network with a softmax at its end that :func:`before_softmax` took off; its layers are shared."""
    layers = trace(model)
    return of_layers([*layers, replace(softmax, inputs=(layers[-1].name,))])
