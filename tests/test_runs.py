"""Runs: the same bytes twice, one process or several, killed or not; finished ones are read back."""

import re
import statistics
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from miniature import SETTINGS, Miniature

from lrp_core.control import methods
from lrp_core.control.controller import Settings
from lrp_core.control.monitored import monitored_accuracies
from lrp_core.metrics.curve import filters_at
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import with_out_of_fold_heads
from lrp_core.repair.ridge_head import fit_heads, pooled_features
from lrp_core.study.analysis.monitoring import monitored_along
from lrp_core.study.data.files import write_csv
from lrp_core.study.paths import ROOT
from lrp_core.study.runs import cache
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.measuring import GRID
from lrp_core.study.runs.runner import run, run_all, write_runs


def test_two_runs_give_the_same_bytes(tmp_path):
    contents = []
    for name in ("first", "second"):
        work = Miniature(tmp_path / name)
        one = run(work, "dynamic+reconstruction", 0, SETTINGS)
        for part in ("curve", "trace"):
            write_csv(tmp_path / name / f"{part}.csv", getattr(one, part))
        files = (
            "curve.csv",
            "trace.csv",
            "dataset/images.safetensors",
            "dataset/splits.csv",
            "runs/vgg16/heads/heads.safetensors",
        )
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
    first = run(work, "dynamic", 0, SETTINGS)
    ran = []
    monkeypatch.setattr(methods, "task", lambda *arguments: ran.append(arguments))
    again = run(work, "dynamic", 0, SETTINGS)
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
            run(work, name, seed, settings)
        assert len(ran) == 1


def test_runs_in_processes_are_those_of_one_process(tmp_path):
    names, runs = ["px-static", "random+reconstruction"], []
    for jobs in (1, 2):
        work = Miniature(tmp_path / str(jobs))
        work.jobs = jobs
        runs.append(run_all(work, names, [1, 0], SETTINGS))
    assert list(runs[0]) == list(runs[1]) == [(name, seed) for name in names for seed in (1, 0)]
    for key, one in runs[0].items():
        assert (one.curve["method"] == key[0]).all()
        assert (one.curve["seed"] == key[1]).all()
        pd.testing.assert_frame_equal(one.curve, runs[1][key].curve)
        assert (one.orders[""] == runs[1][key].orders[""]).all()
    with pytest.raises(ValueError, match="unknown method 'dynamics'; choose one of: activation, dynamic"):
        run_all(work, ["dynamic", "dynamics"], [0])


@pytest.mark.parametrize(
    "name", ["joint-cost+reconstruction", "joint+distillation", "smaller-images+joint", "intermediate-features+joint"]
)
def test_methods_of_the_call_are_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=rf"'{re.escape(name)}' is a method of lrp_core\.prune alone"):
        run_all(Miniature(tmp_path), [name], [0])


def test_runs_at_a_time_are_spread_over_gpus(tmp_path, monkeypatch):
    work = Miniature(tmp_path)
    assert work.at(1) is work
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    work.device = torch.device("cuda", 0)
    spread = [work.at(n) for n in range(3)]
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
        run(work, "px-iterative", 0, SETTINGS)
    assert not (tmp_path / "finished").exists()


