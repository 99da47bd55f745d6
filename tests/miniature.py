"""An experiment so small that a run takes a second; everything in it runs for real."""

import numpy as np
import pandas as pd
import torch

from lrp_core.control.controller import Settings
from lrp_core.repair.out_of_fold import OutOfFoldHeads
from lrp_core.repair.ridge_head import Heads
from lrp_core.study.data import datasets
from lrp_core.study.data.datasets import Dataset
from lrp_core.study.data.splits import split_dataset
from lrp_core.study.runs.experiment import Experiment

SETTINGS = Settings(batch=0.1, levels=(0.9, 0.5))


class Miniature(Experiment):
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
        self.finished = folder / "finished"
        heads = {}
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 30, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(30, 50, 3), torch.nn.ReLU()]
        self.backbone = torch.nn.Sequential(*layers).eval().requires_grad_(False)
        for seed in (0, 1):
            weight = torch.randn(4, 3, 50)
            heads[seed] = Heads(weight[0], OutOfFoldHeads(weight[1:], torch.arange(36) % 3), 0.1)
        self.write_heads(heads)
