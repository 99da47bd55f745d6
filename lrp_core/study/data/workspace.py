"""The files that the stages pass on: prepared images, splits, heads.

A workspace is a folder under data/. It is not in git.
"""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from torch import nn

from lrp_core.graph.truncation import classifier
from lrp_core.repair.out_of_fold import OutOfFoldHeads
from lrp_core.repair.ridge_head import Heads
from lrp_core.study.data.files import read_tensors, write_tensors
from lrp_core.study.data.pretrained import load_backbone, normalise
from lrp_core.study.data.splits import overlap
from lrp_core.study.paths import ROOT
from lrp_core.utils.devices import choose_device, fastest_layout


@dataclass(frozen=True)
class Samples:
    """Normalised images (N, 3, H, W), classes (N,), -1 if not read, blocks (N,) and indices in the data set (N,)."""

    images: torch.Tensor
    labels: torch.Tensor
    blocks: np.ndarray
    index: np.ndarray


class Workspace:
    """Prepared images with a frozen backbone; every run computes the same."""

    def __init__(self, workspace: str, backbone: str, weights: str, threads: int = 1, device: str = "auto"):
        """Open a workspace for a backbone.

        Args:
            workspace: folder with the images and splits, a path from the repository root.
            backbone: name of the backbone; its heads are in a folder of that name.
            weights: of the backbone.
            threads: of torch; fixed, because results depend on them.
            device: see :func:`lrp_core.utils.devices.choose_device`.
        """
        self.device = choose_device(device)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        self.path = ROOT / workspace
        self.folder = self.path / "runs" / backbone
        self.backbone_name, self.weights, self.threads = backbone, weights, threads
        self._images = read_tensors(self.path / "dataset" / "images.safetensors")
        with safe_open(self.path / "dataset" / "images.safetensors", "pt") as file:
            description = json.loads(file.metadata()["dataset"])
        self.dataset_name, self.class_names = description["name"], tuple(description["classes"])
        self.splits = pd.read_csv(self.path / "dataset" / "splits.csv")

    @cached_property
    def backbone(self) -> nn.Module:
        """The frozen backbone, on a CPU channels last (about 1.5 times as fast there)."""
        backbone = load_backbone(self.backbone_name, self.weights)
        return backbone.to(self.device, memory_format=fastest_layout(self.device))

    @property
    def overlap(self) -> float:
        """The share of the images that a seed tests (:func:`lrp_core.study.data.splits.overlap`)."""
        tested = self.splits.loc[self.splits["split"] == "test", "label"].to_numpy(copy=True)
        return overlap(self._images["labels"], torch.from_numpy(tested), self.splits["seed"].nunique())

    def samples(self, seed: int, split: str) -> Samples:
        """Return the "calibration", the "test" or the "unlabelled" images of a seed.

        Raises:
            ValueError: the workspace has no such seed.
        """
        rows = self.splits.query("seed == @seed and split == @split")
        if rows.empty:
            known = sorted(self.splits["seed"].unique().tolist())
            raise ValueError(f"no {split} images for seed {seed} in {self.path}; it has the seeds {known}")
        index = rows["index"].to_numpy(copy=True)
        images = normalise(self._images["images"][index], self.backbone_name, self.weights)
        labels = torch.from_numpy(rows["label"].to_numpy(copy=True))
        return Samples(images.to(memory_format=fastest_layout(self.device)), labels, rows["block"].to_numpy(), index)

    def pixels(self, index: np.ndarray) -> np.ndarray:
        """Return images as they were prepared, (N, H, W, 3), uint8."""
        return self._images["images"][index].permute(0, 2, 3, 1).numpy()

    def write_heads(self, heads: dict[int, Heads]) -> None:
        """Keep the heads of all seeds in heads.safetensors."""
        tensors = {}
        for seed, head in heads.items():
            weight = torch.cat([head.weight[None], head.out_of_fold.weight])  # (1 + k, n_classes, C)
            tensors |= {f"{seed}/weight": weight, f"{seed}/fold": head.out_of_fold.fold}
        write_tensors(self.folder / "heads" / "heads.safetensors", tensors)

    def classifier(self, seed: int) -> nn.Module:
        """Return the backbone with the head of a seed."""
        return classifier(self.backbone, self._head(seed)[0][0])

    def out_of_fold_heads(self, seed: int) -> OutOfFoldHeads:
        """Return a seed's out-of-fold heads."""
        weight, fold = self._head(seed)
        return OutOfFoldHeads(weight[1:], fold)

    def _head(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        heads = read_tensors(self.folder / "heads" / "heads.safetensors")
        return heads[f"{seed}/weight"], heads[f"{seed}/fold"]
