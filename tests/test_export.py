"""What is handed over: which network, the files as others read them, the card by executing what it says."""

import re

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from miniature import SETTINGS, Miniature

from lrp_core.control.methods import method
from lrp_core.study.analysis.costs import smallest_network
from lrp_core.study.data import pretrained
from lrp_core.study.runs.runner import run, write_runs
from lrp_core.study.show import export


def test_the_network_is_the_smallest_that_is_near_the_unpruned_one():
    rows = [(0.0, 0.80, 100), (0.2, 0.82, 70), (0.4, 0.79, 50), (0.5, 0.78, 50), (0.6, 0.70, 20)]
    networks = pd.DataFrame(rows, columns=["rate", "crossfitted", "multiply_adds"])
    assert smallest_network(networks, 0.0)["rate"] == 0.2
    assert smallest_network(networks, 0.02)["rate"] == 0.4  # of equal size the better one
    assert smallest_network(networks, 0.1)["rate"] == 0.6


METHODS = ["px-iterative-abs+reconstruction", "early-exit+px-static+refit", "budget-search"]
STAGES = {"baseline": METHODS[:2], "dynamic": ["dynamic"], "budget_search": METHODS[2:]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace of noise with one run of four methods."""
    folder = tmp_path_factory.mktemp("export")
    work = Miniature(folder / "data")
    for stage, names in STAGES.items():
        write_runs(work, stage, {(name, 0): run(work, name, 0, SETTINGS) for name in names}, folder / "results")
    return work


@pytest.mark.parametrize("name", METHODS)
def test_what_others_read_gives_the_same_logits(finished, name, tmp_path, monkeypatch):
    work = finished
    for module in (export, pretrained):
        monkeypatch.setattr(module, "load_backbone", lambda name, weights: work.backbone)
    export.export(work, name, 0, 0.5, tmp_path)
    done = run(work, name, 0, SETTINGS)
    row = smallest_network(done.curve, 0.5)
    assert row["rate"] > 0.3
    pruned = work.network(0, method(name), row["truncation"])
    pruned.remove(done.orders[row["truncation"]][: row["removed"]])
    network = pruned.model
    test = work.samples(0, "test")
    expected = network(test.images[:7])
    pixels = work.pixels(test.index[:7]).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": pixels})
    scale = expected.abs().max().item()
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4 * scale)
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    assert torch.allclose(loaded(torch.from_numpy(pixels)), expected, atol=1e-4 * scale)
    again = export.load_exported(tmp_path / "network.safetensors")
    assert torch.equal(again(test.images[:7]), expected)
    assert {path.name for path in tmp_path.iterdir()} == {
        "network.safetensors", "network.onnx", "network.pt2", "MODEL_CARD.md",
    }  # fmt: skip

    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert f"without {row['rate']:.1%} of its filters" in card
    assert ("the backbone is truncated to" in card) == (row["truncation"] != "")
    assert "36 calibration images (12, 12, 12 a class)" in card
    assert "is within 50 points of" in card
    parameters = [sum(p.numel() for p in model.parameters()) for model in (work.network(0).model, network)]
    assert "| parameters | {:,} | {:,} |".format(*parameters) in card
    assert "$" not in card
    monkeypatch.chdir(tmp_path)  # where whoever was handed the files stands
    *with_logits, with_network = re.findall(r"```python\n(.+?)```", card, re.DOTALL)
    assert len(with_logits) == 3
    for code in with_logits:
        exec(code, names := {"pixels": pixels})
        np.testing.assert_allclose(names["logits"], expected.numpy(), atol=1e-4 * scale)
    exec(with_network, names := {})
    assert torch.equal(names["network"](test.images[:7]), expected)


def test_what_differs_is_not_handed_over(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"network\.pt2 differs from the network by"):
        export.export(finished, "dynamic", 0, 1.0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]


def test_missing_runs_are_named(finished, tmp_path, capsys):
    for name, seed in (("taylor", 0), ("dynamic", 5)):
        with pytest.raises(ValueError, match=f"unknown run '{name}/{seed}'; choose one of: .*dynamic/0"):
            export.export(finished, name, seed, 0.1, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"networks\.csv.* is missing: run the stages before this one"):
        export.export(Miniature(tmp_path / "new"), "dynamic", 0, 0.1, tmp_path)
    assert export.main(["--profile", "quik"]) == 1
    assert "unknown profile of params.yaml 'quik'" in capsys.readouterr().err


def test_the_command_takes_points_and_hands_the_network_over_beside_the_profiles_results(
    finished, tmp_path, monkeypatch, capsys
):
    opened = []
    monkeypatch.setattr(export, "Experiment", lambda *arguments, **_: opened.append(arguments) or finished)
    monkeypatch.setattr(export, "ROOT", tmp_path)
    arguments = ["--max-accuracy-drop", "50", "--seed", "0", "--method", "budget-search", "--profile", "quick"]
    assert export.main(arguments) == 0
    assert opened[0][:2] == ("data/quick", "squeezenet1_1")
    printed = capsys.readouterr().out
    assert "is within 50 points of" in printed
    assert "written to results/quick/export/squeezenet1_1" in printed
    assert (tmp_path / "results/quick/export/squeezenet1_1/network.onnx").is_file()
