"""The device on which a network computes, and the memory layout that suits it.

Images stay on the host and are copied to the device batch by batch.
"""

import os

import torch
from torch import nn


def choose_device(name: str) -> torch.device:
    """Return a device by name; ``"auto"`` is the GPU if there is one, else the CPU.

    Raises:
        ValueError: torch does not know the device, or cannot use it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # cuBLAS is deterministic only with a workspace of fixed size, which it reads when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot compute on device {name!r} ({reason}); use auto, cpu or cuda") from error


def nth_device(device: torch.device, n: int) -> torch.device:
    """Return the n-th GPU, modulo their number, if the device is a GPU and there are several; else the device."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return torch.device("cuda", n % count) if count > 1 else device


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network's parameters; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def fastest_layout(device: torch.device) -> torch.memory_format:
    """Return the memory layout of images and kernels with which pruning takes least time on a device.

    On a CPU it is channels last. On a GPU it is contiguous: there cuDNN compiles depthwise convolutions in channels
    last anew for each number of channels, which takes 0.2 seconds and more, and pruning changes all of these numbers
    in every step.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def layout_of(tensor: torch.Tensor) -> torch.memory_format:
    """Return the memory layout of a tensor: channels last, or contiguous; the fastest one if it is in both.

    Kernels of 1 x 1, and those of one input channel, are in both.
    """
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if last and tensor.is_contiguous():
        return fastest_layout(tensor.device)
    return torch.channels_last if last else torch.contiguous_format
