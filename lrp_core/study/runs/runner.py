"""Runs methods on a prepared workspace, side by side, measures the networks that they find, and writes both."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from tqdm import tqdm

from lrp_core.control import early_exit, methods
from lrp_core.control.budget_search import ACTIONS
from lrp_core.control.controller import Settings, Step, greatest_rate
from lrp_core.control.methods import Method, method
from lrp_core.pruning.dependency import couple
from lrp_core.study.data.files import write_csv, write_tensors
from lrp_core.study.runs import measuring
from lrp_core.study.runs.cache import Run, path_of, read_run, write_run
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.finished import COLUMNS
from lrp_core.study.runs.processes import side_by_side

# What finding networks gives: orders and trace as of a run, what was measured of each network, seconds.
_Found = tuple[dict[str, np.ndarray], list[dict], list[dict], float]


def run(experiment: Experiment, name: str, seed: int, settings: Settings = Settings()) -> Run:
    """Prune with a method on the calibration images of a seed, then measure the curve on its test images, once.

    A finished run is kept and read back when it is asked for again with the same settings, input files, code and
    torch: that is how an interrupted stage goes on, and how a longer profile starts from what the default has done.

    Args:
        experiment: the workspace.
        name: of the method (:mod:`lrp_core.control.methods`).
        seed: the split and its heads.
        settings: of the controller.
    """
    how = method(name)
    torch.set_num_threads(experiment.threads)
    torch.use_deterministic_algorithms(True)
    path = path_of(experiment, name, seed, how, settings)
    if (kept := read_run(path)) is not None:
        return kept
    samples = [experiment.samples(seed, split) for split in ("calibration", "test")]
    n_filters = couple(experiment.classifier(seed), samples[0].images[:1]).n_groups
    fold = experiment.out_of_fold_heads(seed).fold
    judge = measuring.Judge(n_filters, fold, *samples, experiment.class_names)
    find = _search if how.actions else _prune
    orders, trace, networks, seconds = find(experiment, how, seed, settings, judge)
    curve = measuring.on_grid(pd.DataFrame(networks), choosing=measuring.chooses(name))
    layers = [column for column in curve if column.startswith("kept_")]
    curve[layers] = curve[layers].fillna(0).astype(int)  # behind the exit
    labels = {"dataset": experiment.dataset_name, "backbone": experiment.backbone_name, "method": name, "seed": seed}
    finished = Run(orders, _labelled(labels, pd.DataFrame(trace)), _labelled(labels, curve), seconds)
    write_run(path, finished)
    return finished


def _prune(experiment: Experiment, how: Method, seed: int, settings: Settings, judge: measuring.Judge) -> _Found:
    """Prune the whole network, or with early exits several shorter ones, step by step."""
    calibration, began, starts = judge.calibration, time.perf_counter(), [""]
    if how.early_exit:
        exits = early_exit.exits(experiment.backbone, calibration.images, calibration.labels, judge.fold)
        starts = [exit_.name for exit_ in early_exit.halving(exits)]
    steps: dict[str, list[Step]] = {}
    for start in starts if how.criterion is not None else ():
        task = methods.task(*experiment.start(seed, start), calibration.images, calibration.labels, how, seed)
        until = min(measuring.LAST, greatest_rate(task.network.layer_of))
        steps[start] = list(methods.steps(task, how, settings, until))
    seconds = time.perf_counter() - began
    networks = list(judge.measure_exits(experiment.backbone, exits)) if how.early_exit else []
    orders = {start: np.concatenate([step.removed for step in taken]) for start, taken in steps.items()}
    for start, order in orders.items():
        network = experiment.network(seed, how, start, out_of_fold=True)
        networks += [row | {"truncation": start} for row in judge.measure_grid(network, order)]
    names = experiment.class_names
    trace = [{"truncation": start} | _row(step, names) for start, taken in steps.items() for step in taken]
    return orders, trace, networks, seconds


def _row(step: Step, class_names: tuple[str, ...]) -> dict:
    row = asdict(step) | {"removed": len(step.removed)}
    accuracies = zip(class_names, row.pop("accuracies").tolist(), strict=True)
    return row | {f"accuracy_{name}": value for name, value in accuracies}


def _search(experiment: Experiment, how: Method, seed: int, _: Settings, judge: measuring.Judge) -> _Found:
    """Go down the schedule of budgets that tables know (:mod:`lrp_core.control.budget_search`)."""
    began, search = time.perf_counter(), experiment.budget_search(seed, how)
    steps = list(search.descend(measuring.BUDGETS))
    seconds = time.perf_counter() - began
    networks = [judge.measure(search.network("", out_of_fold=True)) | {"truncation": ""}]
    for step in steps:
        if step.action != "none":
            network = search.network(step.truncation, out_of_fold=True).smaller(step.removed)
            networks.append(judge.measure(network) | {"truncation": step.truncation})
    trace = [asdict(step) | {"removed": len(step.removed)} for step in steps]
    for row, step in zip(trace, steps, strict=True):
        del row["candidates"]
        row |= {f"candidate_{action}": step.candidates.get(action) for action in ("start", *ACTIONS)}
    return {step.truncation: step.removed for step in steps}, trace, networks, seconds


def _labelled(labels: dict, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**labels)[[*labels, *frame.columns]]


def run_all(
    experiment: Experiment, names: Iterable[str], seeds: Iterable[int], settings: Settings = Settings()
) -> dict[tuple[str, int], Run]:
    """Run every method on every seed, ``experiment.jobs`` at a time, each in a process of its own.

    Where the environment names a Dask scheduler (DASK_SCHEDULER_ADDRESS), the workers of that cluster run them instead;
    they have to see this repository under the same path.

    Returns:
        By method and seed, what :func:`run` returns.
    """
    todo = [(name, seed) for name in names for seed in seeds]
    for name, _ in todo:
        how = method(name)  # an unknown one is named before hours are spent on the others
        if how.by_cost or how.distil or how.smaller_images or how.intermediate_features:
            raise ValueError(f"{name!r} is a method of lrp_core.prune alone; the study's runs do not know it yet")
    experiment.backbone.eval()  # loaded once, here, not in every process
    with side_by_side(experiment.jobs) as parallel:
        runs = parallel(delayed(run)(experiment.at(n), *one, settings) for n, one in enumerate(todo))
        progress = tqdm(runs, f"pruning {experiment.backbone_name}", total=len(todo), unit="run")
        return dict(zip(todo, progress, strict=True))


def write_runs(
    experiment: Experiment, stage: str, runs: dict[tuple[str, int], Run], results: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write what a stage's runs gave: tables for people, orders and seconds for the stages after it.

    Args:
        experiment: where the runs were made.
        stage: "baseline", "dynamic" or "budget_search".
        runs: of :func:`run_all`.
        results: folder of the backbone's tables.

    Returns:
        The curves and the traces of all runs.
    """
    curves = pd.concat([one.curve for one in runs.values()], ignore_index=True).assign(overlap=experiment.overlap)
    trace = pd.concat([one.trace for one in runs.values()], ignore_index=True)
    write_csv(results / stage / "curves.csv", curves)
    write_csv(results / stage / "trace.csv", trace)
    orders = {
        f"{name}/{seed}/{truncation}": torch.from_numpy(order)
        for (name, seed), one in runs.items()
        for truncation, order in one.orders.items()
    }
    write_tensors(experiment.folder / stage / "orders.safetensors", orders)
    write_csv(experiment.folder / stage / "networks.csv", curves[COLUMNS])
    seconds = [{"method": name, "seed": seed, "seconds": one.seconds} for (name, seed), one in runs.items()]
    write_csv(experiment.folder / stage / "seconds.csv", pd.DataFrame(seconds))
    return curves, trace
