"""The files between the stages: prepared images, splits, heads, and the runs that are finished.

A workspace is a folder under data/ that holds what the stages hand to one another. It is not in git.
"""

import contextlib
import copy
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from lrp_core import curves
from lrp_core.backbones import load_backbone, normalise, own_files
from lrp_core.controller import Settings, Step
from lrp_core.criteria import criterion
from lrp_core.data import Dataset
from lrp_core.devices import choose_device, nth_device
from lrp_core.errors import check_choice
from lrp_core.evaluation import harmonic_mean, predict
from lrp_core.heads import Heads, classifier
from lrp_core.methods import Method, method, prune
from lrp_core.paths import ROOT, atomic
from lrp_core.pruning import PrunedNetwork, filters_at
from lrp_core.reconstruction import Reconstruction
from lrp_core.tasks import SIGNALS, ScarceTask, signal_accuracies

# What a run's result depends on, beside its parameters and its input files.
_CODE = (
    "backbones",
    "controller",
    "criteria",
    "curves",
    "devices",
    "evaluation",
    "graph",
    "heads",
    "lrp",
    "methods",
    "pruning",
    "reconstruction",
    "rules",
    "tasks",
)


def write_dataset(workspace: Path, dataset: Dataset, splits: pd.DataFrame, name: str) -> None:
    """Write images.safetensors and splits.csv (the rows of all seeds) into a workspace."""
    tensors = {"images": dataset.images, "labels": dataset.labels, "positions": dataset.positions}
    # One entry of metadata: safetensors writes several in a random order, and the file's bytes would differ.
    description = json.dumps({"name": name, "classes": dataset.class_names})
    write_tensors(workspace / "images.safetensors", tensors, {"dataset": description})
    write_csv(workspace / "splits.csv", splits)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    with atomic(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file, whole or not at all; floats with 10 significant digits."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text)


@dataclass(frozen=True)
class Samples:
    """Normalised images (N, 3, H, W), their classes (N,), blocks (N,) and places in the data set (N,)."""

    images: torch.Tensor
    labels: torch.Tensor
    blocks: np.ndarray
    index: np.ndarray


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


class Experiment:
    """A prepared workspace with a frozen trunk, computing alike on every run."""

    def __init__(
        self, workspace: str, backbone: str, weights: str, threads: int = 1, jobs: int = 1, device: str = "auto"
    ):
        """Open a workspace for a trunk.

        Args:
            workspace: folder with the images and splits, a path from the repository root.
            backbone: name of the trunk; its heads are in a folder of that name.
            weights: of the trunk.
            threads: of torch, in each process; pinned, since results depend on them.
            jobs: runs at a time in :meth:`run_all`; results do not depend on it.
            device: see :func:`lrp_core.devices.choose_device`.
        """
        self.device = choose_device(device)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        self.workspace = ROOT / workspace
        self.folder = self.workspace / backbone
        self.runs = ROOT / "data" / "runs"  # finished ones, of all workspaces: their names tell what they depend on
        self.backbone_name, self.weights, self.threads, self.jobs = backbone, weights, threads, jobs
        self._images = read_tensors(self.workspace / "images.safetensors")
        with safe_open(self.workspace / "images.safetensors", "pt") as file:
            description = json.loads(file.metadata()["dataset"])
        self.dataset_name, self.class_names = description["name"], tuple(description["classes"])
        self.splits = pd.read_csv(self.workspace / "splits.csv")

    @cached_property
    def backbone(self) -> nn.Module:
        """The frozen trunk, channels last (about 1.5 times as fast on a CPU)."""
        backbone = load_backbone(self.backbone_name, self.weights)
        return backbone.to(self.device, memory_format=torch.channels_last)

    def samples(self, seed: int, split: str) -> Samples:
        """Return the "scarce" or the "test" images of a seed.

        Raises:
            ValueError: the workspace has no such seed.
        """
        rows = self.splits.query("seed == @seed and split == @split")
        if rows.empty:
            known = sorted(self.splits["seed"].unique().tolist())
            raise ValueError(f"no {split} images for seed {seed} in {self.workspace}; it has the seeds {known}")
        index = rows["index"].to_numpy(copy=True)
        images = normalise(self._images["images"][index], self.backbone_name, self.weights)
        labels = torch.from_numpy(rows["label"].to_numpy(copy=True))
        return Samples(images.to(memory_format=torch.channels_last), labels, rows["block"].to_numpy(), index)

    def pixels(self, index: np.ndarray) -> np.ndarray:
        """Return images as they were prepared, (N, H, W, 3), uint8."""
        return self._images["images"][index].permute(0, 2, 3, 1).numpy()

    def write_heads(self, heads: dict[int, Heads]) -> None:
        """Keep the heads of all seeds in heads.safetensors."""
        tensors = {}
        for seed, head in heads.items():
            tensors |= {f"{seed}/weight": head.weight, f"{seed}/fold": head.fold}
        write_tensors(self.folder / "heads.safetensors", tensors)

    def head(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a seed's head weights (1 + k, n_classes, C), the full head first, and folds (N,)."""
        heads = read_tensors(self.folder / "heads.safetensors")
        return heads[f"{seed}/weight"], heads[f"{seed}/fold"]

    def network(self, seed: int, reconstruct: bool = False, all_heads: bool = False) -> PrunedNetwork:
        """Return the unpruned classifier of a seed, with its one full head or with all heads side by side."""
        weight, _ = self.head(seed)
        model = classifier(self.backbone, weight if all_heads else weight[:1])
        images = self.samples(seed, "scarce").images
        return PrunedNetwork(model, images[:1], Reconstruction(model, images) if reconstruct else None)

    def pruned(self, name: str, seed: int, rate: float) -> PrunedNetwork:
        """Return the classifier of a seed, pruned by a method up to a rate, as the finished stages have it.

        Raises:
            FileNotFoundError: the stages have not been run.
            ValueError: they have not run this method with this seed.
        """
        orders = {}
        for stage in ("baseline", "dynamic"):
            orders |= read_tensors(self.folder / f"orders_{stage}.safetensors")
        order = orders[check_choice("run", f"{name}/{seed}", orders)]
        return curves.prune_to(self.network(seed, method(name).reconstruct), order.numpy(), rate)

    def signals(self, name: str, seeds: Iterable[int]) -> pd.DataFrame:
        """Return what every signal says of the networks that a finished method has gone through.

        Returns:
            One row a seed, rate of the grid and signal: seed, rate_requested, signal, value (the harmonic mean of the
            class accuracies on the scarce images, as the signal has them).
        """
        with _parallel(self.jobs) as parallel:
            parts = parallel(delayed(Experiment._signals)(self._at(n), name, seed) for n, seed in enumerate(seeds))
            return pd.DataFrame([row for rows in parts for row in rows])

    def _signals(self, name: str, seed: int) -> list[dict]:
        torch.set_num_threads(self.threads)
        order = read_tensors(self.folder / "orders_baseline.safetensors")[f"{name}/{seed}"].numpy()
        scarce, (_, fold) = self.samples(seed, "scarce"), self.head(seed)
        network, gone, rows = self.network(seed, all_heads=True), 0, []
        for rate in curves.GRID:
            network.remove(order[gone : (gone := filters_at(rate, network.n_filters))])
            logits = predict(network.model, scarce.images)
            for signal in SIGNALS:
                accuracies = signal_accuracies(logits, scarce.labels, fold, len(self.class_names), signal)
                row = {"seed": seed, "rate_requested": rate, "signal": signal, "value": harmonic_mean(accuracies)}
                rows.append(row)
        return rows

    def task(self, seed: int, method: Method) -> ScarceTask:
        """Return the unpruned network of a seed at work on the scarce images."""
        scarce = self.samples(seed, "scarce")
        network = self.network(seed, method.reconstruct, all_heads=True)
        score = criterion(method.criterion, len(self.class_names), seed)
        return ScarceTask(network, scarce.images, scarce.labels, self.head(seed)[1], score, method.signal)

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
        steps = list(prune(self.task(seed, how), how, settings))
        seconds = time.perf_counter() - start
        order = np.concatenate([step.removed for step in steps])
        test = self.samples(seed, "test")
        curve = curves.test_curve(
            self.network(seed, how.reconstruct), order, test.images, test.labels, self.class_names
        )
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
        with _parallel(self.jobs) as parallel:
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
            self.workspace / "images.safetensors",
            self.workspace / "splits.csv",
            self.folder / "heads.safetensors",
            *own_files(self.backbone_name, self.weights),
        ]
        for path in [*inputs, *(Path(__file__).with_name(f"{module}.py") for module in _CODE)]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: it is not there; the message says what makes it.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run the stages before this one (make repro, or the notebooks in order)"
        )
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run the stages again") from error


@contextlib.contextmanager
def _parallel(jobs: int) -> Iterator[Parallel]:
    """Yield what runs things side by side: processes on this machine, or a Dask cluster that the environment names."""
    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ImportError("DASK_SCHEDULER_ADDRESS is set: pip install --editable '.[cluster]'") from error
        with Client(address, set_as_default=True), parallel_config("dask"):
            yield Parallel(return_as="generator")
    else:
        with warnings.catch_warnings():
            # A process that holds much memory after a run is replaced by a fresh one, which is as it should be.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
            yield Parallel(jobs, return_as="generator")


def _labelled(labels: dict, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**labels)[[*labels, *frame.columns]]
