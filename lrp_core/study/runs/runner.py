"""Runs of methods on a prepared workspace. A finished run is kept, and read back when it is asked for again."""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from torch import nn
from tqdm import tqdm

from lrp_core.control import early_exit, methods
from lrp_core.control.budget_search import ACTIONS, BudgetSearch
from lrp_core.control.controller import Settings, Step, greatest_rate
from lrp_core.control.methods import Method, method
from lrp_core.control.monitored import MONITORED, monitored_accuracies
from lrp_core.control.unlabelled import UNLABELLED
from lrp_core.graph.truncation import features_by_depth, truncated
from lrp_core.importance.registry import criterion
from lrp_core.metrics.accuracy import filters_at, harmonic_mean, predict
from lrp_core.pruning.dependency import couple
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.ridge_head import OutOfFoldHeads, classifier, fit_heads, out_of_fold_logits, with_out_of_fold_heads
from lrp_core.study.data.files import read_tensors, write_csv, write_tensors
from lrp_core.study.data.pretrained import own_files
from lrp_core.study.data.workspace import Workspace
from lrp_core.study.paths import ROOT
from lrp_core.study.runs import measuring as curves
from lrp_core.study.runs.cache import CODE, meaning
from lrp_core.study.runs.processes import side_by_side
from lrp_core.utils.devices import nth_device
from lrp_core.utils.errors import check_choice
from lrp_core.utils.files import atomic

STAGES = "baseline", "dynamic", "budget_search"  # of pruning


@dataclass(frozen=True)
class Run:
    """One method on one seed.

    Attributes:
        orders: filter numbers, first to go first, by the name of the layer behind which the backbone was cut before; ""
            for the whole backbone.
        trace: one row a step of the method.
        curve: one row a network that was measured (:func:`lrp_core.study.runs.measuring.on_grid`).
        seconds: that finding the order took.
    """

    orders: dict[str, np.ndarray]
    trace: pd.DataFrame
    curve: pd.DataFrame
    seconds: float


# From what a network gives for the calibration images, and for others, to class accuracies.
_Watch = Callable[[torch.Tensor, torch.Tensor | None], np.ndarray]
# What finding networks gave: orders and trace as of a run, what was measured of each network, seconds.
_Found = tuple[dict[str, np.ndarray], list[dict], list[dict], float]


