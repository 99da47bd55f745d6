"""What is handed over: the rate by its rule, the files as others read them, the card."""

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from test_pipeline import SETTINGS, Miniature

from lrp_core.methods import method
from lrp_core.study import export, files
from lrp_core.study.curves import prune_to


def trace(after):
    return pd.DataFrame({"rate": np.arange(1, len(after) + 1) / 10, "before": [0.8, *after[:-1]], "after": after})


def test_the_rate_is_the_last_before_the_first_fall():
    steps = trace([0.82, 0.79, 0.7, 0.8, 0.3])
    assert export.choose_rate(steps, 0.02) == 0.2  # what is back above later does not count
    assert export.choose_rate(steps, 0.1) == 0.4
    assert export.choose_rate(steps, 0.5) == 0.5
    with pytest.raises(ValueError, match=r"falls from 0\.800 to 0\.780 in the first step, by more than 0\.010"):
        export.choose_rate(trace([0.78]), 0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace of noise with one run of two methods, and the folder of its tables."""
    folder = tmp_path_factory.mktemp("export")
    work, results = Miniature(folder / "data"), folder / "results"
    for stage, name in (("baseline", "px-iterative-abs+reconstruction"), ("dynamic", "dynamic")):
        run = work.run(name, 0, SETTINGS)
        files.write_csv(results / f"trace_{stage}.csv", run.trace)
        orders = {f"{name}/0": torch.from_numpy(run.order)}
        files.write_tensors(work.folder / f"orders_{stage}.safetensors", orders)
    return work, results


def test_what_others_read_gives_the_same_logits(finished, tmp_path, monkeypatch):
    work, results = finished
    monkeypatch.setattr(export, "load_backbone", lambda name, weights: work.backbone)
    name = "px-iterative-abs+reconstruction"
    export.export(work, results, name, 0, 0.5, tmp_path)
    rate = export.choose_rate(pd.read_csv(results / "trace_baseline.csv"), 0.5)
    assert rate > 0.3
    order = torch.from_numpy(work.run(name, 0, SETTINGS).order).numpy()
    network = prune_to(work.network(0, method(name)), order, rate).model
    test = work.samples(0, "test")
    expected = network(test.images[:7])
    pixels = torch.from_numpy(work.pixels(test.index[:7])).permute(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": pixels.numpy()})
    scale = expected.abs().max().item()
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4 * scale)
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    assert torch.allclose(loaded(pixels), expected, atol=1e-4 * scale)
    again = export.load_exported(tmp_path / "network.safetensors")
    assert torch.equal(again(test.images[:7]), expected)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert f"without {rate:.1%} of its filters" in card
    assert "36 labelled images ([12, 12, 12] a class)" in card
    assert f"| parameters | {sum(p.numel() for p in work.network(0).model.parameters()):,} |" in card
    assert {path.name for path in tmp_path.iterdir()} == {
        "network.safetensors", "network.onnx", "network.pt2", "MODEL_CARD.md",
    }  # fmt: skip


def test_what_differs_is_not_handed_over(finished, tmp_path, monkeypatch):
    work, results = finished
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"network\.pt2 differs from the network by"):
        export.export(work, results, "dynamic", 0, 1.0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]


def test_missing_runs_are_named(finished, tmp_path, capsys):
    work, results = finished
    with pytest.raises(ValueError, match="unknown method of this run 'taylor'; choose one of: dynamic, px-iterative"):
        export.export(work, results, "taylor", 0, 0.1, tmp_path)
    with pytest.raises(ValueError, match="dynamic has not been run with seed 5"):
        export.export(work, results, "dynamic", 5, 0.1, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"trace_baseline\.csv.* is missing: run make repro first"):
        export.export(work, tmp_path, "dynamic", 0, 0.1, tmp_path)
    assert export.main(["--profile", "quik"]) == 1
    assert "unknown profile of params.yaml 'quik'" in capsys.readouterr().err
