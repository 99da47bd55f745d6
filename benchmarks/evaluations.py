"""What thoroughness buys: AUC of the controller against the evaluations that it spends, on development seeds.

Solar cells, the head as it was, no reconstruction. Development seeds draw other splits than those of any result. The
oracle is no method: its controller monitors the accuracy on the test images, which bounds what any other monitored
accuracy can give. Writes results/benchmarks/evaluations.csv.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from torch import nn
from tqdm import tqdm

from lrp_core.study.data.pretrained import load_backbone, normalise
from lrp_core.control import methods
from lrp_core.control.controller import Settings
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean, predict
from lrp_core.metrics.curve import filters_at, pruning_auc
from lrp_core.study.runs.measuring import GRID
from lrp_core.study.data.datasets import load_dataset
from lrp_core.study.data.files import write_csv
from lrp_core.repair.out_of_fold import OutOfFoldHeads, draw_folds
from lrp_core.graph.truncation import classifier
from lrp_core.repair.ridge_head import fit_heads, pooled_features
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.processes import side_by_side
from lrp_core.study.data.splits import split_dataset
from lrp_core.control.calibration import CalibrationTask

NETWORKS = {"squeezenet1_1": "imagenet-caffe", "efficientnet-lite0": "imagenet"}
SEEDS = 100, 101
ELEVEN = tuple(np.linspace(0.97, 0.2, 11).round(3).tolist())
SETTINGS = {
    "default": Settings(),
    "least 0": Settings(least=0.0),
    "least 0, 11 levels": Settings(least=0.0, levels=ELEVEN),
    "least 0, 2 % a batch": Settings(least=0.0, batch=0.02),
}
ROWS = (
    ("px-iterative-abs", "default", False),
    ("joint", "default", False),
    *(("dynamic", name, False) for name in SETTINGS),
    *(("dynamic-joint", name, False) for name in ("default", "least 0")),
    ("dynamic", "default", True),
)


Monitored = Callable[[nn.Module], np.ndarray]  # from a network with its out-of-fold heads to class accuracies


class Watching:
    """A task that monitors another accuracy; all else is the task's."""

    def __init__(self, task: CalibrationTask, monitored: Monitored):
        self._task, self._monitored = task, monitored

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    def accuracy(self, filters: np.ndarray) -> np.ndarray:
        """Return the class accuracies without these filters, as they are monitored."""
        network = self._task.network
        return self._monitored(network.without(filters) if len(filters) else network.model)


@dataclass(frozen=True)
class Prepared:
    """A classifier with its out-of-fold heads, and the images of one development seed.

    ``images``: by split, of pixels (N, H, W, 3), uint8, and labels (N,), -1 if they are not read.
    """

    network: str
    model: nn.Module
    out_of_fold: OutOfFoldHeads
    images: dict[str, tuple[np.ndarray, torch.Tensor]]

    def normalised(self, pixels: np.ndarray) -> torch.Tensor:
        """Return what the classifier reads."""
        images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.network, NETWORKS[self.network])
        return images.to(memory_format=torch.channels_last)


def prepared(network: str, seed: int, n_unlabelled: int = 0, data: str = "elpv", per_class: int = 40) -> Prepared:
    """Draw so many calibration images a class of a data set, and fit a head."""
    dataset = load_dataset(data, 48)
    splits = split_dataset(dataset, seed, per_class, 40, dataset.block, n_unlabelled)
    images = {
        split: (
            dataset.images[rows["index"].to_numpy(copy=True)].permute(0, 2, 3, 1).numpy(),
            torch.from_numpy(rows["label"].to_numpy(copy=True)),
        )
        for split, rows in splits.groupby("split")
    }
    backbone = load_backbone(network, NETWORKS[network]).to(memory_format=torch.channels_last)
    pixels, labels = images["calibration"]
    fold = draw_folds(labels, splits.query("split == 'calibration'")["block"].to_numpy(), 5, seed)
    bare = Prepared(network, backbone, None, images)
    heads = fit_heads(pooled_features(backbone, bare.normalised(pixels)), labels, fold)
    return replace(bare, model=classifier(backbone, heads.weight), out_of_fold=heads.out_of_fold)


def along(order: np.ndarray, model: nn.Module, images: torch.Tensor) -> Iterator[nn.Module]:
    """Yield the networks that removing filters in this order leaves, at every rate of the grid."""
    network, removed = PrunedNetwork(model, images), 0
    for rate in GRID:
        network.remove(order[removed : (removed := filters_at(rate, network.n_filters))])
        yield network.model


def run(network: str, seed: int, rows: tuple) -> list[dict]:
    """Prune with all rows on one seed, and return what each came to."""
    torch.set_num_threads(1)
    at, results = prepared(network, seed), []
    (calibration, labels), (test, targets) = (
        (at.normalised(pixels), labels) for pixels, labels in (at.images["calibration"], at.images["test"])
    )
    n_classes = int(labels.max()) + 1

    def on_test(model: nn.Module) -> np.ndarray:
        return class_accuracies(predict(model, test)[:, :n_classes].argmax(dim=1), targets, n_classes).numpy()

    for name, settings, oracle in rows:
        how = methods.method(name)
        task = methods.task(at.model, at.out_of_fold, calibration, labels, how, seed)
        task = Watching(task, on_test) if oracle else task
        steps = list(methods.steps(task, how, SETTINGS[settings]))
        order = np.concatenate([step.removed for step in steps])
        accuracies = [on_test(model) for model in along(order, at.model, calibration)]
        auc = pruning_auc(GRID, [classes.mean() for classes in accuracies])
        harmonic = pruning_auc(GRID, [harmonic_mean(classes) for classes in accuracies])
        row = {"network": network, "method": f"{name} (oracle)" if oracle else name, "settings": settings, "seed": seed}
        results.append(row | {"evaluations": steps[-1].evaluations, "auc": auc, "auc_harmonic_mean": harmonic})
    return results


def main() -> None:
    """Run all rows on all development seeds, or two rows of the smaller network on one, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", action="store_true", help="one network and seed, the controller's default alone")
    first = parser.parse_args().first
    todo = [(network, seed) for network in reversed(NETWORKS) for seed in SEEDS]
    todo, rows = ([todo[-1]], (ROWS[0], ROWS[2])) if first else (todo, ROWS)
    with side_by_side(2) as parallel:
        parts = parallel(delayed(run)(network, seed, rows) for network, seed in todo)
        table = pd.DataFrame([row for part in tqdm(parts, total=len(todo), unit="seed") for row in part])
    write_csv(ROOT / "results" / "benchmarks" / "evaluations.csv", table)
    means = table.groupby(["network", "method", "settings"], sort=False)[["evaluations", "auc", "auc_harmonic_mean"]]
    print(means.mean().round(3).to_string())


if __name__ == "__main__":
    main()
