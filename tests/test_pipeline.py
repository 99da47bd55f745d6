"""The chain: parameters, checkpoints, the same bytes twice, and documents that say what the files say."""

import re
import shutil
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lrp_core.study import paths
from lrp_core.study.paths import ROOT
from lrp_core.study.runs import pipeline

PARAMS = pipeline.read_params()
PROFILES = list(PARAMS["profiles"])
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_every_notebook_is_a_stage_and_a_section():
    assert list(STAGES) == list(pipeline.OUTPUTS) == [name for name in PARAMS if name not in ("base", "profiles")]
    for name, stage in STAGES.items():
        backbones = stage.get("matrix", {}).get("backbone", [])
        assert backbones == (list(PARAMS["base"]["weights"]) if "backbone" in pipeline.defaults(name) else [])


@pytest.mark.parametrize("notebook", list(pipeline.OUTPUTS))
def test_params_yaml_names_each_notebooks_parameters(notebook):
    backbone = "efficientnet-lite0" if "backbone" in pipeline.defaults(notebook) else None
    given = pipeline.stage_parameters(notebook, PARAMS, backbone)
    if backbone is not None:
        assert given["weights"] == "imagenet"
    assert set(given) == set(pipeline.defaults(notebook))
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+: (str|int|float|bool|list|dict) = .+  # .+", line), f"typed and commented: {line}"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_changes_what_it_names_and_writes_elsewhere(profile):
    params = pipeline.read_params(profile)
    for key in ("workspace", "results"):
        assert params["base"][key] == f"{'data' if key == 'workspace' else key}/{profile}"
    for notebook in pipeline.OUTPUTS:
        for backbone in pipeline.backbones_of(notebook, params):
            given = pipeline.stage_parameters(notebook, params, backbone)
            changed = PARAMS["profiles"][profile].get(notebook, {})
            assert given == pipeline.stage_parameters(notebook, params, backbone) | changed
            for key in set(PARAMS[notebook]) - set(changed):
                assert given[key] == PARAMS[notebook][key]


def test_own_images_get_folders_of_their_own():
    params = pipeline.read_params("quick", "/somewhere/photos of cats.csv")
    quick = PARAMS["01_data_prep"] | PARAMS["profiles"]["quick"]["01_data_prep"]
    assert params["01_data_prep"] == quick | {"dataset": "/somewhere/photos of cats.csv"}
    assert params["05_auc_tables_figures"]["beside"] == []  # the committed results are of other images
    assert params["base"]["workspace"] == "data/own/quick-photos of cats"
    assert params["base"]["results"] == "results/own/quick-photos of cats"
    assert pipeline.read_params(data="photos")["base"]["results"] == "results/own/photos"


def test_a_misspelt_profile_is_an_error():
    with pytest.raises(ValueError, match=r"unknown profile of params\.yaml 'fulll'; choose one of: .*full"):
        pipeline.read_params("fulll")
    with pytest.raises(ValueError, match=r"profile 'x' of params\.yaml changes what is not there: 03_baseline$"):
        pipeline.overlay(PARAMS, "x", {"03_baseline": {}})


def test_base_holds_nothing_that_no_notebook_uses():
    used = set().union(*(pipeline.defaults(notebook) for notebook in pipeline.OUTPUTS))
    assert set(PARAMS["base"]) <= used


def test_images_of_another_folder_of_the_same_name_are_kept_apart(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    ran = []
    monkeypatch.setattr(pipeline, "execute", lambda notebook, *_: ran.append(notebook))
    assert pipeline.main(["--data", "misspelt/photos"]) == 0  # leaves no images, so its name is free
    assert pipeline.main(["--data", "a/photos"]) == pipeline.main(["--data", str(tmp_path / "a/photos")]) == 0
    (tmp_path / "data/own/photos/dataset").mkdir()
    (tmp_path / "data/own/photos/dataset/images.safetensors").touch()
    assert pipeline.main(["--data", "a/photos"]) == 0
    n_ran = len(ran)
    assert pipeline.main(["--data", "b/photos"]) == 1
    assert len(ran) == n_ran > 0
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"error: data/own/photos is of {tmp_path}/a/photos, not of {tmp_path}/b/photos: rename")


def test_notebooks_name_the_small_workspace():
    assert {pipeline.defaults(notebook)["workspace"] for notebook in pipeline.OUTPUTS} == {f'"{paths.SMALL}"'}


def test_misspelt_parameter_is_an_error():
    params = PARAMS | {"02_head_training": {"flods": 5}}
    with pytest.raises(ValueError, match=r"parameters cell: \['flods'\]; not in .*: \['folds'\]"):
        pipeline.stage_parameters("02_head_training", params, "squeezenet1_1")


def test_unknown_backbone_is_an_error():
    with pytest.raises(
        ValueError, match=r"unknown backbone of params\.yaml 'vgg61'; choose one of: efficientnet-lite0, squeezenet1_1"
    ):
        pipeline.stage_parameters("02_head_training", PARAMS, "vgg61")


def test_environment_yml_installs_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--constraint requirements.lock", "--editable .[test]"]
    assert f"python{project['requires-python']}" in environment["dependencies"]
    (everything,) = [text for text in project["optional-dependencies"]["test"] if text.startswith(project["name"])]
    assert Requirement(everything).extras == set(project["optional-dependencies"]) - {"test"}


def test_the_lock_file_alone_pins_and_what_it_pins_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, version = line.split("==")
        assert canonicalize_name(name) not in pins, "one pin each"
        pins[canonicalize_name(name)] = Version(version)
    groups = {"core": project["dependencies"]} | project["optional-dependencies"]
    assert set(groups) == {"core", "study", "export", "cluster", "test"}
    for group, requirements in groups.items():
        checked = 0
        for requirement in map(Requirement, requirements):
            if requirement.name == project["name"]:
                continue
            assert [bound.operator for bound in requirement.specifier] == [">="], f"a lower bound: {requirement}"
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
            checked += 1
        assert checked > 0, group


def test_every_notebook_is_known():
    known = sorted([*pipeline.OUTPUTS, *pipeline.ASIDE])
    assert sorted(path.stem for path in pipeline.NOTEBOOKS.glob("[!.]*.ipynb")) == known
