"""The chain: parameters, checkpoints, the same bytes twice, and documents that say what the files say."""

import re
import shutil
import statistics
import subprocess
import sys
import time
import tomllib

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lrp_core.control import methods
from lrp_core.control.controller import Settings
from lrp_core.control.monitored import monitored_accuracies
from lrp_core.metrics.accuracy import filters_at
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.ridge_head import Heads, OutOfFoldHeads, fit_heads, pooled_features, with_out_of_fold_heads
from lrp_core.study import paths
from lrp_core.study.data import datasets
from lrp_core.study.data.datasets import Dataset
from lrp_core.study.data.files import write_csv
from lrp_core.study.data.splits import split_dataset
from lrp_core.study.paths import ROOT
from lrp_core.study.runs import pipeline
from lrp_core.study.runs import runner as experiment
from lrp_core.study.runs.measuring import GRID

PARAMS = pipeline.read_params()
PROFILES = list(PARAMS["profiles"])
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_every_notebook_is_a_stage_and_a_section():
    assert list(STAGES) == list(pipeline.OUTPUTS) == [name for name in PARAMS if name not in ("base", "profiles")]
    for name, stage in STAGES.items():
        backbones = stage.get("matrix", {}).get("backbone", [])
        assert backbones == (list(PARAMS["base"]["weights"]) if "backbone" in pipeline.defaults(name) else [])
        each = " --backbone ${item.backbone}" if backbones else ""
        assert stage["cmd"] == f"python -m lrp_core.study.runs.pipeline {name}{each}"
        assert set(stage["params"]) == {"base", name}
        assert f"notebooks/{name}.ipynb" in stage["deps"]


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
        assert params["base"][key] != PARAMS["base"][key]
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
    (tmp_path / "data/own/photos/images.safetensors").touch()
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


def test_stages_lead_from_output_to_input():
    made = set(PARAMS["05_auc_tables_figures"]["beside"])  # committed
    assert all((ROOT / path).is_file() for path in made)
    for stage in STAGES.values():
        for backbone in stage.get("matrix", {}).get("backbone", [""]):
            inputs = {dep for dep in stage["deps"] if dep.startswith(("data/", "results/"))}
            assert {path.replace("${item.backbone}", backbone) for path in inputs} <= made
            outs = [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]
            made |= {path.replace("${item.backbone}", backbone) for path in outs}


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


class Miniature(experiment.Experiment):
    """An experiment on noise with class-dependent means and a random backbone: small, but everything runs for real."""

    def __init__(self, folder):
        """Write a workspace and open it."""
        rng = np.random.default_rng(0)
        labels = np.repeat(rng.permutation(np.arange(24) % 3), 10)
        pixels = rng.normal(100, 40, size=(240, 3, 16, 16)) + 60 * np.eye(3)[labels][:, :, None, None]
        images = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
        dataset = Dataset(images, torch.from_numpy(labels), torch.arange(240), ("a", "b", "c"))
        splits = pd.concat([split_dataset(dataset, seed, 12, 10, 5, 30).assign(seed=seed) for seed in (0, 1)])
        datasets.write_dataset(folder, dataset, splits, "noise")
        super().__init__(str(folder), "vgg16", "hed-bsds500", threads=1, device="cpu")
        self.runs = folder / "runs"
        heads = {}
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 30, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(30, 50, 3), torch.nn.ReLU()]
        self.backbone = torch.nn.Sequential(*layers).eval().requires_grad_(False)
        for seed in (0, 1):
            weight = torch.randn(4, 3, 50)
            heads[seed] = Heads(weight[0], OutOfFoldHeads(weight[1:], torch.arange(36) % 3), 0.1)
        self.write_heads(heads)


SETTINGS = Settings(batch=0.1, levels=(0.9, 0.5))


def test_two_runs_give_the_same_bytes(tmp_path):
    contents = []
    for name in ("first", "second"):
        work = Miniature(tmp_path / name)
        run = work.run("dynamic+reconstruction", 0, SETTINGS)
        for part in ("curve", "trace"):
            write_csv(tmp_path / name / f"{part}.csv", getattr(run, part))
        files = ("curve.csv", "trace.csv", "images.safetensors", "splits.csv", "vgg16/heads.safetensors")
        contents.append([(tmp_path / name / file).read_bytes() for file in files])
    assert contents[0] == contents[1]
    curve = pd.read_csv(tmp_path / "first" / "curve.csv")
    assert curve["rate_requested"].dropna().tolist() == list(GRID)
    assert (curve["rate"] >= curve["rate_requested"].fillna(GRID[-1])).all()
    assert curve["parameters"].is_monotonic_decreasing
    kept = curve.filter(like="kept_").sum(axis=1)
    assert np.allclose(1 - kept / 80, curve["rate"])


