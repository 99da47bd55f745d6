"""The profile ``paper`` on its way from torchvision's files to a curve, with random numbers in the files."""

import numpy as np
import pytest
import torch
from torchvision.models import get_model, get_model_weights

from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.ridge_head import fit_heads, pooled_features
from lrp_core.study.data import datasets
from lrp_core.study.data.datasets import Dataset
from lrp_core.study.data.splits import split_dataset
from lrp_core.study.runs import pipeline
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.measuring import GRID
from lrp_core.study.runs.runner import run

PAPER = pipeline.read_params("paper")


def test_it_has_the_four_families():
    assert PAPER["base"]["weights"] == dict.fromkeys(("vgg16", "alexnet", "resnet18", "resnet50"), "imagenet")
    assert PAPER["01_data_prep"]["image_size"] == 224


@pytest.mark.parametrize("name", list(PAPER["base"]["weights"]))
def test_network_goes_from_torchvisions_file_to_a_curve(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = get_model_weights(name).IMAGENET1K_V1
    file = tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(get_model(name, weights=None).state_dict(), file)
    rng = np.random.default_rng(0)
    labels = torch.arange(40) % 2
    images = torch.from_numpy(rng.integers(0, 256, (40, 3, 64, 64), dtype=np.uint8))
    images[labels == 1] //= 2
    dataset = Dataset(images, labels, torch.arange(40), ("light", "dark"))
    splits = split_dataset(dataset, 0, 6, 4, 2).assign(seed=0)
    datasets.write_dataset(tmp_path / "work", dataset, splits, "noise")
    work = Experiment(str(tmp_path / "work"), name, PAPER["base"]["weights"][name], device="cpu")
    work.finished = tmp_path / "finished"
    calibration = work.samples(0, "calibration")
    features = pooled_features(work.backbone, calibration.images)
    file.unlink()  # large
    folds = draw_folds(calibration.labels, calibration.blocks, 2, 0)
    work.write_heads({0: fit_heads(features, calibration.labels, folds)})
    curve = run(work, "px-static", 0).curve
    assert curve["rate_requested"].dropna().tolist() == list(GRID)
    assert curve["parameters"].iloc[-1] < 0.2 * curve["parameters"].iloc[0]
