"""The documents' code, run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from lrp_core.study.paths import ROOT


def test_code_runs_from_top_to_bottom():
    page = ROOT / "docs" / "extending.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


def test_api_page_is_that_of_the_code(tmp_path):
    """``make docs`` has been run since the last change of a docstring or a signature."""
    command = [Path(sys.executable).with_name("griffe2md"), "lrp_core", "--output", tmp_path / "api.md"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "api.md").read_text() == (ROOT / "docs" / "api.md").read_text(), "run make docs"
