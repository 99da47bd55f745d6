"""What pruning costs: seconds of the controller and of iterative pruning, against filters, images and image size.

Solar cells, each network's own head, default settings. Each controller run stands beside two of px-iterative-abs: one
with its 5 % a step, one with as many steps as the controller took. Writes results/benchmarks/cost.csv.
"""

import argparse
import time
from dataclasses import replace

import pandas as pd
import torch
from tqdm import tqdm

from lrp_core.study.data.pretrained import load_backbone, normalise
from lrp_core.control import methods
from lrp_core.control.controller import Settings
from lrp_core.study.data.datasets import load_dataset
from lrp_core.study.data.files import write_csv
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.graph.truncation import classifier
from lrp_core.repair.ridge_head import fit_heads, pooled_features
from lrp_core.study.paths import ROOT
from lrp_core.study.data.splits import split_dataset

NETWORKS = {"vgg11": "random", "vgg16": "hed-bsds500", "resnet18": "random", "efficientnet-lite0": "imagenet"}
# Network, images a class, px: one of the three at a time.
GRID = (
    *(("vgg16", 20, px) for px in (32, 48, 64)),
    *(("vgg16", images, 48) for images in (10, 40)),
    *((network, 20, 48) for network in NETWORKS if network != "vgg16"),
)


def run(network: str, images: int, px: int, rows: list[dict]) -> None:
    """Time the methods on one network with so many images a class of a size."""
    dataset = load_dataset("elpv", px)
    split = split_dataset(dataset, 0, images, 10, 32).query("split == 'calibration'")
    index = split["index"].to_numpy(copy=True)
    labels = torch.from_numpy(split["label"].to_numpy(copy=True))
    torch.manual_seed(0)
    backbone = load_backbone(network, NETWORKS[network]).to(memory_format=torch.channels_last)
    calibration = normalise(dataset.images[index], network, NETWORKS[network]).to(memory_format=torch.channels_last)
    fold = draw_folds(labels, split["block"].to_numpy(), 5, 0)
    heads = fit_heads(pooled_features(backbone, calibration), labels, fold)
    model = classifier(backbone, heads.weight)

    def timed(name: str, settings: Settings, steps: str) -> int:
        how = methods.method(name)
        start = time.perf_counter()
        task = methods.task(model, heads.out_of_fold, calibration, labels, how, 0)
        trace = list(methods.steps(task, how, settings))
        seconds = time.perf_counter() - start
        rows.append(
            {
                "network": network,
                "filters": task.network.n_filters,
                "images": len(calibration),
                "px": px,
                "method": name,
            }
            | {"steps": steps, "n_steps": len(trace), "evaluations": trace[-1].evaluations, "seconds": seconds}
        )
        return len(trace)

    for suffix in ("", "+reconstruction"):
        n_steps = timed(f"dynamic{suffix}", Settings(), "its own")
        timed(f"px-iterative-abs{suffix}", Settings(), "its own")
        timed(f"px-iterative-abs{suffix}", replace(Settings(), batch=0.95 / n_steps), "the controller's")


def multiples(table: pd.DataFrame) -> pd.DataFrame:
    """Return the controller's seconds as multiples of those of iterative pruning, by configuration."""
    keys = ["network", "filters", "images", "px", "reconstruction"]
    names = table["method"].str.partition("+")
    table = table.assign(kind=names[0] + ", " + table["steps"], reconstruction=names[2] != "")
    seconds = table.pivot(index=keys, columns="kind", values="seconds")
    controller = seconds.pop("dynamic, its own")
    steps = table[table["kind"] == "dynamic, its own"].set_index(keys)[["n_steps", "evaluations", "seconds"]]
    return steps.join(seconds.rdiv(controller, axis=0).add_prefix("multiple of "))


def main() -> None:
    """Run the grid, or its first configuration, and print the controller's cost as multiples of iterative pruning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", action="store_true", help="the first configuration alone")
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows: list[dict] = []
    for configuration in tqdm(GRID[:1] if options.first else GRID, unit="network"):
        run(*configuration, rows)
        table = pd.DataFrame(rows)
        write_csv(ROOT / "results" / "benchmarks" / "cost.csv", table)
    print(multiples(table).round(1).to_string())


if __name__ == "__main__":
    main()
