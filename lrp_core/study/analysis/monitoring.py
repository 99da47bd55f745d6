"""How well monitored accuracies predict the test accuracy, along finished runs."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from tqdm.auto import tqdm

from lrp_core.control.monitored import MONITORED, monitored_accuracies
from lrp_core.control.unlabelled import UNLABELLED
from lrp_core.metrics.accuracy import harmonic_mean, predict
from lrp_core.metrics.curve import filters_at
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import out_of_fold_logits, with_out_of_fold_heads
from lrp_core.study.data.files import read_tensors
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.measuring import GRID
from lrp_core.study.runs.processes import side_by_side

# From a network's logits for the calibration images, and those for unlabelled ones, to class accuracies.
_Monitor = Callable[[torch.Tensor, torch.Tensor | None], np.ndarray]


def monitored_along(
    experiment: Experiment, method: str, seeds: Iterable[int], unlabelled: Iterable[int] = ()
) -> pd.DataFrame:
    """Return every monitored accuracy of the networks that a finished run passed through.

    Args:
        experiment: where the runs were made.
        method: name of one of the baselines, with the head as it was.
        seeds: of its runs.
        unlabelled: numbers of images without labels that are looked at besides, at most
            (:mod:`lrp_core.control.unlabelled`).

    Returns:
        One row per seed, rate of the grid and monitored accuracy: seed, rate_requested, monitored (its name), value
        (the harmonic mean of the class accuracies).
    """
    seeds, sizes = list(seeds), list(unlabelled)
    with side_by_side(experiment.jobs) as parallel:
        tasks = (delayed(_of_seed)(experiment.at(n), method, seed, sizes) for n, seed in enumerate(seeds))
        progress = tqdm(parallel(tasks), f"monitoring {experiment.backbone_name}", total=len(seeds), unit="seed")
        return pd.DataFrame([row for rows in progress for row in rows])


def _of_seed(experiment: Experiment, method: str, seed: int, sizes: list[int]) -> list[dict]:
    torch.set_num_threads(experiment.threads)
    order = read_tensors(experiment.folder / "baseline" / "orders.safetensors")[f"{method}/{seed}/"].numpy()
    calibration, others = experiment.samples(seed, "calibration"), _unlabelled(experiment, seed, max(sizes, default=0))
    model = with_out_of_fold_heads(experiment.classifier(seed), experiment.out_of_fold_heads(seed).weight)
    network, n_pruned, rows = PrunedNetwork(model, calibration.images[:1]), 0, []
    monitors = _monitors(experiment, seed, network, others, sizes)
    for rate in GRID:
        network.remove(order[n_pruned : (n_pruned := filters_at(rate, network.n_filters))])
        logits = predict(network.model, calibration.images)
        outputs = predict(network.model, others) if len(others) else None
        for monitored, monitor in monitors.items():
            value = harmonic_mean(monitor(logits, outputs))
            rows.append({"seed": seed, "rate_requested": rate, "monitored": monitored, "value": value})
    return rows


def _monitors(
    experiment: Experiment, seed: int, network: PrunedNetwork, others: torch.Tensor, sizes: list[int]
) -> dict[str, _Monitor]:
    """Return by name what is monitored; the accuracies without labels start from the unpruned network."""
    calibration, fold = experiment.samples(seed, "calibration"), experiment.out_of_fold_heads(seed).fold
    labels, n_classes = calibration.labels, len(experiment.class_names)

    def with_labels(name: str) -> _Monitor:
        return lambda logits, _: monitored_accuracies(logits, labels, fold, n_classes, name)

    monitors = {name: with_labels(name) for name in MONITORED}
    if not len(others):
        return monitors
    logits, first = (predict(network.model, images) for images in (calibration.images, others))
    judged = out_of_fold_logits(logits[:, n_classes:], fold, n_classes)

    def without_labels(kind: str, size: int) -> _Monitor:
        monitor = UNLABELLED[kind](judged, labels, first[:size, :n_classes])
        return lambda _, outputs: monitor(outputs[:size, :n_classes])

    return monitors | {
        f"{kind}, {size} unlabelled": without_labels(kind, size) for kind in UNLABELLED for size in sizes
    }


def _unlabelled(experiment: Experiment, seed: int, size: int) -> torch.Tensor:
    """Return so many images without labels, at most, in an order of their own; none where there are none."""
    if size == 0 or not (experiment.splits.query("seed == @seed")["split"] == "unlabelled").any():
        return torch.empty(0)
    images = experiment.samples(seed, "unlabelled").images
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:size]]
