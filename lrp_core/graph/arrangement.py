"""How the dimensions of a tensor in a model's code stand to the maps of the layer that made it.

Code views, permutes and flattens. A layer's outputs are always maps (N, C, H, W), or vectors (N, C) behind a
flattening. What lies between the two is kept in mind as an arrangement: for each dimension, which parts of N, C, H and
W it runs over. So ``x.permute(0, 2, 3, 1)`` costs nothing, and neither does its way back; a shuffle of channels shows
as a dimension whose parts have changed places.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Part(NamedTuple):
    """A part of N, C, H or W; of the channels there may be several, such as groups and channels within a group.

    Attributes:
        kind: "n", "c", "h" or "w".
        size: of the part; None if it is not known before the network is run.
        stride: how many channels lie from one to the next.
        of: what tells two unknown sizes apart.
    """

    kind: str
    size: int | None
    stride: int = 1
    of: str = ""


Axis = tuple[Part, ...]
Axes = tuple[Axis, ...]
BATCH = Part("n", None)


@dataclass(frozen=True)
class Arranged:
    """A tensor in a model's code: a layer's outputs, rearranged.

    Attributes:
        layer: its name.
        axes: by dimension, the parts that it runs over, the slowest first; none where the size is 1.
    """

    layer: str
    axes: Axes


@dataclass(frozen=True)
class Size:
    """A size that is not known before the network is run: a number times unknown ones."""

    number: int
    unknown: tuple[Part, ...]

    def __mul__(self, other: "Size | int") -> "Size | int":
        """Multiply."""
        other = other if isinstance(other, Size) else Size(other, ())
        return _plain(self.number * other.number, self.unknown + other.unknown)

    __rmul__ = __mul__

    def __floordiv__(self, other: "Size | int") -> object:
        """Divide; :data:`UNKNOWN` if something may be left over."""
        other, rest = other if isinstance(other, Size) else Size(other, ()), list(self.unknown)
        for part in other.unknown:
            if part not in rest:
                return UNKNOWN
            rest.remove(part)
        if other.number == 0 or self.number % other.number:
            return UNKNOWN
        return _plain(self.number // other.number, tuple(rest))


UNKNOWN = object()  # what is computed of sizes that are not known, in other ways


def _plain(number: int, unknown: tuple[Part, ...]) -> Size | int:
    return Size(number, tuple(sorted(unknown))) if unknown else number


def part(kind: str, size: int | None, of: str = "") -> Axis:
    """Return a dimension of one part; of none if the size is 1."""
    return () if size == 1 else (Part(kind, size, of="" if size is not None else of),)


def size_of(axis: Axis) -> Size | int:
    """Return the size of a dimension."""
    known = math.prod(each.size for each in axis if each.size is not None)
    return _plain(known, tuple(each._replace(stride=1) for each in axis if each.size is None))


def equal_sizes(one: object, other: object) -> object:
    """Return whether two shapes are equal, as far as that can be told; :data:`UNKNOWN` where it cannot."""
    if not isinstance(one, tuple) or not isinstance(other, tuple) or len(one) != len(other):
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    if any(isinstance(a, int) and isinstance(b, int) for a, b in pairs):
        return False
    return UNKNOWN if pairs else True


def merged(axis: Axis) -> Axis:
    """Return a dimension with parts that follow upon one another made one."""
    parts: list[Part] = []
    for each in axis:
        last = parts[-1] if parts else None
        if (
            last
            and last.kind == each.kind == "c"
            and each.size
            and last.size
            and last.stride == each.size * each.stride
        ):
            parts[-1] = Part("c", last.size * each.size, each.stride)
        else:
            parts.append(each)
    return tuple(parts)


def viewed(axes: Axes, sizes: list[Size | int]) -> Axes | None:
    """Return the dimensions of a view with these sizes, one of which may be -1; None if it cannot be told.

    Torch has checked the sizes when the model was run: what is left over has size 1, and a number that stands last
    covers all of the rest.
    """
    if sizes.count(-1) > 1:
        return None
    if -1 in sizes:
        whole, others = size_of(tuple(each for axis in axes for each in axis)), 1
        for size in sizes:
            others = others * size if size != -1 else others
        inferred = size_of(axes[0]) if sizes[0] == -1 else whole // others
        if inferred is UNKNOWN:
            return None
        sizes = [inferred if size == -1 else size for size in sizes]
    left = [each for axis in axes for each in axis]
    result = []
    for i, size in enumerate(sizes):
        axis = _taken(left, size, i == len(sizes) - 1)
        if axis is None:
            return None
        result.append(merged(axis))
    return tuple(result) if all(each.size is None for each in left) else None


def _taken(left: list[Part], size: Size | int, is_last: bool) -> Axis | None:
    """Take the parts that make up a size off the front of a list; None if there are none that do."""
    taken: list[Part] = []
    while size != 1:
        if not left:
            return None
        first = left.pop(0)
        number = size.number if isinstance(size, Size) else size
        if first.size is None:
            unknown = first._replace(stride=1)
            if isinstance(size, Size) and unknown in size.unknown:
                size = size // Size(1, (unknown,))
            elif is_last and isinstance(size, int):
                taken, size, left[:] = [*taken, first, *left], 1, []
                continue
            else:
                return None
        elif number % first.size == 0:
            size = size // first.size
        elif first.kind == "c" and first.size % number == 0 and number > 1:
            behind = first.size // number
            left.insert(0, Part("c", behind, first.stride))
            first = Part("c", number, first.stride * behind)
            size = size // number
        else:
            return None
        taken.append(first)
    return tuple(taken)


def flattened(axes: Axes, start: int, end: int) -> Axes:
    """Return the dimensions with those from ``start`` to ``end`` made one."""
    start, end = start % len(axes), end % len(axes)
    together = tuple(each for axis in axes[start : end + 1] for each in axis)
    return (*axes[:start], merged(together), *axes[end + 1 :])


def order(axis: Axis) -> torch.Tensor | None:
    """Return the channels that a dimension runs over, in its order; None if it has other parts, or unknown ones."""
    index = torch.zeros((), dtype=torch.long)
    for each in axis:
        if each.kind != "c" or each.size is None:
            return None
        index = index[..., None] + torch.arange(each.size) * each.stride
    return index.flatten()


def alike(one: Axes, other: Axes) -> bool:
    """Return whether two tensors are arranged alike, whatever the sizes of their maps."""
    return len(one) == len(other) and all(
        [(each.kind, each.stride) for each in a] == [(each.kind, each.stride) for each in b]
        for a, b in zip(one, other, strict=True)
    )


def described(axes: Axes) -> str:
    """Return dimensions as text: "(N, H W, C)"."""
    return f"({', '.join(' '.join(each.kind.upper() for each in axis) or '1' for axis in axes)})"