def test_finished_run_is_read_back_and_a_changed_one_is_not(tmp_path, monkeypatch):
    work = Miniature(tmp_path)
    first = work.run("dynamic", 0, SETTINGS)
    ran = []
    monkeypatch.setattr(methods, "task", lambda *arguments: ran.append(arguments))
    again = work.run("dynamic", 0, SETTINGS)
    assert ran == []
    assert (again.orders[""] == first.orders[""]).all()
    pd.testing.assert_frame_equal(again.curve, first.curve)
    pd.testing.assert_frame_equal(again.trace, first.trace)
    for name, seed, settings in (
        ("dynamic", 0, Settings(batch=0.2)),
        ("dynamic", 1, SETTINGS),
        ("weight", 0, SETTINGS),
    ):
        ran.clear()
        with pytest.raises(AttributeError):  # the stand-in for a task cannot be pruned
            work.run(name, seed, settings)
        assert len(ran) == 1


def test_runs_in_processes_are_those_of_one_process(tmp_path):
    names, runs = ["px-static", "random+reconstruction"], []
    for jobs in (1, 2):
        work = Miniature(tmp_path / str(jobs))
        work.jobs = jobs
        runs.append(work.run_all(names, [1, 0], SETTINGS))
    assert list(runs[0]) == list(runs[1]) == [(name, seed) for name in names for seed in (1, 0)]
    for key, run in runs[0].items():
        assert (run.curve["method"] == key[0]).all()
        assert (run.curve["seed"] == key[1]).all()
        pd.testing.assert_frame_equal(run.curve, runs[1][key].curve)
        assert (run.orders[""] == runs[1][key].orders[""]).all()
    with pytest.raises(ValueError, match="unknown method 'dynamics'; choose one of: activation, activation"):
        work.run_all(["dynamic", "dynamics"], [0])


