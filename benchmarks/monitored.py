"""What images without labels are worth to the controller: AUC on test images, development seeds.

Solar cells, SqueezeNet, ``dynamic``: the head as it was, no reconstruction. Beside the cross-fitted accuracy of the
labelled images: two estimates from images without labels (lrp_core/control/unlabelled.py). Writes
results/benchmarks/monitored.csv.
"""

from evaluations import Monitored, Prepared, Watching, along, prepared

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from tqdm import tqdm

from lrp_core.control import methods
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean, predict
from lrp_core.metrics.curve import pruning_auc
from lrp_core.repair.out_of_fold import out_of_fold_logits
from lrp_core.study.runs.measuring import GRID
from lrp_core.study.data.files import write_csv
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.processes import side_by_side
from lrp_core.control.unlabelled import UNLABELLED

NETWORK = "squeezenet1_1"
SEEDS = 100, 101, 102, 103
CROSS_FITTED = "cross-fitted"
OTHERS = (("thresholded confidence", 200), ("thresholded confidence", 900), ("agreement", 200))
ROWS = (("px-iterative-abs", ""), ("dynamic", CROSS_FITTED), *(("dynamic", row) for row in OTHERS))


def without_labels(at: Prepared, name: str, size: int, whole: torch.nn.Module) -> Monitored:
    """Return the accuracies that so many unlabelled images estimate; ``whole`` is the unpruned network, all heads."""
    (pixels, labels), n_classes = at.images["calibration"], len(at.out_of_fold.weight[0])
    some = torch.randperm(len(at.images["unlabelled"][0]), generator=torch.Generator().manual_seed(0))[:size]
    images = at.normalised(at.images["unlabelled"][0][some])
    judged = out_of_fold_logits(predict(whole, at.normalised(pixels))[:, n_classes:], at.out_of_fold.fold, n_classes)
    watch = UNLABELLED[name](judged, labels, predict(whole, images)[:, :n_classes])
    return lambda model: watch(predict(model, images)[:, :n_classes])


def run(seed: int) -> list[dict]:
    """Prune with every monitored accuracy on one seed, and return what each came to."""
    torch.set_num_threads(1)
    at, results = prepared(NETWORK, seed, max(size for _, size in OTHERS)), []
    (calibration, labels), (test, targets) = (
        (at.normalised(pixels), labels) for pixels, labels in (at.images["calibration"], at.images["test"])
    )
    n_classes = int(labels.max()) + 1
    for name, monitored in ROWS:
        how = methods.method(name)
        task = methods.task(at.model, at.out_of_fold, calibration, labels, how, seed)
        if monitored in OTHERS:
            task = Watching(task, without_labels(at, *monitored, task.network.model))
        steps = list(methods.steps(task, how))
        order = np.concatenate([step.removed for step in steps])
        predicted = [predict(network, test).argmax(dim=1) for network in along(order, at.model, calibration)]
        classes = [class_accuracies(one, targets, n_classes) for one in predicted]
        shown = "{}, {} unlabelled".format(*monitored) if monitored in OTHERS else monitored
        row = {"network": NETWORK, "method": name, "monitored": shown, "seed": seed}
        row["evaluations"] = steps[-1].evaluations
        row["auc"] = pruning_auc(GRID, [one.mean().item() for one in classes])
        results.append(row | {"auc_harmonic_mean": pruning_auc(GRID, [harmonic_mean(one) for one in classes])})
    return results


def main() -> None:
    """Run all monitored accuracies on all development seeds, and print the means."""
    with side_by_side(2) as parallel:
        parts = parallel(delayed(run)(seed) for seed in SEEDS)
        table = pd.DataFrame([row for part in tqdm(parts, total=len(SEEDS), unit="seed") for row in part])
    write_csv(ROOT / "results" / "benchmarks" / "monitored.csv", table)
    print(
        table.groupby(["method", "monitored"], sort=False)
        .mean(numeric_only=True)
        .drop(columns="seed")
        .round(3)
        .to_string()
    )


if __name__ == "__main__":
    main()
