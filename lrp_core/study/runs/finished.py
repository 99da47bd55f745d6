"""Networks of finished runs: their records without test images, and the networks themselves, rebuilt."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from lrp_core.control.methods import method
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.study.data.files import read_tensors
from lrp_core.study.runs.experiment import STAGES, Experiment
from lrp_core.study.runs.measuring import choose
from lrp_core.utils.errors import check_choice

COLUMNS = [
    *("method", "seed", "rate", "crossfitted", "squared_error"),
    *("parameters", "multiply_adds", "truncation", "removed"),
]


def networks_of(experiment: Experiment, name: str, seed: int) -> pd.DataFrame:
    """Return the records of a finished run's networks without test images: one row per network, with these COLUMNS.

    Raises:
        FileNotFoundError: the stages have not been run.
        ValueError: they have not run this method with this seed.
    """
    files = [experiment.folder / stage / "networks.csv" for stage in STAGES]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{', '.join(missing)} is missing: run the stages before this one (make repro)")
    networks = pd.concat([pd.read_csv(file, dtype={"truncation": str}) for file in files], ignore_index=True)
    networks["truncation"] = networks["truncation"].fillna("")
    runs = networks["method"] + "/" + networks["seed"].astype(str)
    return networks[runs == check_choice("run", f"{name}/{seed}", runs.unique())]


def rebuilt(
    experiment: Experiment, name: str, seed: int, networks: Iterable[tuple[str, int]], compensate: bool = True
) -> Iterator[PrunedNetwork]:
    """Rebuild networks of a finished run and yield them.

    Args:
        experiment: where the run was made.
        name: of the method.
        seed: of the run.
        networks: of each, the truncation of the backbone ("" for the whole one), and how many filters were removed.
        compensate: as the method does; without, networks are as large and as fast, and sooner made.
    """
    orders = {}
    for stage in STAGES:
        orders |= read_tensors(experiment.folder / stage / "orders.safetensors")
    how, unpruned = method(name), {}
    how = how if compensate else replace(how, reconstruct=False, refit=False, actions=())
    for truncation, size in networks:
        if truncation not in unpruned:
            unpruned[truncation] = experiment.network(seed, how, truncation)
        order = orders[f"{name}/{seed}/{truncation}"].numpy()[:size] if size else np.array([], dtype=int)
        yield unpruned[truncation].smaller(order)


def within(
    experiment: Experiment, name: str, seed: int, budgets: Iterable[float]
) -> Iterator[tuple[float, PrunedNetwork]]:
    """Yield each budget for which a finished run has a network, with the best one by the calibration images.

    Args:
        experiment: where the run was made.
        name: of the method.
        seed: of the run.
        budgets: multiply-adds, as fractions of the unpruned network's.

    Raises:
        FileNotFoundError: the stages have not been run.
        ValueError: they have not run this method with this seed.
    """
    networks, chosen = networks_of(experiment, name, seed), {}
    fractions = networks["multiply_adds"] / networks["multiply_adds"][networks["rate"] == 0].iloc[0]
    for budget in budgets:
        row = choose(networks, fractions <= budget + 1e-9, method(name).refit)
        if row is not None:
            chosen[budget] = (row["truncation"], int(row["removed"]))
    yield from zip(chosen, rebuilt(experiment, name, seed, chosen.values()), strict=True)
