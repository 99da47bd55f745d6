"""DVC's stages: the default's and the profiles' are one chain, depend on what they run, and hand on what they make."""

import ast
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
from lrp_core.study.runs import pipeline

DEFAULT = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
OTHERS = yaml.safe_load((ROOT / "profiles" / "dvc.yaml").read_text())
PARAMS = pipeline.read_params()
SHOWS = "lrp_core.study.show"  # what notebooks 1 to 4 only show


def resolved(value: object, names: dict[str, str]) -> object:
    """Return part of a dvc.yaml with ${item.NAME} and ${item} filled in."""
    text = json.dumps(value)
    for name, word in names.items():
        text = text.replace("${item." + name + "}", word)
    return json.loads(text)


def stages(profile: str) -> list[dict]:
    """Return the stages of a profile, each with its name, as DVC makes them of its two files."""
    found = []
    if profile == "default":
        for name, stage in DEFAULT.items():
            for backbone in stage.get("matrix", {}).get("backbone", [""]):
                found.append(resolved(stage, {"backbone": backbone}) | {"name": name, "backbone": backbone})
        return found
    for name, stage in OTHERS["stages"].items():
        stage_name = name.replace("_full_", "_")
        if "foreach" in stage:
            runs = [run for run in OTHERS["vars"][0]["runs"].values() if run["profile"] == profile]
            found += [resolved(stage["do"], run) | {"name": name, "backbone": run["backbone"]} for run in runs]
        elif profile in stage.get("matrix", {"profile": ["full"]})["profile"]:
            found.append(resolved(stage, {"profile": profile}) | {"name": stage_name, "backbone": ""})
    return found


def paths(outs: list) -> list[str]:
    return [out if isinstance(out, str) else next(iter(out)) for out in outs]


@pytest.mark.parametrize("profile", PARAMS["profiles"])
def test_a_profile_has_the_stages_of_the_default_for_its_own_backbones(profile):
    def generic(stage: dict, profile: str) -> tuple:
        """Return a stage in words that do not depend on profile and backbone."""
        text = json.dumps([sorted(stage["deps"]), sorted(paths(stage["outs"]))])
        text = text.replace(f"/runs/{stage['backbone']}/", "/runs/BACKBONE/")
        for root in ("data", "results"):
            text = text.replace(f'"{root}/{profile}/', f'"{root}/PROFILE/')
        return stage["name"], *json.loads(text)

    own, backbones = stages(profile), list(pipeline.read_params(profile)["base"]["weights"])
    beside = {dep for stage in own for dep in stage["deps"] if dep.endswith(".csv")}  # tables of other tasks
    assert beside == set(pipeline.read_params(profile)["05_auc_tables_figures"]["beside"])
    for stage in own:
        stage["deps"] = [dep for dep in stage["deps"] if dep not in beside]
    expected = {str(generic(stage, "default")) for stage in stages("default")}
    assert {str(generic(stage, profile)) for stage in own} == expected
    for name in pipeline.OUTPUTS:
        wanted = backbones if "backbone" in pipeline.defaults(name) else [""]
        assert [stage["backbone"] for stage in own if stage["name"] == name] == wanted


@pytest.mark.parametrize("profile", ["default", *PARAMS["profiles"]])
def test_a_stage_runs_its_notebook_and_hands_on_what_later_ones_read(profile):
    made: set[str] = set()
    for stage in stages(profile):
        name, command = stage["name"], f"python -m lrp_core.study.runs.pipeline {stage['name']}"
        command += "" if profile == "default" else f" --profile {profile}"
        assert stage["cmd"] == command + (f" --backbone {stage['backbone']}" if stage["backbone"] else "")
        assert f"notebooks/{name}.ipynb" in stage["deps"]
        expected = {"base", name} | (set() if profile == "default" else {f"profiles.{profile}"})
        assert set(stage["params"]) == expected
        read = {dep for dep in stage["deps"] if dep.startswith(("data/", "results/")) and not dep.endswith(".csv")}
        assert all(any(out.startswith(dep) for out in made) for dep in read), read
        kept = {out for out in stage["outs"] if isinstance(out, str)}
        assert all(out.startswith("data/") for out in kept)  # results are in git, not in DVC's cache
        made |= set(paths(stage["outs"]))
        for file in pipeline.OUTPUTS[name]:
            path = f"data/{profile}/{file.format(backbone=stage['backbone'])}"
            assert any(path.startswith(f"{out}/") for out in made), path


