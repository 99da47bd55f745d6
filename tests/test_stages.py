"""What runs again after a change: stages and finished runs depend on the modules that their numbers come from."""

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import nbformat
import pytest
import yaml

from lrp_core.study.paths import ROOT
from lrp_core.study.runs import cache as experiment

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SHOWS = {"lrp_core.study.show", "lrp_core.study.analysis"}  # what notebooks 1 to 4 only show


def behind(modules: set[str], without: set[str]) -> set[str]:
    """Return these modules of the project, and all that they import."""
    graph = grimp.build_graph("lrp_core", cache_dir=None)
    for module in without:
        graph.remove_module(module)
    modules = modules - without
    return modules.union(*(graph.find_upstream_modules(module) for module in modules)) - {"lrp_core"}


def imported(source: str) -> set[str]:
    """Return the project's modules that a program names in its imports."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lrp_core"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name for name in names if file_of(name).is_file()} or {node.module}
    return modules


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_what_its_notebook_runs(stage):
    cells = nbformat.read(ROOT / "notebooks" / f"{stage}.ipynb", as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    without = {"lrp_core.study.runs.inputs"} | (set() if stage == list(STAGES)[-1] else SHOWS)
    expected = {str(file_of(module).relative_to(ROOT)) for module in behind(imported(source), without)}
    assert {dep for dep in STAGES[stage]["deps"] if dep.startswith("lrp_core")} == expected


def test_a_finished_run_depends_on_what_it_computed():
    # The workspace hands images and heads on; a run's key has what it handed.
    files_and_words = {"lrp_core.utils.errors", "lrp_core.utils.files"} | {
        f"lrp_core.study.{name}" for name in ("files", "paths", "wheels", "workspace")
    }
    computed = behind(
        {"lrp_core.control.budget_search", "lrp_core.study.data.pretrained", "lrp_core.study.runs.measuring"}, set()
    )
    assert set(experiment.CODE) == computed - files_and_words


def test_comments_and_docstrings_change_no_meaning(tmp_path):
    source = file_of("lrp_core.relevance.rules").read_text()
    (tmp_path / "words.py").write_text("# a comment\n" + source.replace('"""Return R / z', '"""R / z'))
    (tmp_path / "sign.py").write_text(source.replace("z.add_(sign * EPSILON", "z.sub_(sign * EPSILON"))
    same, words, sign = (
        experiment.meaning(path)
        for path in (file_of("lrp_core.relevance.rules"), tmp_path / "words.py", tmp_path / "sign.py")
    )
    assert words == same != sign


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files of this repository in a folder of their own, as if all stages had run on them just now."""
    folder = tmp_path_factory.mktemp("clone")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file() and not name.startswith("results/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    for stage, noted in lock["stages"].items():
        code = [dep for dep in STAGES[stage.split("@")[0]]["deps"] if dep.startswith(("lrp_core", "notebooks"))]
        noted["deps"] = [
            {"path": name, "hash": "md5", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}
            for name, content in ((name, (folder / name).read_bytes()) for name in code)
        ]
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert not any(changed(folder, "lrp_core").values())
    return folder


def changed(folder: Path, under: str) -> dict[str, list[str]]:
    """Return the stages, by number, that `dvc status` calls changed because of files under a path, and these files."""
    command = [Path(sys.executable).with_name("dvc"), "status", "--json"]
    status = json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    files: dict[str, list[str]] = {}
    for stage, changes in status.items():
        for change in changes:
            deps = change.get("changed deps", ()) if isinstance(change, dict) else ()
            found = [dep for dep in deps if dep.startswith(under)]
            files.setdefault(stage[:2], []).extend(found)
    return files


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("lrp_core/study/plotting.py", ["05"]),
        ("lrp_core/study/tables.py", ["05"]),
        ("lrp_core/study/report.py", []),
        ("lrp_core/rules.py", ["03", "04", "05"]),
        ("lrp_core/heads.py", ["02", "03", "04", "05"]),
        ("lrp_core/study/datasets.py", ["01"]),
        ("lrp_core/api.py", []),
    ],
)
def test_what_runs_again_after_a_change(clone, file, stages):
    original = (clone / file).read_text()
    (clone / file).write_text(original + "\n# changed\n")
    assert sorted(stage for stage, files in changed(clone, "lrp_core").items() if set(files) == {file}) == stages
    (clone / file).write_text(original)
