"""Make torchvision importable next to a CPU build of torch.

torchvision's registry wheel is compiled against CUDA libraries. With a CPU torch its extension cannot be loaded,
the operators that it would define are missing, and ``import torchvision`` stops at ``operator torchvision::nms does
not exist``. Models and transforms need none of these operators, only their names.
"""

import importlib.metadata

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = None  # the registrations live as long as this object


def declare_missing_operators() -> list[str]:
    """Declare the operators that torchvision needs for import; a no-op if torch has CUDA or torchvision is missing.

    Returns:
        The names that this call has declared.
    """
    global _library
    if torch.version.cuda is not None or _library is not None:
        return []
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return []
    if version.endswith("+cpu"):  # this build has its own operators
        return []
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        _library.define(schema)
    return list(_SCHEMAS)