def modules_of(source: str) -> set[str]:
    """Return the project's modules that a program imports, and all that these import; what only shows is left out."""
    graph = grimp.build_graph("lrp_core", cache_dir=None)
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrp_core"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= (names & graph.modules) or {node.module}
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name == "lrp_core"}
    # The package itself imports the whole method; what a notebook calls by it counts as the module that has it.
    modules = {module for module in modules if not module.startswith(SHOWS)} - {"lrp_core"}
    graph.remove_module("lrp_core.study.runs.inputs")
    for module in [module for module in graph.modules if module.startswith(SHOWS)]:
        graph.remove_module(module)
    modules &= graph.modules
    return modules.union(*(graph.find_upstream_modules(module) for module in modules)) - {"lrp_core"}


@pytest.mark.parametrize("stage", stages("default"), ids=lambda stage: "-".join([stage["name"], stage["backbone"]]))
def test_a_stage_depends_on_the_packages_that_its_notebook_runs(stage):
    cells = nbformat.read(ROOT / "notebooks" / f"{stage['name']}.ipynb", as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    folders = tuple(f"{dep}/" for dep in stage["deps"] if dep.startswith("lrp_core"))
    for module in modules_of(source) - {"lrp_core.study.paths"}:
        file = f"{module.replace('.', '/')}.py" if (ROOT / f"{module.replace('.', '/')}.py").is_file() else None
        assert file is None or file.startswith(folders), module


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files of this repository in a folder of their own, as if all stages of the default had run just now."""
    folder = tmp_path_factory.mktemp("clone")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file() and not name.startswith("profiles/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    for stage in stages("default"):
        for out in paths(stage["outs"]):
            (folder / out).mkdir(parents=True, exist_ok=True)
            (folder / out / "made.txt").write_text(stage["name"])
    dvc(folder, "commit", "--force")
    assert changed(folder) == {}
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    command = [Path(sys.executable).with_name("dvc"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def changed(folder: Path) -> dict:
    return json.loads(dvc(folder, "status", "--json"))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("lrp_core/study/show/curves.py", ["05"]),
        ("lrp_core/study/analysis/areas.py", ["02", "03", "04", "05"]),
        ("lrp_core/relevance/rules.py", ["03", "04", "05"]),
        ("lrp_core/repair/ridge_head.py", ["02", "03", "04", "05"]),
        ("lrp_core/study/data/splits.py", ["01", "02", "03", "04", "05"]),
        ("notebooks/04_dynamic_pruning.ipynb", ["04"]),
        ("README.md", []),
    ],
)
def test_what_runs_again_after_a_change(clone, file, expected):
    original = (clone / file).read_text()
    (clone / file).write_text(original + "\n# changed\n")
    assert sorted({stage[:2] for stage in changed(clone)}) == expected
    (clone / file).write_text(original)


def test_the_lock_file_holds_no_stage_that_is_gone():
    for lock, known in ((ROOT / "dvc.lock", DEFAULT), (ROOT / "profiles" / "dvc.lock", OTHERS["stages"])):
        if lock.is_file():
            locked = {stage.split("@")[0] for stage in yaml.safe_load(lock.read_text())["stages"]}
            assert locked <= set(known)


def test_pipelines_are_read_at_a_glance():
    """The contract of this project: at most 120 lines each."""
    for file in (ROOT / "dvc.yaml", ROOT / "profiles" / "dvc.yaml"):
        assert len(file.read_text().splitlines()) <= 120
