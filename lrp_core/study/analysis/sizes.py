"""What networks of finished runs cost on this machine: size by budget, and the smallest ones within an accuracy drop.

Latency is measured, and differs from machine to machine and from run to run; all else is computed.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import pandas as pd

from lrp_core.metrics.cost import latency, size
from lrp_core.study.analysis.costs import smallest_network
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.finished import networks_of, rebuilt, within


def size_table(experiment: Experiment, name: str, seed: int, budgets: Iterable[float]) -> pd.DataFrame:
    """Return what a method's networks cost on the CPU.

    Args:
        experiment: where the run was made.
        name: of the method.
        seed: of the run.
        budgets: of multiply-adds, as fractions of the unpruned network's.

    Returns:
        One row per budget for which there is a network: budget, filters, parameters, multiply_adds, latency (seconds).
    """
    example = experiment.samples(seed, "test").images[:1]
    rows = [
        {"budget": budget} | asdict(size(copy.deepcopy(network.model).cpu(), example))
        for budget, network in within(experiment, name, seed, budgets)
    ]
    return pd.DataFrame(rows)


def latency_table(
    experiment: Experiment, names: Iterable[str], seed: int, drops: Sequence[float] = (0.01, 0.02, 0.05)
) -> pd.DataFrame:
    """Return the smallest network of each method within an accuracy drop, with its latency.

    Args:
        experiment: where the runs were made.
        names: of the methods.
        seed: of the runs.
        drops: of the cross-fitted accuracy, as fractions.

    Returns:
        One row per method and drop: backbone, method, max_accuracy_drop, multiply_adds, latency (of one image, as a
        fraction of the unpruned network's).
    """
    example, rows = experiment.samples(seed, "test").images[:1], []
    whole = latency(experiment.network(seed).model, example)
    for name in names:
        known = networks_of(experiment, name, seed)
        found = [smallest_network(known, drop) for drop in drops]
        networks = [(row["truncation"], int(row["removed"])) for row in found]
        for drop, row, network in zip(
            drops, found, rebuilt(experiment, name, seed, networks, compensate=False), strict=True
        ):
            cost = {"multiply_adds": int(row["multiply_adds"]), "latency": latency(network.model, example) / whole}
            rows.append({"backbone": experiment.backbone_name, "method": name, "max_accuracy_drop": drop} | cost)
    return pd.DataFrame(rows)
