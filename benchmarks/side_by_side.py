"""Benchmarks on draws: the options of their command, one file per part that is measured, and the rows of all parts."""

import argparse
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
from joblib import Parallel, delayed

from lrp_core.study.data.files import write_csv
from lrp_core.study.paths import ROOT
from lrp_core.utils.devices import choose_device
from tasks import Setup

Part = tuple[str | int, ...]  # task, network, seed, and what else tells parts from each other


def side_by_side(
    name: str, description: str, parts: Callable[[list[int]], Iterable[Part]], rows: Callable[..., Iterable[dict]]
) -> None:
    """Measure in several processes, and write the rows of all that has been measured to results/benchmarks/NAME.csv.

    Parts that have a file in data/NAME are not measured again.

    Args:
        name: of the benchmark.
        description: of its command.
        parts: from the seeds to what is measured, in this order.
        rows: from a part's entries and the setup to its rows.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for folder in ("cifar10", "trashnet", "weights"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    arguments = parser.parse_args()
    device, measured = choose_device(arguments.device), ROOT / "data" / name
    setup = Setup(arguments.cifar10, arguments.trashnet, arguments.weights, device)
    todo = {part: measured / f"{'-'.join(map(str, part))}.csv" for part in parts(arguments.seeds)}
    Parallel(arguments.jobs, verbose=10)(
        delayed(_measure)(part, path, rows, setup) for part, path in todo.items() if not path.exists()
    )
    every = [pd.read_csv(path) for path in sorted(measured.glob("*.csv"))]
    write_csv(ROOT / "results" / "benchmarks" / f"{name}.csv", pd.concat(every, ignore_index=True))


def _measure(part: Part, path: Path, rows: Callable[..., Iterable[dict]], setup: Setup) -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # a GPU rounds as a CPU does
    warnings.simplefilter("ignore", UserWarning)  # of the call: few images
    write_csv(path, pd.DataFrame(list(rows(*part, setup))))
