"""Whoever wants the method alone gets no more than that: what is imported, and what is asked for."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lrp_core
from lrp_core.study.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STUDY = sorted((ROOT / "lrp_core" / "study").rglob("*.py"))
CORE = sorted({*(ROOT / "lrp_core").rglob("*.py")} - {*STUDY})
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TESTS = sorted([*(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
OURS = {"lrp_core", "own_network"} | {path.stem for path in TESTS}
HEAVY = {
    *("pandas", "matplotlib", "seaborn", "h5py", "timm", "torchvision", "PIL", "IPython", "ipywidgets"),
    *("nbformat", "nbconvert", "papermill", "dvc", "yaml", "onnx", "onnxruntime", "onnxscript", "dask", "distributed"),
}
INSTALLED = packages_distributions()  # by module
ALSO = {"export.py": "export", "processes.py": "cluster"}  # what else a file of the study may import


def test_import_loads_the_core_alone():
    code = "import sys, lrp_core; assert callable(lrp_core.prune); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"torch", "lrp_core.api", "lrp_core.graph.tracing"} <= loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY or name.startswith("lrp_core.study")}


def test_the_public_names_are_all_there():
    """Those that users and checks call, as the design lists them; ``load_backbone`` is loaded when it is asked for."""
    names = "Explanation Pruned class_accuracies explain filter_relevance harmonic_mean load_backbone load_pruned prune"
    names = {*names.split(), "pruning_auc", "remove_filters", "trace"}
    assert names == set(lrp_core.__all__)
    for name in names:
        assert callable(getattr(lrp_core, name)), name
    with pytest.raises(AttributeError, match="module 'lrp_core' has no attribute 'prone'"):
        lrp_core.prone  # noqa: B018


def test_the_core_asks_for_what_it_imports_and_for_nothing_else():
    """But for what draws, which is imported when something is to be drawn."""
    drawing = {path.name for path in CORE if "matplotlib" in packages_of(path)}
    assert drawing == {"api.py"}
    assert set().union(*(packages_of(path) for path in CORE)) - {"matplotlib"} == asked_for("core")


@pytest.mark.parametrize("path", [*STUDY, *NOTEBOOKS], ids=lambda path: path.name)
def test_the_study_asks_for_what_it_imports(path):
    allowed = asked_for("core") | asked_for("study")
    if extra := ALSO.get(path.name):
        assert packages_of(path) - allowed, f"{path.name} needs no extra {extra}"
        allowed |= asked_for(extra)
    assert packages_of(path) <= allowed


def test_the_tests_ask_for_what_they_import():
    imported = set().union(*(packages_of(path) for path in TESTS))
    assert {"pytest", "zennit"} <= imported
    assert imported <= asked_for("core").union(*(asked_for(extra) for extra in PROJECT["optional-dependencies"]))


def asked_for(group: str) -> set[str]:
    requirements = PROJECT["dependencies"] if group == "core" else PROJECT["optional-dependencies"][group]
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def packages_of(path: Path) -> set[str]:
    """The third-party packages that a file or a notebook imports anywhere, in functions too."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    else:
        source = path.read_text()
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "this test knows absolute imports only"
            modules.add(node.module)
    modules = {"distributed" if module == "dask.distributed" else module.split(".")[0] for module in modules}
    found = set()
    for module in modules - set(sys.stdlib_module_names) - OURS:
        (package,) = set(INSTALLED[module])
        found.add(canonicalize_name(package))
    return found
