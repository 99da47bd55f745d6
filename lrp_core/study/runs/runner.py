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
from lrp_core.control.budget_search import LEVERS, Levers
from lrp_core.control.controller import Settings, Step, greatest_rate
from lrp_core.control.methods import Method, method
from lrp_core.control.monitored import SIGNALS, signal_accuracies
from lrp_core.control.unlabelled import UNLABELLED
from lrp_core.graph.truncation import features_by_depth, shortened
from lrp_core.importance.registry import criterion
from lrp_core.metrics.accuracy import filters_at, harmonic_mean, predict
from lrp_core.pruning.dependency import couple
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.ridge_head import CrossFit, classifier, crossfitted_logits, fit_heads, with_copies
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

STAGES = "baseline", "dynamic", "levers"  # of pruning


@dataclass(frozen=True)
class Run:
    """One method on one seed.

    Attributes:
        orders: filter numbers, first to go first, by the name of the layer behind which the trunk was cut before; ""
            for the whole trunk.
        trace: one row a step of the method.
        curve: one row a network that was measured (:func:`lrp_core.study.runs.measuring.on_grid`).
        seconds: that finding the order took.
    """

    orders: dict[str, np.ndarray]
    trace: pd.DataFrame
    curve: pd.DataFrame
    seconds: float


# From what a network gives for the scarce images, and for others, to class accuracies.
_Watch = Callable[[torch.Tensor, torch.Tensor | None], np.ndarray]
# What finding networks gave: orders and trace as of a run, what was measured of each network, seconds.
_Found = tuple[dict[str, np.ndarray], list[dict], list[dict], float]


