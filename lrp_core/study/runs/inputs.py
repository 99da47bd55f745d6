"""Lets a single notebook run in a fresh clone: runs the notebooks before it first, at their small defaults.

This is separate from :mod:`lrp_core.study.runs.pipeline`, so that a notebook with its inputs need not load papermill.
"""

import ast
import sys

from lrp_core.study.paths import ROOT, SMALL


def ensure_inputs(notebook: str, workspace: str) -> None:
    """Run the notebooks before this one, at their defaults, if their outputs are missing.

    This applies only to the small workspace: the stages of dvc.yaml make their own inputs.

    Args:
        notebook: its name without suffix.
        workspace: its parameter of this name.

    Raises:
        RuntimeError: a cell of an earlier notebook failed; the message says what to do.
    """
    if workspace != SMALL:
        return
    from lrp_core.study.runs.pipeline import OUTPUTS, defaults, execute

    for earlier, files in OUTPUTS.items():
        if earlier == notebook:
            return
        backbone = ast.literal_eval(defaults(earlier).get("backbone", "None"))
        paths = [ROOT / workspace / file.format(backbone=backbone) for file in files]
        if not all(path.is_file() for path in paths):
            print(f"{workspace} is not prepared: running {earlier} first", file=sys.stderr)
            execute(earlier, ROOT / workspace / "notebooks" / f"{earlier}.ipynb", {})
