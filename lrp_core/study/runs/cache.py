"""Store of finished runs: each is saved under a key of everything that its result depends on, and reused."""

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lrp_core.control.controller import Settings
from lrp_core.control.methods import Method
from lrp_core.study.data.pretrained import own_files
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.experiment import Experiment
from lrp_core.utils.files import atomic

# What a run computes: the method, and what measures it. The workspace hands images and heads on; the key has those.
_STUDY = ROOT / "lrp_core" / "study"
CODE = (
    *(path for path in sorted((ROOT / "lrp_core").glob("*/*.py")) if path.parent != _STUDY),
    _STUDY / "data" / "pretrained.py",
    _STUDY / "runs" / "measuring.py",
)


@dataclass(frozen=True)
class Run:
    """One method on one seed.

    Attributes:
        orders: filter numbers, first to be removed first, by the truncation of the backbone that they were removed
            from; "" for the whole one.
        trace: one row per step of the method.
        curve: one row per network that was measured (:mod:`lrp_core.study.runs.measuring`).
        seconds: that finding the orders took.
    """

    orders: dict[str, np.ndarray]
    trace: pd.DataFrame
    curve: pd.DataFrame
    seconds: float


def meaning(paths: Iterable[Path]) -> str:
    """Return the top-level statements of Python files as text, regardless of the file that each is in.

    They are sorted, and imports, comments, layout and docstrings are left out: moving code changes no result.
    """
    statements = set()
    for path in paths:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                documented = ast.get_docstring(node) is not None
                node.body = [
                    part for part in node.body[documented:] if not isinstance(part, ast.Import | ast.ImportFrom)
                ]
        statements.update(map(ast.dump, tree.body))
    return "\n".join(sorted(statements))


def path_of(experiment: Experiment, name: str, seed: int, how: Method, settings: Settings) -> Path:
    """Return the path of a run; the file's name holds the key of code, settings, images, heads and torch."""
    of = experiment
    backbone = [of.backbone_name, of.weights, of.dataset_name, of.class_names]
    what = [asdict(how), seed, asdict(settings), backbone, torch.__version__, of.threads, of.device.type]
    digest = hashlib.sha256(json.dumps(what).encode())
    samples, heads = [of.samples(seed, split) for split in ("calibration", "test")], of.out_of_fold_heads(seed)
    for tensor in (heads.weight, heads.fold, *(part for one in samples for part in (one.images, one.labels))):
        digest.update(tensor.contiguous().numpy().tobytes())
    for path in own_files(of.backbone_name, of.weights):
        digest.update(path.read_bytes())
    digest.update(meaning(CODE).encode())
    return of.finished / f"{of.backbone_name}-{name}-seed{seed}-{digest.hexdigest()[:16]}.json"


def read_run(path: Path) -> Run | None:
    """Return a finished run; None if there is none."""
    if not path.is_file():
        return None
    kept = json.loads(path.read_text())
    orders = {truncation: np.array(order, dtype=int) for truncation, order in kept["orders"].items()}
    return Run(orders, pd.DataFrame(kept["trace"]), pd.DataFrame(kept["curve"]), kept["seconds"])


def write_run(path: Path, run: Run) -> None:
    """Save a finished run; no partial file is left."""
    orders = {truncation: order.tolist() for truncation, order in run.orders.items()}
    parts = {"trace": run.trace.to_dict("list"), "curve": run.curve.to_dict("list")}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({"seconds": run.seconds, "orders": orders, **parts}))