class Experiment(Workspace):
    """A prepared workspace on which methods are run."""

    def __init__(
        self, workspace: str, backbone: str, weights: str, threads: int = 1, jobs: int = 1, device: str = "auto"
    ):
        """Open a workspace for a trunk; ``jobs`` runs go at a time, which changes no result. The rest is its own."""
        super().__init__(workspace, backbone, weights, threads, device)
        self.runs = ROOT / "data" / "runs"  # finished ones, of all workspaces: their names tell what they depend on
        self.jobs = jobs

    def start(self, seed: int, end: str = "") -> tuple[nn.Module, CrossFit]:
        """Return the unpruned classifier of a seed and the copies of its head; with ``end``, of what a cut leaves.

        For cuts see :func:`lrp_core.graph.truncation.shortened`.
        """
        if not end:
            return self.classifier(seed), self.copies(seed)
        scarce, part = self.samples(seed, "scarce"), shortened(self.backbone, end)
        *_, features = features_by_depth(part, scarce.images).values()
        heads = fit_heads(features, scarce.labels, self.copies(seed).fold)
        return classifier(part, heads.weight), heads.copies

    def levers(self, seed: int, how: Method) -> Levers:
        """Return the trunk under the controller with the levers of a method."""
        scarce, score = self.samples(seed, "scarce"), criterion(how.criterion, len(self.class_names), seed)
        return Levers(
            self.backbone, scarce.images, scarce.labels, self.copies(seed).fold, score, how.levers, how.blocks
        )

    def network(self, seed: int, how: Method = Method(), end: str = "", copies: bool = False) -> PrunedNetwork:
        """Return a seed's unpruned classifier, or what a cut leaves of it, ready to be pruned as a method does.

        With ``copies``, those of its head stand beside it.
        """
        if how.levers:
            return self.levers(seed, how).network(end, copies)
        scarce, (model, crossfit) = self.samples(seed, "scarce"), self.start(seed, end)
        model = with_copies(model, crossfit.weight) if copies else model
        return methods.unpruned(model, scarce.images, scarce.labels, crossfit.fold, how)

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
        networks = pd.concat([pd.read_csv(file, dtype={"cut": str}) for file in files], ignore_index=True)
        networks["cut"] = networks["cut"].fillna("")
        runs = networks["method"] + "/" + networks["seed"].astype(str)
        return networks[runs == check_choice("run", f"{name}/{seed}", runs.unique())]

    def rebuilt(
        self, name: str, seed: int, networks: Iterable[tuple[str, int]], mend: bool = True
    ) -> Iterator[PrunedNetwork]:
        """Yield networks of a finished run again.

        Args:
            name: of the method.
            seed: of the run.
            networks: of each, the layer behind which the trunk was cut (or ""), and how many filters went then.
            mend: as the method does; without, networks are as large and as fast, and sooner made.
        """
        orders = {}
        for stage in STAGES:
            orders |= read_tensors(self.folder / f"orders_{stage}.safetensors")
        how, unpruned = method(name), {}
        how = how if mend else replace(how, reconstruct=False, refit=False, levers=())
        for end, size in networks:
            if end not in unpruned:
                unpruned[end] = self.network(seed, how, end)
            yield unpruned[end].smaller(
                orders[f"{name}/{seed}/{end}"].numpy()[:size] if size else np.array([], dtype=int)
            )

    def within(self, name: str, seed: int, budgets: Iterable[float]) -> Iterator[tuple[float, PrunedNetwork]]:
        """Yield the budgets for which a finished run has a network, each with the best that the scarce images know.

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
                chosen[budget] = (row["cut"], int(row["removed"]))
        yield from zip(chosen, self.rebuilt(name, seed, chosen.values()), strict=True)

    def signals(self, name: str, seeds: Iterable[int], unlabelled: Iterable[int] = ()) -> pd.DataFrame:
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
            tasks = (delayed(Experiment._signals)(self._at(n), name, seed, sizes) for n, seed in enumerate(seeds))
            parts = tqdm(parallel(tasks), f"signals of {self.backbone_name}", total=len(seeds), unit="seed")
            return pd.DataFrame([row for rows in parts for row in rows])

    def _signals(self, name: str, seed: int, sizes: list[int]) -> list[dict]:
        torch.set_num_threads(self.threads)
        order = read_tensors(self.folder / "orders_baseline.safetensors")[f"{name}/{seed}/"].numpy()
        scarce, copies, n_classes = self.samples(seed, "scarce"), self.copies(seed), len(self.class_names)
        network, gone, rows = PrunedNetwork(with_copies(self.classifier(seed), copies.weight), scarce.images[:1]), 0, []
        others = self._unlabelled(seed, max(sizes, default=0))

        def labelled(signal: str) -> _Watch:
            return lambda logits, _: signal_accuracies(logits, scarce.labels, copies.fold, n_classes, signal)

        watches = {signal: labelled(signal) for signal in SIGNALS}
        if len(others):
            logits, first = (predict(network.model, images) for images in (scarce.images, others))
            judged = crossfitted_logits(logits[:, n_classes:], copies.fold, n_classes)

            def without_labels(kind: str, size: int) -> _Watch:
                watch = UNLABELLED[kind](judged, scarce.labels, first[:size, :n_classes])
                return lambda _, outputs: watch(outputs[:size, :n_classes])

            watches |= {
                f"{kind}, {size} unlabelled": without_labels(kind, size) for kind in UNLABELLED for size in sizes
            }
        for rate in curves.GRID:
            network.remove(order[gone : (gone := filters_at(rate, network.n_filters))])
            logits = predict(network.model, scarce.images)
            outputs = predict(network.model, others) if len(others) else None
            for signal, watch in watches.items():
                value = harmonic_mean(watch(logits, outputs))
                rows.append({"seed": seed, "rate_requested": rate, "signal": signal, "value": value})
        return rows

    def _unlabelled(self, seed: int, size: int) -> torch.Tensor:
        """Return so many images without labels, at most, in an order of their own; none where there are none."""
        if size == 0 or not (self.splits.query("seed == @seed")["split"] == "unlabelled").any():
            return torch.empty(0)
        images = self.samples(seed, "unlabelled").images
        return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:size]]

    def run(self, name: str, seed: int, settings: Settings = Settings()) -> Run:
        """Prune with a method on the scarce images of a seed, then measure the curve on its test images, once.

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
            orders = {end: np.array(order, dtype=int) for end, order in kept["orders"].items()}
            return Run(orders, pd.DataFrame(kept["trace"]), pd.DataFrame(kept["curve"]), kept["seconds"])
        n_filters = couple(self.classifier(seed), self.samples(seed, "scarce").images[:1]).n_groups
        samples = [self.samples(seed, split) for split in ("scarce", "test")]
        judge = curves.Judge(n_filters, self.copies(seed).fold, *samples, self.class_names)
        prune = self._descend if how.levers else self._prune
        orders, trace, networks, seconds = prune(how, seed, settings, judge)
        curve = curves.on_grid(pd.DataFrame(networks), choosing=how.cut or bool(how.levers))
        layers = [name for name in curve if name.startswith("kept_")]
        curve[layers] = curve[layers].fillna(0).astype(int)  # behind the end
        labels = {"dataset": self.dataset_name, "backbone": self.backbone_name, "method": name, "seed": seed}
        run = Run(orders, _labelled(labels, pd.DataFrame(trace)), _labelled(labels, curve), seconds)
        with atomic(path) as temporary:
            parts = {"trace": run.trace.to_dict("list"), "curve": run.curve.to_dict("list")}
            orders = {end: order.tolist() for end, order in run.orders.items()}
            temporary.write_text(json.dumps({"seconds": run.seconds, "orders": orders, **parts}))
        return run

    def _prune(self, how: Method, seed: int, settings: Settings, judge: curves.Judge) -> _Found:
        """Prune the whole network, or with a cut several trunks that end earlier, step by step."""
        scarce, began, starts = judge.scarce, time.perf_counter(), [""]
        if how.cut:
            ends = early_exit.ends(self.backbone, scarce.images, scarce.labels, judge.fold)
            starts = [end.name for end in early_exit.halving(ends)]
        steps: dict[str, list[Step]] = {}
        for end in starts if how.criterion is not None else ():
            task = methods.task(*self.start(seed, end), scarce.images, scarce.labels, how, seed)
            until = min(curves.LAST, greatest_rate(task.network.layer_of))
            steps[end] = list(methods.steps(task, how, settings, until))
        seconds = time.perf_counter() - began
        networks = list(judge.measure_ends(self.backbone, ends)) if how.cut else []
        orders = {end: np.concatenate([step.removed for step in taken]) for end, taken in steps.items()}
        for end, order in orders.items():
            smaller = judge.measure_grid(self.network(seed, how, end, copies=True), order)
            networks += [row | {"cut": end} for row in smaller]
        trace = [{"cut": end} | self._step(step) for end, taken in steps.items() for step in taken]
        return orders, trace, networks, seconds

    def _descend(self, how: Method, seed: int, _: Settings, judge: curves.Judge) -> _Found:
        """Go down the ladder of the budgets that tables know (:mod:`lrp_core.control.budget_search`)."""
        began, levers = time.perf_counter(), self.levers(seed, how)
        rungs = list(levers.descend(curves.BUDGETS))
        seconds = time.perf_counter() - began
        networks = [judge.measure(levers.network("", copies=True)) | {"cut": ""}]
        for rung in rungs:
            if rung.lever != "none":
                network = levers.network(rung.cut, copies=True).smaller(rung.removed)
                networks.append(judge.measure(network) | {"cut": rung.cut})
        trace = [asdict(rung) | {"removed": len(rung.removed)} for rung in rungs]
        for row, rung in zip(trace, rungs, strict=True):
            del row["offers"]
            row |= {f"offer_{lever}": rung.offers.get(lever) for lever in ("start", *LEVERS)}
        return {rung.cut: rung.removed for rung in rungs}, trace, networks, seconds

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
            f"{name}/{seed}/{end}": torch.from_numpy(order)
            for (name, seed), run in runs.items()
            for end, order in run.orders.items()
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
            "cut",
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
        trunk = [self.backbone_name, self.weights, self.dataset_name, self.class_names]
        what = [asdict(how), seed, asdict(settings), trunk, torch.__version__, self.threads, self.device.type]
        digest = hashlib.sha256(json.dumps(what).encode())
        samples, copies = [self.samples(seed, split) for split in ("scarce", "test")], self.copies(seed)
        for tensor in (copies.weight, copies.fold, *(part for one in samples for part in (one.images, one.labels))):
            digest.update(tensor.contiguous().numpy().tobytes())
        for path in own_files(self.backbone_name, self.weights):
            digest.update(path.read_bytes())
        digest.update(meaning(CODE).encode())
        return digest.hexdigest()[:16]


def _labelled(labels: dict, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**labels)[[*labels, *frame.columns]]
