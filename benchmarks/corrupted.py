"""What corrupted copies of the calibration images are worth, and for what: AUC on clean and corrupted test images.

Solar cells and, where ``data/cifar10`` has its class folders, CIFAR-10 (SqueezeNet); development seeds; ``dynamic``: no
reconstruction. There is one copy of each image, with noise or brighter, by turns; test images also have what no copy
has. The controller may monitor the accuracy on copies as well. The head may be fitted to them as well, which is the
plainest way to robustness. Or they may be images like the others, for head, relevance and monitored accuracy. Mirror
images in their place tell whether it is the corruption that helps, or the number.

Writes results/benchmarks/corrupted.csv.
"""

from evaluations import NETWORKS, Prepared, Watching, along, prepared

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from tqdm import tqdm

from lrp_core.control import methods
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean, predict
from lrp_core.metrics.curve import pruning_auc
from lrp_core.repair.out_of_fold import OutOfFoldHeads
from lrp_core.graph.truncation import classifier
from lrp_core.repair.ridge_head import fit_heads, pooled_features
from lrp_core.control.monitored import monitored_accuracies
from lrp_core.study.data.pretrained import load_backbone
from lrp_core.study.runs.measuring import GRID
from lrp_core.study.data.files import write_csv
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.processes import side_by_side
from lrp_core.study.analysis.robustness import CORRUPTIONS, corrupted
from lrp_core.control.calibration import CalibrationTask

PER_CLASS = {"elpv": 40, "data/cifar10": 20}  # calibration images
TASKS = ("elpv", "squeezenet1_1"), ("elpv", "efficientnet-lite0"), ("data/cifar10", "squeezenet1_1")
SEEDS = 100, 101, 102, 103
SEEN = "noise", "brightness"  # by copies; of the four kinds
CORRUPTED, MIRRORED = "corrupted", "mirrored"
MONITORED, HEAD, ALL = "monitored accuracy", "head", "head, relevance, monitored accuracy"
ROWS = (  # which copies there are, what they are used for, the method
    ("", "", "px-iterative-abs"),
    ("", "", "dynamic"),
    (CORRUPTED, MONITORED, "dynamic"),
    (CORRUPTED, HEAD, "px-iterative-abs"),
    (CORRUPTED, HEAD, "dynamic"),
    (CORRUPTED, ALL, "dynamic"),
    (MIRRORED, ALL, "dynamic"),
)


def with_corrupted_copies(pixels: np.ndarray, labels: torch.Tensor, seed: int) -> np.ndarray:
    """Return images (N, H, W, 3), uint8, each with one of the kinds that are seen, by turns in each class."""
    generator, turns = np.random.default_rng(seed), pd.Series(labels).groupby(labels.numpy()).cumcount()
    kinds = [CORRUPTIONS[SEEN[turn % len(SEEN)]] for turn in turns]
    return np.stack([corrupt(image, generator) for corrupt, image in zip(kinds, pixels, strict=True)])


def tests(at: Prepared, seed: int) -> dict[str, list[torch.Tensor]]:
    """Return the test images as they are, with the kinds that copies have, and with the others."""
    pixels = at.images["test"][0]
    kinds = {kind: at.normalised(images) for kind, images in corrupted(pixels, seed).items()}
    unseen = [images for kind, images in kinds.items() if kind not in SEEN]
    return {"clean": [at.normalised(pixels)], "seen": [kinds[kind] for kind in SEEN], "unseen": unseen}


def watching(task: CalibrationTask, images: torch.Tensor, labels: torch.Tensor, fold: torch.Tensor) -> Watching:
    """Return a task that monitors the accuracy on other images than those that score filters."""
    n_classes = int(labels.max()) + 1
    return Watching(
        task, lambda model: monitored_accuracies(predict(model, images), labels, fold, n_classes, "cross-fitted")
    )


def run(data: str, name: str, seed: int) -> list[dict]:
    """Prune in every way on one seed, and return what each came to."""
    torch.set_num_threads(1)
    at, results = prepared(name, seed, data=data, per_class=PER_CLASS[data]), []
    (pixels, labels), (_, targets) = at.images["calibration"], at.images["test"]
    calibration, n_classes, test = at.normalised(pixels), int(labels.max()) + 1, tests(at, seed)
    copies = {CORRUPTED: at.normalised(with_corrupted_copies(pixels, labels, seed)), MIRRORED: calibration.flip(-1)}
    both = {kind: (torch.cat([calibration, images]), labels.repeat(2)) for kind, images in copies.items()}
    twice = at.out_of_fold.fold.repeat(2)  # an image and its copy
    backbone = load_backbone(name, NETWORKS[name]).to(memory_format=torch.channels_last)
    heads = {kind: fit_heads(pooled_features(backbone, images), twos, twice) for kind, (images, twos) in both.items()}
    for kind, use, method in ROWS:
        how, model, out_of_fold = methods.method(method), at.model, at.out_of_fold
        if use in (HEAD, ALL):
            model, out_of_fold = classifier(backbone, heads[kind].weight), heads[kind].out_of_fold
        images = both[kind] if use == ALL else (calibration, labels)
        fold = twice if use == ALL else at.out_of_fold.fold
        task = methods.task(model, OutOfFoldHeads(out_of_fold.weight, fold), *images, how, seed)
        task = watching(task, *both[kind], twice) if use == MONITORED else task
        steps = list(methods.steps(task, how))
        order, measured = np.concatenate([step.removed for step in steps]), {shown: [] for shown in test}
        for network in along(order, model, calibration):
            for shown, parts in test.items():
                predicted = [predict(network, images).argmax(dim=1) for images in parts]
                classes = [class_accuracies(one, targets, n_classes) for one in predicted]
                measured[shown].append(torch.stack(classes).mean(dim=0))
        row = {"dataset": data.removeprefix("data/"), "network": name, "method": method}
        row |= {"copies": kind, "used for": use, "seed": seed, "evaluations": steps[-1].evaluations}
        for shown, classes in measured.items():
            auc = pruning_auc(GRID, [one.mean().item() for one in classes])
            harmonic = pruning_auc(GRID, [harmonic_mean(one) for one in classes])
            row |= {"images": shown, "unpruned": classes[0].mean().item(), "auc": auc, "auc_harmonic_mean": harmonic}
            results.append(dict(row))
    return results


def main() -> None:
    """Run all ways on all tasks and development seeds, and print the means."""
    tasks = [task for task in TASKS if task[0] == "elpv" or (ROOT / task[0]).is_dir()]
    todo = [(*task, seed) for task in tasks for seed in SEEDS]
    with side_by_side(2) as parallel:
        parts = parallel(delayed(run)(*one) for one in todo)
        table = pd.DataFrame([row for part in tqdm(parts, total=len(todo), unit="seed") for row in part])
    write_csv(ROOT / "results" / "benchmarks" / "corrupted.csv", table)
    by = ["dataset", "network", "method", "copies", "used for", "images"]
    measures = ["evaluations", "unpruned", "auc", "auc_harmonic_mean"]
    print(table.groupby(by, sort=False)[measures].mean().round(3).to_string())


if __name__ == "__main__":
    main()
