"""Where values cannot be negative, and where negative ones are lost: both spare LRP's rules work."""

from torch import nn

from lrp_core.graph.layers import ACTIVATIONS, POOLING, Concat, Layer, PadChannels, Subsample, Sum, readers

# Behind these nothing is negative if nothing was before.
_SIGN_KEEPING = (nn.Flatten, *POOLING, Subsample, PadChannels, Sum, Concat)


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
    return {
        name
        for name, found in readers(layers).items()
        if found and all(isinstance(reader.module, ACTIVATIONS) for reader in found)
    }
