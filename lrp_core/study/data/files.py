"""Files that the stages write and read: tables, tensors, text. No partial file is left if writing fails."""

from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lrp_core.utils.files import atomic


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; no partial file is left."""
    with atomic(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file, with 10 significant digits; no partial file is left."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; no partial file is left."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: the file is missing; the message says how to make it.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run the stages before this one (make repro, or the notebooks in order)"
        )
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run the stages again") from error
