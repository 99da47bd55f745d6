"""Runs of methods on a prepared workspace. A finished run is kept, and read back when it is asked for again."""

import ast
import copy
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from tqdm import tqdm

from lrp_core import methods
from lrp_core.controller import Settings, Step
from lrp_core.devices import nth_device
from lrp_core.errors import check_choice
from lrp_core.evaluation import filters_at, harmonic_mean, predict
from lrp_core.files import atomic
from lrp_core.heads import with_copies
from lrp_core.methods import Method, method
from lrp_core.network import PrunedNetwork
from lrp_core.signals import SIGNALS, signal_accuracies
from lrp_core.study import curves
from lrp_core.study.backbones import own_files
from lrp_core.study.files import read_tensors, write_csv, write_tensors
from lrp_core.study.paths import ROOT
from lrp_core.study.processes import side_by_side
from lrp_core.study.workspace import Workspace
from lrp_core.tasks import ScarceTask

# What a run's result depends on, beside its parameters and its input files.
CODE = (
    "lrp_core.controller",
    "lrp_core.coupling",
    "lrp_core.criteria",
    "lrp_core.devices",
    "lrp_core.evaluation",
    "lrp_core.graph",
    "lrp_core.heads",
    "lrp_core.lrp",
    "lrp_core.methods",
    "lrp_core.network",
    "lrp_core.pruning",
    "lrp_core.reconstruction",
    "lrp_core.rules",
    "lrp_core.signals",
    "lrp_core.study.backbones",
    "lrp_core.study.curves",
    "lrp_core.tasks",
)


