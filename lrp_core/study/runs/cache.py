"""Which finished run is still what it would be: a key of all that its result depends on."""

import ast
from collections.abc import Iterable
from pathlib import Path

from lrp_core.study.paths import ROOT

# What a run's result depends on, beside its parameters and its input files: the method, and what measures it.
CODE = (
    *(
        path
        for path in sorted((ROOT / "lrp_core").glob("*/*.py"))
        if not path.is_relative_to(ROOT / "lrp_core" / "study")
    ),
    ROOT / "lrp_core" / "study" / "data" / "pretrained.py",
    ROOT / "lrp_core" / "study" / "runs" / "measuring.py",
)


def meaning(paths: Iterable[Path]) -> str:
    """Return what Python files compute, as text: their top-level statements, whichever file each stands in.

    Without imports, comments, layout and docstrings, and sorted: what moves to another module computes the same.
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
