"""What a head costs to fit and what it is worth: the ridge in closed form against logistic regression, by depth.

Development seeds, which no result uses. Both fits choose their strength on the same folds. Writes
results/benchmarks/heads.csv: seconds of each fit and of the forward pass of the calibration images through the whole
backbone, on one thread, and test accuracies.
"""

import time

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from lrp_core.graph.exits import features_by_exit
from lrp_core.metrics.accuracy import predict
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.ridge_head import fit_heads
from lrp_core.study.data.pretrained import load_backbone, normalise
from lrp_core.study.data.datasets import load_dataset
from lrp_core.study.data.files import write_csv
from lrp_core.study.paths import ROOT
from lrp_core.study.data.splits import split_dataset

NETWORKS = {"efficientnet-lite0": "imagenet", "squeezenet1_1": "imagenet-caffe"}
TASKS = {"elpv": 40, "data/cifar10": 20}  # calibration images a class
SEEDS = (100, 101)
STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of logistic regression, on features scaled to unit deviation


def logistic(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the weights (n_classes, C) of a head, with the C of the best cross-fitted accuracy."""

    def fit(strength: float, chosen: np.ndarray) -> np.ndarray:
        head = LogisticRegression(C=strength, fit_intercept=False, max_iter=100)
        return head.fit(coordinates[chosen], y[chosen]).coef_

    scale = x.std(axis=0)
    scale[scale == 0] = 1.0
    basis, triangle = np.linalg.qr((x / scale).T)
    coordinates = triangle.T
    hits = {}
    for strength in STRENGTHS:
        out_of_fold = np.stack([fit(strength, fold != k) for k in range(fold.max() + 1)])
        hits[strength] = (np.einsum("nf,ncf->nc", coordinates, out_of_fold[fold]).argmax(axis=1) == y).mean()
    return fit(max(hits, key=hits.get), fold >= 0) @ basis.T / scale


def main() -> None:
    """Measure and write the table; print its means."""
    torch.set_num_threads(1)
    rows = []
    for task, n_calibration in TASKS.items():
        dataset = load_dataset(task, 48)
        for network, weights in NETWORKS.items():
            backbone = load_backbone(network, weights).to(memory_format=torch.channels_last)
            for seed in tqdm(SEEDS, f"{task} {network}"):
                split = split_dataset(dataset, seed, n_calibration, 40, dataset.block)
                parts = [split[split["split"] == name] for name in ("calibration", "test")]
                images = [normalise(dataset.images[part["index"].to_numpy()], network, weights) for part in parts]
                y, test = (part["label"].to_numpy(copy=True) for part in parts)
                fold = draw_folds(torch.from_numpy(y), parts[0]["block"].to_numpy(), 5, seed)
                start = time.perf_counter()
                predict(backbone, images[0].to(memory_format=torch.channels_last))
                forward = time.perf_counter() - start
                calibration, unseen = (features_by_exit(backbone, some) for some in images)
                for depth, name in list(enumerate(calibration))[::4]:
                    start = time.perf_counter()
                    ridge = fit_heads(calibration[name], torch.from_numpy(y), fold).weight.double().numpy()
                    middle = time.perf_counter()
                    other = logistic(calibration[name].double().numpy(), y, fold.numpy())
                    seconds = {"forward": forward, "ridge": middle - start, "logistic": time.perf_counter() - middle}
                    right = [(unseen[name].numpy() @ head.T).argmax(axis=1) == test for head in (ridge, other)]
                    accuracies = {"ridge_accuracy": right[0].mean(), "logistic_accuracy": right[1].mean()}
                    row = {
                        "task": task,
                        "network": network,
                        "seed": seed,
                        "exit": name,
                        "depth": depth / len(calibration),
                    }
                    rows.append(row | {"features": ridge.shape[1]} | seconds | accuracies)
    table = pd.DataFrame(rows)
    write_csv(ROOT / "results" / "benchmarks" / "heads.csv", table)
    means = ["forward", "ridge", "logistic", "ridge_accuracy", "logistic_accuracy"]
    print(table.groupby(["task", "network"], sort=False)[means].mean().round(3))
    print(table.groupby("task", sort=False)[means].mean().round(3))


if __name__ == "__main__":
    main()