def test_killed_runs_go_on_and_end_with_the_same_bytes(tmp_path):
    names, seeds = ["dynamic+reconstruction", "px-iterative"], [0, 1]
    script = (
        "import sys; from pathlib import Path; from miniature import Miniature, SETTINGS; "
        "from lrp_core.study.runs.runner import run_all; "
        f"run_all(Miniature(Path(sys.argv[1])), {names}, {seeds}, SETTINGS)"
    )
    killed, whole = tmp_path / "killed", Miniature(tmp_path / "whole")
    process = subprocess.Popen([sys.executable, "-c", script, str(killed)], cwd=ROOT / "tests")
    while process.poll() is None and not list((killed / "finished").glob("[!.]*.json")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (killed / "finished").glob("[!.]*.json")}
    assert 0 < len(finished) < 4
    runs = run_all(Miniature(killed), names, seeds, SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # read back, not run again
    for (key, one), other in zip(runs.items(), run_all(whole, names, seeds, SETTINGS).values(), strict=True):
        assert (one.orders[""] == other.orders[""]).all(), key
        for part in ("curve", "trace"):
            for folder, frame in (("killed", getattr(one, part)), ("whole", getattr(other, part))):
                write_csv(tmp_path / f"{folder}.csv", frame)
            assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_curves_say_which_share_of_the_images_a_seed_tests(tmp_path):
    """Of 240 images each seed tests ten of three classes; whatever else it draws does not count."""
    work = Miniature(tmp_path)
    assert [len(work.samples(seed, "test").index) for seed in (0, 1)] == [30, 30]
    assert work.overlap == 30 / 240
    curves, _ = write_runs(work, "baseline", {("weight", 0): run(work, "weight", 0, SETTINGS)}, tmp_path)
    assert curves["overlap"].tolist() == [30 / 240] * len(curves)
    assert (pd.read_csv(tmp_path / "baseline" / "curves.csv")["overlap"] == 30 / 240).all()


def test_unknown_names_are_refused(tmp_path):
    work = Miniature(tmp_path)
    with pytest.raises(ValueError, match=r"no test images for seed 7 in .*; it has the seeds \[0, 1\]"):
        work.samples(7, "test")
    with pytest.raises(ValueError, match=r"unknown method 'px'; choose one of: .*px-iterative, px-iterative-abs"):
        methods.method("px")
    with pytest.raises(FileNotFoundError, match=r"images\.safetensors is missing: run the stages before this one"):
        Experiment(str(tmp_path / "nowhere"), "vgg16", "hed-bsds500")


@pytest.mark.parametrize(
    "name", ["px-iterative", "weight+reconstruction+refit", "dynamic-training", "dynamic-probability"]
)
def test_accuracy_without_filters_equals_that_of_the_pruned_network(tmp_path, name):
    """The shortcuts (kept activations, logits from the scoring pass) against pruning for real and looking."""
    work = Miniature(tmp_path)
    calibration, out_of_fold, how = work.samples(0, "calibration"), work.out_of_fold_heads(0), methods.method(name)
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
    heads = fit_heads(pooled_features(work.backbone, known.images), known.labels, work.out_of_fold_heads(0).fold)
    for weight in heads.out_of_fold.weight:  # each copy errs in a way of its own
        weight += 1.5 * weight.std() * torch.randn_like(weight)
    work.write_heads({0: heads})
    one = run(work, "px-iterative-abs", 0)
    write_runs(work, "baseline", {("px-iterative-abs", 0): one}, tmp_path)
    table = monitored_along(work, "px-iterative-abs", [0], [20]).set_index(["monitored", "rate_requested"])["value"]
    calibration, others, out_of_fold = (
        work.samples(0, "calibration"),
        work.samples(0, "unlabelled").images,
        work.out_of_fold_heads(0),
    )
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:20]]
    first, told = None, set()
    for rate in (GRID[0], GRID[6], GRID[-2]):
        network = PrunedNetwork(with_out_of_fold_heads(work.classifier(0), out_of_fold.weight), calibration.images)
        if gone := filters_at(rate, 80):
            network.remove(one.orders[""][:gone])
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


def test_comments_and_docstrings_change_no_meaning(tmp_path):
    rules = ROOT / "lrp_core" / "relevance" / "rules.py"
    (tmp_path / "words.py").write_text("# a comment\n" + rules.read_text().replace('"""Return R / z', '"""R / z'))
    (tmp_path / "sign.py").write_text(rules.read_text().replace("z.add_(sign * EPSILON", "z.sub_(sign * EPSILON"))
    same, words, sign = (cache.meaning([path]) for path in (rules, tmp_path / "words.py", tmp_path / "sign.py"))
    assert words == same != sign


def test_a_finished_run_is_read_back_after_its_code_has_moved(tmp_path, monkeypatch):
    """A module is split into two, in another folder, with other imports; then one of its definitions changes."""
    work = Miniature(tmp_path)
    first = run(work, "weight", 0, SETTINGS)
    moved = ROOT / "lrp_core" / "metrics" / "accuracy.py"
    text = moved.read_text()
    cut = text.index("def class_accuracies")
    (tmp_path / "one.py").write_text(text[:cut] + "import elsewhere\n")
    (tmp_path / "other.py").write_text("from one import *\n" + text[cut:])
    split = [path for path in cache.CODE if path != moved] + [tmp_path / "other.py", tmp_path / "one.py"]
    assert len(split) == len(cache.CODE) + 1
    monkeypatch.setattr(cache, "CODE", split)
    monkeypatch.setattr(methods, "task", None)  # nothing is computed
    again = run(work, "weight", 0, SETTINGS)
    pd.testing.assert_frame_equal(again.curve, first.curve)
    (tmp_path / "other.py").write_text(text[cut:].replace("return hits.double() / counts", "return hits / counts"))
    with pytest.raises(TypeError):
        run(work, "weight", 0, SETTINGS)


def test_every_package_of_the_method_is_part_of_a_runs_key():
    packages = {path.parent.name for path in cache.CODE if path.parent.parent.name == "lrp_core"}
    folders = {path.name for path in (ROOT / "lrp_core").iterdir() if (path / "__init__.py").is_file()}
    assert packages == folders - {"study"}
    assert all(path.is_file() for path in cache.CODE)