def meaning(path: Path) -> str:
    """Return what a Python file computes, as text: without comments, layout and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@dataclass(frozen=True)
class Run:
    """One method on one seed.

    Attributes:
        order: filter numbers, first to go first.
        trace: one row a step of the method.
        curve: one row a rate of the grid, measured on the test images.
        seconds: that finding the order took.
    """

    order: np.ndarray
    trace: pd.DataFrame
    curve: pd.DataFrame
    seconds: float


class Experiment(Workspace):
    """A prepared workspace on which methods are run."""

    def __init__(
        self, workspace: str, backbone: str, weights: str, threads: int = 1, jobs: int = 1, device: str = "auto"
    ):
        """Open a workspace for a trunk; ``jobs`` runs go at a time, which changes no result. The rest is its own."""
        super().__init__(workspace, backbone, weights, threads, device)
        self.runs = ROOT / "data" / "runs"  # finished ones, of all workspaces: their names tell what they depend on
        self.jobs = jobs

    def network(self, seed: int, how: Method = Method()) -> PrunedNetwork:
        """Return the unpruned classifier of a seed, ready to be pruned as a method does it."""
        return methods.unpruned(self.classifier(seed), self.samples(seed, "scarce").images, how)

    def pruned(self, name: str, seed: int, rates: Iterable[float], reconstruct: bool = True) -> Iterator[PrunedNetwork]:
        """Yield the classifier of a seed, pruned by a method up to each of the rates, as the finished stages have it.

        Args:
            name: of the method.
            seed: of the run.
            rates: pruning rates.
            reconstruct: if the method does; without, networks are as large and as fast, and sooner made.

        Raises:
            FileNotFoundError: the stages have not been run.
            ValueError: they have not run this method with this seed.
        """
        orders = {}
        for stage in ("baseline", "dynamic"):
            orders |= read_tensors(self.folder / f"orders_{stage}.safetensors")
        order = orders[check_choice("run", f"{name}/{seed}", orders)].numpy()
        how = method(name)
        unpruned = self.network(seed, replace(how, reconstruct=how.reconstruct and reconstruct))
        for rate in rates:
            network = copy.copy(unpruned)
            network.active = unpruned.active.copy()
            yield curves.prune_to(network, order, rate)

    def signals(self, name: str, seeds: Iterable[int]) -> pd.DataFrame:
        """Return what every signal says of the networks that a finished method has gone through.

        Returns:
            One row a seed, rate of the grid and signal: seed, rate_requested, signal, value (the harmonic mean of the
            class accuracies on the scarce images, as the signal has them).
        """
        with side_by_side(self.jobs) as parallel:
            parts = parallel(delayed(Experiment._signals)(self._at(n), name, seed) for n, seed in enumerate(seeds))
            return pd.DataFrame([row for rows in parts for row in rows])

    def _signals(self, name: str, seed: int) -> list[dict]:
        torch.set_num_threads(self.threads)
        order = read_tensors(self.folder / "orders_baseline.safetensors")[f"{name}/{seed}"].numpy()
        scarce, copies = self.samples(seed, "scarce"), self.copies(seed)
        network, gone, rows = PrunedNetwork(with_copies(self.classifier(seed), copies.weight), scarce.images[:1]), 0, []
        for rate in curves.GRID:
            network.remove(order[gone : (gone := filters_at(rate, network.n_filters))])
            logits = predict(network.model, scarce.images)
            for signal in SIGNALS:
                accuracies = signal_accuracies(logits, scarce.labels, copies.fold, len(self.class_names), signal)
                row = {"seed": seed, "rate_requested": rate, "signal": signal, "value": harmonic_mean(accuracies)}
                rows.append(row)
        return rows

    def task(self, seed: int, how: Method) -> ScarceTask:
        """Return the unpruned network of a seed at work on the scarce images."""
        scarce = self.samples(seed, "scarce")
        return methods.task(self.classifier(seed), scarce.images, scarce.labels, self.copies(seed), how, seed)

    def run(self, name: str, seed: int, settings: Settings = Settings()) -> Run:
        """Prune with a method on the scarce images of a seed, then measure the curve on its test images, once.

        A finished run is kept and read back when it is asked for again with the same settings, input files, code and
        torch: that is how an interrupted stage goes on, and how a longer profile starts from what the default has done.

        Args:
            name: of the method (:data:`lrp_core.methods.METHODS`).
            seed: the split and its heads.
            settings: of the controller.
        """
        how = method(name)
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True)
        path = self.runs / f"{self.backbone_name}-{name}-seed{seed}-{self._key(how, seed, settings)}.json"
        if path.is_file():
            kept = json.loads(path.read_text())
            return Run(
                np.array(kept["order"]), pd.DataFrame(kept["trace"]), pd.DataFrame(kept["curve"]), kept["seconds"]
            )
        start = time.perf_counter()
        steps = list(methods.steps(self.task(seed, how), how, settings))
        seconds = time.perf_counter() - start
        order = np.concatenate([step.removed for step in steps])
        test = self.samples(seed, "test")
        curve = curves.test_curve(self.network(seed, how), order, test.images, test.labels, self.class_names)
        labels = {"dataset": self.dataset_name, "backbone": self.backbone_name, "method": name, "seed": seed}
        run = Run(order, _labelled(labels, self._trace(steps)), _labelled(labels, curve), seconds)
        with atomic(path) as temporary:
            parts = {"trace": run.trace.to_dict("list"), "curve": run.curve.to_dict("list")}
            temporary.write_text(json.dumps({"seconds": seconds, "order": order.tolist(), **parts}))
        return run

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
        orders = {f"{name}/{seed}": torch.from_numpy(run.order) for (name, seed), run in runs.items()}
        write_tensors(self.folder / f"orders_{stage}.safetensors", orders)
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

    def _trace(self, steps: list[Step]) -> pd.DataFrame:
        rows = []
        for step in steps:
            row = asdict(step) | {"removed": len(step.removed)}
            accuracies = zip(self.class_names, row.pop("accuracies").tolist(), strict=True)
            rows.append(row | {f"accuracy_{name}": value for name, value in accuracies})
        return pd.DataFrame(rows)

    def _key(self, how: Method, seed: int, settings: Settings) -> str:
        trunk = [self.backbone_name, self.weights]
        what = [asdict(how), seed, asdict(settings), trunk, torch.__version__, self.threads, self.device.type]
        digest = hashlib.sha256(json.dumps(what).encode())
        inputs = [
            self.path / "images.safetensors",
            self.path / "splits.csv",
            self.folder / "heads.safetensors",
            *own_files(self.backbone_name, self.weights),
        ]
        for path in inputs:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        for module in CODE:
            digest.update(meaning(ROOT / f"{module.replace('.', '/')}.py").encode())
        return digest.hexdigest()[:16]


def _labelled(labels: dict, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**labels)[[*labels, *frame.columns]]