class Experiment(Workspace):
    """A prepared workspace on which methods are run."""

    def __init__(
        self, workspace: str, backbone: str, weights: str, threads: int = 1, jobs: int = 1, device: str = "auto"
    ):
        """Open a workspace for a backbone; ``jobs`` runs go at a time, which changes no result. The rest is its own."""
        super().__init__(workspace, backbone, weights, threads, device)
        self.runs = ROOT / "data" / "runs"  # finished ones, of all workspaces: their names tell what they depend on
        self.jobs = jobs

    def start(self, seed: int, truncation: str = "") -> tuple[nn.Module, OutOfFoldHeads]:
        """Return the unpruned classifier of a seed and the copies of its head; with ``truncation``, of what a cut leaves.

        For cuts see :func:`lrp_core.graph.truncation.truncated`.
        """
        if not truncation:
            return self.classifier(seed), self.out_of_fold_heads(seed)
        calibration, part = self.samples(seed, "calibration"), truncated(self.backbone, truncation)
        *_, features = features_by_depth(part, calibration.images).values()
        heads = fit_heads(features, calibration.labels, self.out_of_fold_heads(seed).fold)
        return classifier(part, heads.weight), heads.out_of_fold

    def budget_search(self, seed: int, how: Method) -> BudgetSearch:
        """Return the backbone under the controller with the levers of a method."""
        calibration, score = self.samples(seed, "calibration"), criterion(how.criterion, len(self.class_names), seed)
        return BudgetSearch(
            self.backbone,
            calibration.images,
            calibration.labels,
            self.out_of_fold_heads(seed).fold,
            score,
            how.actions,
            how.blocks,
        )

    def network(
        self, seed: int, how: Method = Method(), truncation: str = "", out_of_fold: bool = False
    ) -> PrunedNetwork:
        """Return a seed's unpruned classifier, or what a cut leaves of it, ready to be pruned as a method does.

        With ``out_of_fold``, those of its head stand beside it.
        """
        if how.actions:
            return self.budget_search(seed, how).network(truncation, out_of_fold)
        calibration, (model, crossfit) = self.samples(seed, "calibration"), self.start(seed, truncation)
        model = with_out_of_fold_heads(model, crossfit.weight) if out_of_fold else model
        return methods.unpruned(model, calibration.images, calibration.labels, crossfit.fold, how)

    def measured(self, name: str, seed: int) -> pd.DataFrame:
        """Return what is known of a finished run's networks without test images.

        Returns:
            Columns method, seed, rate, crossfitted, squared_error, parameters, multiply_adds, cut, removed.

        Raises:
            FileNotFoundError: the stages have not been run.
            ValueError: they have not run this method with this seed.
        """
        files = [self.folder / f"networks_{stage}.csv" for stage in STAGES]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise FileNotFoundError(f"{', '.join(missing)} is missing: run the stages before this one (make repro)")
        networks = pd.concat([pd.read_csv(file, dtype={"truncation": str}) for file in files], ignore_index=True)
        networks["truncation"] = networks["truncation"].fillna("")
        runs = networks["method"] + "/" + networks["seed"].astype(str)
        return networks[runs == check_choice("run", f"{name}/{seed}", runs.unique())]

    def rebuilt(
        self, name: str, seed: int, networks: Iterable[tuple[str, int]], compensate: bool = True
    ) -> Iterator[PrunedNetwork]:
        """Yield networks of a finished run again.

        Args:
            name: of the method.
            seed: of the run.
            networks: of each, the layer behind which the backbone was cut (or ""), and how many filters went then.
            compensate: as the method does; without, networks are as large and as fast, and sooner made.
        """
        orders = {}
        for stage in STAGES:
            orders |= read_tensors(self.folder / f"orders_{stage}.safetensors")
        how, unpruned = method(name), {}
        how = how if compensate else replace(how, reconstruct=False, refit=False, actions=())
        for truncation, size in networks:
            if truncation not in unpruned:
                unpruned[truncation] = self.network(seed, how, truncation)
            yield unpruned[truncation].smaller(
                orders[f"{name}/{seed}/{truncation}"].numpy()[:size] if size else np.array([], dtype=int)
            )

    def within(self, name: str, seed: int, budgets: Iterable[float]) -> Iterator[tuple[float, PrunedNetwork]]:
        """Yield the budgets for which a finished run has a network, each with the best that the calibration images know.

        Args:
            name: of the method.
            seed: of the run.
            budgets: multiply-adds, as fractions of the unpruned network's.

        Raises:
            FileNotFoundError: the stages have not been run.
            ValueError: they have not run this method with this seed.
        """
        networks, chosen = self.measured(name, seed), {}
        fractions = networks["multiply_adds"] / networks["multiply_adds"][networks["rate"] == 0].iloc[0]
        for budget in budgets:
            row = curves.choose(networks, fractions <= budget + 1e-9, method(name).refit)
            if row is not None:
                chosen[budget] = (row["truncation"], int(row["removed"]))
        yield from zip(chosen, self.rebuilt(name, seed, chosen.values()), strict=True)

    def monitored(self, name: str, seeds: Iterable[int], unlabelled: Iterable[int] = ()) -> pd.DataFrame:
        """Return what every signal says of the networks that a finished method has gone through.

        Args:
            name: of the method.
            seeds: of its runs.
            unlabelled: how many images without labels are looked at, too, at most (:mod:`lrp_core.control.unlabelled`).

        Returns:
            One row a seed, rate of the grid and signal: seed, rate_requested, signal, value (the harmonic mean of the
            class accuracies, as the signal has them).
        """
        seeds, sizes = list(seeds), list(unlabelled)
        with side_by_side(self.jobs) as parallel:
            tasks = (
                delayed(Experiment._monitored_of_seed)(self._at(n), name, seed, sizes) for n, seed in enumerate(seeds)
            )
            parts = tqdm(parallel(tasks), f"signals of {self.backbone_name}", total=len(seeds), unit="seed")
            return pd.DataFrame([row for rows in parts for row in rows])

    def _monitored_of_seed(self, name: str, seed: int, sizes: list[int]) -> list[dict]:
        torch.set_num_threads(self.threads)
        order = read_tensors(self.folder / "orders_baseline.safetensors")[f"{name}/{seed}/"].numpy()
        calibration, out_of_fold, n_classes = (
            self.samples(seed, "calibration"),
            self.out_of_fold_heads(seed),
            len(self.class_names),
        )
        network, n_pruned, rows = (
            PrunedNetwork(with_out_of_fold_heads(self.classifier(seed), out_of_fold.weight), calibration.images[:1]),
            0,
            [],
        )
        others = self._unlabelled(seed, max(sizes, default=0))

        def labelled(monitored: str) -> _Watch:
            return lambda logits, _: monitored_accuracies(
                logits, calibration.labels, out_of_fold.fold, n_classes, monitored
            )

        watches = {monitored: labelled(monitored) for monitored in MONITORED}
        if len(others):
            logits, first = (predict(network.model, images) for images in (calibration.images, others))
            judged = out_of_fold_logits(logits[:, n_classes:], out_of_fold.fold, n_classes)

            def without_labels(kind: str, size: int) -> _Watch:
                watch = UNLABELLED[kind](judged, calibration.labels, first[:size, :n_classes])
                return lambda _, outputs: watch(outputs[:size, :n_classes])

            watches |= {
                f"{kind}, {size} unlabelled": without_labels(kind, size) for kind in UNLABELLED for size in sizes
            }
        for rate in curves.GRID:
            network.remove(order[n_pruned : (n_pruned := filters_at(rate, network.n_filters))])
            logits = predict(network.model, calibration.images)
            outputs = predict(network.model, others) if len(others) else None
            for monitored, watch in watches.items():
                value = harmonic_mean(watch(logits, outputs))
                rows.append({"seed": seed, "rate_requested": rate, "monitored": monitored, "value": value})
        return rows

    def _unlabelled(self, seed: int, size: int) -> torch.Tensor:
        """Return so many images without labels, at most, in an order of their own; none where there are none."""
        if size == 0 or not (self.splits.query("seed == @seed")["split"] == "unlabelled").any():
            return torch.empty(0)
        images = self.samples(seed, "unlabelled").images
        return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:size]]

    def run(self, name: str, seed: int, settings: Settings = Settings()) -> Run:
        """Prune with a method on the calibration images of a seed, then measure the curve on its test images, once.

        A finished run is kept and read back when it is asked for again with the same settings, input files, code and
        torch: that is how an interrupted stage goes on, and how a longer profile starts from what the default has done.

        Args:
            name: of the method (:data:`lrp_core.control.methods.METHODS`).
            seed: the split and its heads.
            settings: of the controller.
        """
        how = method(name)
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True)
        path = self.runs / f"{self.backbone_name}-{name}-seed{seed}-{self._key(how, seed, settings)}.json"
        if path.is_file():
            kept = json.loads(path.read_text())
            orders = {truncation: np.array(order, dtype=int) for truncation, order in kept["orders"].items()}
            return Run(orders, pd.DataFrame(kept["trace"]), pd.DataFrame(kept["curve"]), kept["seconds"])
        n_filters = couple(self.classifier(seed), self.samples(seed, "calibration").images[:1]).n_groups
        samples = [self.samples(seed, split) for split in ("calibration", "test")]
        judge = curves.Judge(n_filters, self.out_of_fold_heads(seed).fold, *samples, self.class_names)
        prune = self._descend if how.actions else self._prune
        orders, trace, networks, seconds = prune(how, seed, settings, judge)
        curve = curves.on_grid(pd.DataFrame(networks), choosing=how.early_exit or bool(how.actions))
        layers = [name for name in curve if name.startswith("kept_")]
        curve[layers] = curve[layers].fillna(0).astype(int)  # behind the end
        labels = {"dataset": self.dataset_name, "backbone": self.backbone_name, "method": name, "seed": seed}
        run = Run(orders, _labelled(labels, pd.DataFrame(trace)), _labelled(labels, curve), seconds)
        with atomic(path) as temporary:
            parts = {"trace": run.trace.to_dict("list"), "curve": run.curve.to_dict("list")}
            orders = {truncation: order.tolist() for truncation, order in run.orders.items()}
            temporary.write_text(json.dumps({"seconds": run.seconds, "orders": orders, **parts}))
        return run

    def _prune(self, how: Method, seed: int, settings: Settings, judge: curves.Judge) -> _Found:
        """Prune the whole network, or with a cut several backbones that end earlier, step by step."""
        calibration, began, starts = judge.calibration, time.perf_counter(), [""]
        if how.early_exit:
            exits = early_exit.exits(self.backbone, calibration.images, calibration.labels, judge.fold)
            starts = [exit_.name for exit_ in early_exit.halving(exits)]
        steps: dict[str, list[Step]] = {}
        for truncation in starts if how.criterion is not None else ():
            task = methods.task(*self.start(seed, truncation), calibration.images, calibration.labels, how, seed)
            until = min(curves.LAST, greatest_rate(task.network.layer_of))
            steps[truncation] = list(methods.steps(task, how, settings, until))
        seconds = time.perf_counter() - began
        networks = list(judge.measure_exits(self.backbone, exits)) if how.early_exit else []
        orders = {truncation: np.concatenate([step.removed for step in taken]) for truncation, taken in steps.items()}
        for truncation, order in orders.items():
            smaller = judge.measure_grid(self.network(seed, how, truncation, out_of_fold=True), order)
            networks += [row | {"truncation": truncation} for row in smaller]
        trace = [{"truncation": truncation} | self._step(step) for truncation, taken in steps.items() for step in taken]
        return orders, trace, networks, seconds

    def _descend(self, how: Method, seed: int, _: Settings, judge: curves.Judge) -> _Found:
        """Go down the ladder of the budgets that tables know (:mod:`lrp_core.control.budget_search`)."""
        began, budget_search = time.perf_counter(), self.budget_search(seed, how)
        steps = list(budget_search.descend(curves.BUDGETS))
        seconds = time.perf_counter() - began
        networks = [judge.measure(budget_search.network("", out_of_fold=True)) | {"truncation": ""}]
        for step in steps:
            if step.action != "none":
                network = budget_search.network(step.truncation, out_of_fold=True).smaller(step.removed)
                networks.append(judge.measure(network) | {"truncation": step.truncation})
        trace = [asdict(step) | {"removed": len(step.removed)} for step in steps]
        for row, step in zip(trace, steps, strict=True):
            del row["candidates"]
            row |= {f"candidate_{action}": step.candidates.get(action) for action in ("start", *ACTIONS)}
        return {step.truncation: step.removed for step in steps}, trace, networks, seconds

    def _step(self, step: Step) -> dict:
        row = asdict(step) | {"removed": len(step.removed)}
        accuracies = zip(self.class_names, row.pop("accuracies").tolist(), strict=True)
        return row | {f"accuracy_{name}": value for name, value in accuracies}

    def run_all(
        self, names: Iterable[str], seeds: Iterable[int], settings: Settings = Settings()
    ) -> dict[tuple[str, int], Run]:
        """Run every method on every seed, ``jobs`` at a time, each in a process of its own.

        Where the environment names a Dask scheduler (DASK_SCHEDULER_ADDRESS), the workers of that cluster run them
        instead; they have to see this repository under the same path.

        Returns:
            By method and seed, what :meth:`run` returns.
        """
        todo = [(name, seed) for name in names for seed in seeds]
        for name, _ in todo:
            method(name)  # an unknown one is named before hours are spent on the others
        self.backbone.eval()  # loaded once, here, not in every process
        run = delayed(Experiment.run)
        with side_by_side(self.jobs) as parallel:
            runs = parallel(run(self._at(n), name, seed, settings) for n, (name, seed) in enumerate(todo))
            progress = tqdm(runs, f"pruning {self.backbone_name}", total=len(todo), unit="run")
            return dict(zip(todo, progress, strict=True))

    def write_runs(
        self, stage: str, runs: dict[tuple[str, int], Run], results: Path
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Write what a stage's runs gave: tables for people, orders and seconds for the stages after it.

        Args:
            stage: "baseline" or "dynamic".
            runs: of :meth:`run_all`.
            results: folder of the tables.

        Returns:
            The curves and the traces of all runs.
        """
        curves = pd.concat([run.curve for run in runs.values()], ignore_index=True)
        trace = pd.concat([run.trace for run in runs.values()], ignore_index=True)
        write_csv(results / f"curves_{stage}.csv", curves)
        write_csv(results / f"trace_{stage}.csv", trace)
        orders = {
            f"{name}/{seed}/{truncation}": torch.from_numpy(order)
            for (name, seed), run in runs.items()
            for truncation, order in run.orders.items()
        }
        write_tensors(self.folder / f"orders_{stage}.safetensors", orders)
        choice = [
            "method",
            "seed",
            "rate",
            "crossfitted",
            "squared_error",
            "parameters",
            "multiply_adds",
            "truncation",
            "removed",
        ]
        write_csv(self.folder / f"networks_{stage}.csv", curves[choice])
        seconds = [{"method": name, "seed": seed, "seconds": run.seconds} for (name, seed), run in runs.items()]
        write_csv(self.folder / f"seconds_{stage}.csv", pd.DataFrame(seconds))
        return curves, trace

    def _at(self, n: int) -> "Experiment":
        """Return this experiment for the n-th of several runs at a time: on a GPU of its own, where there are some."""
        if (device := nth_device(self.device, n)) == self.device:
            return self
        other = copy.copy(self)
        other.__dict__.pop("backbone", None)  # is on the first GPU
        other.device = device
        return other

    def _key(self, how: Method, seed: int, settings: Settings) -> str:
        backbone = [self.backbone_name, self.weights, self.dataset_name, self.class_names]
        what = [asdict(how), seed, asdict(settings), backbone, torch.__version__, self.threads, self.device.type]
        digest = hashlib.sha256(json.dumps(what).encode())
        samples, out_of_fold = (
            [self.samples(seed, split) for split in ("calibration", "test")],
            self.out_of_fold_heads(seed),
        )
        for tensor in (
            out_of_fold.weight,
            out_of_fold.fold,
            *(part for one in samples for part in (one.images, one.labels)),
        ):
            digest.update(tensor.contiguous().numpy().tobytes())
        for path in own_files(self.backbone_name, self.weights):
            digest.update(path.read_bytes())
        digest.update(meaning(CODE).encode())
        return digest.hexdigest()[:16]


def _labelled(labels: dict, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**labels)[[*labels, *frame.columns]]