def test_runs_at_a_time_are_spread_over_gpus(tmp_path, monkeypatch):
    work = Miniature(tmp_path)
    assert work._at(1) is work
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    work.device = torch.device("cuda", 0)
    spread = [work._at(n) for n in range(3)]
    assert [one.device.index for one in spread] == [0, 1, 0]
    assert "backbone" not in vars(spread[1])  # loaded anew, on its own GPU
    assert "backbone" in vars(work)
    assert work.device.index == 0


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    work = Miniature(tmp_path)

    def interrupted(*arguments):
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    whole = methods.steps
    monkeypatch.setattr(methods, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work.run("px-iterative", 0, SETTINGS)
    assert not (tmp_path / "runs").exists()


def test_killed_runs_go_on_and_end_with_the_same_bytes(tmp_path):
    names, seeds = ["dynamic+reconstruction", "px-iterative"], [0, 1]
    script = (
        "import sys; from pathlib import Path; from test_pipeline import Miniature, SETTINGS; "
        f"Miniature(Path(sys.argv[1])).run_all({names}, {seeds}, SETTINGS)"
    )
    killed, whole = tmp_path / "killed", Miniature(tmp_path / "whole")
    process = subprocess.Popen([sys.executable, "-c", script, str(killed)], cwd=ROOT / "tests")
    while process.poll() is None and not list((killed / "runs").glob("[!.]*.json")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (killed / "runs").glob("[!.]*.json")}
    assert 0 < len(finished) < 4
    runs = Miniature(killed).run_all(names, seeds, SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # read back, not run again
    for (key, run), other in zip(runs.items(), whole.run_all(names, seeds, SETTINGS).values(), strict=True):
        assert (run.orders[""] == other.orders[""]).all(), key
        for part in ("curve", "trace"):
            for folder, frame in (("killed", getattr(run, part)), ("whole", getattr(other, part))):
                write_csv(tmp_path / f"{folder}.csv", frame)
            assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_unknown_names_are_refused(tmp_path):
    work = Miniature(tmp_path)
    with pytest.raises(ValueError, match=r"no test images for seed 7 in .*; it has the seeds \[0, 1\]"):
        work.samples(7, "test")
    with pytest.raises(
        ValueError, match=r"unknown method 'px'; choose one of: .*px-iterative, px-iterative\+reconstruction"
    ):
        methods.method("px")
    with pytest.raises(FileNotFoundError, match=r"images\.safetensors is missing: run the stages before this one"):
        experiment.Experiment(str(tmp_path / "nowhere"), "vgg16", "hed-bsds500")


@pytest.mark.parametrize(
    "name", ["px-iterative", "weight+reconstruction+refit", "dynamic-training", "dynamic-probability"]
)
def test_accuracy_without_filters_equals_that_of_the_pruned_network(tmp_path, name):
    """The shortcuts (kept activations, logits from the scoring pass) against pruning for real and looking."""
    work = Miniature(tmp_path)
    calibration, out_of_fold, how = work.samples(0, "calibration"), work.out_of_fold(0), methods.method(name)
    for filters in (np.array([0, 5]), np.array([35, 79]), np.array([3, 40])):
        task, pruned = (
            methods.task(work.classifier(0), out_of_fold, calibration.images, calibration.labels, how, 0)
            for _ in range(2)
        )
        pruned.prune(np.array([1, 60]))
        pruned.prune(filters)
        logits = pruned.network.model(calibration.images)
        expected = monitored_accuracies(logits, calibration.labels, out_of_fold.fold, 3, how.monitored)
        task.prune(np.array([1, 60]))
        np.testing.assert_allclose(task.accuracy(filters), expected, rtol=1e-5)
        np.testing.assert_allclose(pruned.accuracy(filters[:0]), expected, rtol=1e-5)


def test_signals_by_hand_on_networks_made_one_by_one(tmp_path):
    work = Miniature(tmp_path)
    known = work.samples(0, "calibration")
    heads = fit_heads(pooled_features(work.backbone, known.images), known.labels, work.out_of_fold(0).fold)
    for weight in heads.out_of_fold.weight:  # each copy errs in a way of its own
        weight += 1.5 * weight.std() * torch.randn_like(weight)
    work.write_heads({0: heads})
    run = work.run("px-iterative-abs", 0)
    work.write_runs("baseline", {("px-iterative-abs", 0): run}, tmp_path)
    table = work.monitoreds("px-iterative-abs", [0], [20]).set_index(["signal", "rate_requested"])["value"]
    calibration, others, out_of_fold = (
        work.samples(0, "calibration"),
        work.samples(0, "unlabelled").images,
        work.out_of_fold(0),
    )
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:20]]
    first, told = None, set()
    for rate in (GRID[0], GRID[6], GRID[-2]):
        network = PrunedNetwork(with_out_of_fold_heads(work.classifier(0), out_of_fold.weight), calibration.images)
        if gone := filters_at(rate, 80):
            network.remove(run.orders[""][:gone])
        logits, said = network.model(calibration.images), network.model(others)[:, :3].argmax(dim=1)
        judged = torch.stack(
            [row[3 + 3 * k : 6 + 3 * k] for row, k in zip(logits, out_of_fold.fold.tolist(), strict=True)]
        )
        right = {"training": logits[:, :3].argmax(dim=1) == calibration.labels}
        right["cross-fitted"] = judged.argmax(dim=1) == calibration.labels
        classes = {
            name: [hits[calibration.labels == c].double().mean().item() for c in range(3)]
            for name, hits in right.items()
        }
        first = first or (said, classes["cross-fitted"])
        still = [((said == c) & (first[0] == c)).sum().item() / max(1, (first[0] == c).sum().item()) for c in range(3)]
        classes["agreement, 20 unlabelled"] = [a * b for a, b in zip(first[1], still, strict=True)]
        for name, accuracies in classes.items():
            assert table[name, rate] == pytest.approx(statistics.harmonic_mean(accuracies))
            told.add(round(table[name, rate], 6))
    assert len(told) >= 4  # not the same everywhere


def test_every_notebook_is_known():
    known = sorted([*pipeline.OUTPUTS, *pipeline.ASIDE])
    assert sorted(path.stem for path in pipeline.NOTEBOOKS.glob("[!.]*.ipynb")) == known
