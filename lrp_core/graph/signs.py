"""Where values cannot be negative, and where negative ones are lost: both spare LRP's rules work."""

from torch import nn

from lrp_core.graph.layers import (
    ACTIVATIONS,
    NONNEGATIVE,
    PADDING,
    POOLING,
    REARRANGED,
    RECTIFIERS,
    RESIZING,
    Concat,
    Layer,
    Product,
    Subsample,
    Sum,
    readers,
)

# Behind these nothing is negative if nothing was before.
_SIGN_KEEPING = (nn.Flatten, *POOLING, *PADDING, *RESIZING, Subsample, *REARRANGED, Sum, Product, Concat)
_KEEPING_ZERO = tuple(kind for kind in ACTIVATIONS if kind not in (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus))


def nonnegative(layers: list[Layer]) -> set[str]:
    """Return the names of the layers whose outputs cannot be negative."""
    names: set[str] = set()
    for layer in layers:
        keeps = isinstance(layer.module, _SIGN_KEEPING) and names.issuperset(layer.inputs)
        if keeps or isinstance(layer.module, NONNEGATIVE):
            names.add(layer.name)
    return names


def rectified(layers: list[Layer]) -> set[str]:
    """Return the names of the layers that are read by nothing but rectifiers, so that negative outputs are lost."""
    return _read_by(layers, RECTIFIERS)


def activated(layers: list[Layer]) -> set[str]:
    """Return the names of the layers that are read by nothing but activations that map 0 to 0."""
    return _read_by(layers, _KEEPING_ZERO)


def _read_by(layers: list[Layer], kinds: tuple[type[nn.Module], ...]) -> set[str]:
    return {
        name
        for name, found in readers(layers).items()
        if found and all(isinstance(reader.module, kinds) for reader in found)
    }
