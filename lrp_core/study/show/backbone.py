"""The figures of one backbone, drawn from the tables that notebooks 2 and 4 have written."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lrp_core.study.show.control import budget_search, controller_trace, monitored
from lrp_core.study.show.heads import confusion_matrix


def backbone_figures(folder: Path, seed: int) -> dict[str, Figure]:
    """Return a backbone's figures by name: confusion, monitored, controller_trace, budget_search.

    Args:
        folder: of the backbone, with heads/confusion.csv, heads/depth.csv, dynamic/monitored.csv, dynamic/trace.csv and
            budget_search/trace.csv in it.
        seed: whose run of the first method is drawn.

    Raises:
        FileNotFoundError: a table is not there.
    """
    confusion = pd.read_csv(folder / "heads" / "confusion.csv").set_index("true")
    exits = pd.read_csv(folder / "heads" / "depth.csv")["exit"].unique()
    return {
        "confusion": confusion_matrix(confusion.to_numpy(), confusion.index.tolist()),
        "monitored": monitored(pd.read_csv(folder / "dynamic" / "monitored.csv")),
        "controller_trace": controller_trace(_first_run(folder / "dynamic" / "trace.csv", seed)),
        "budget_search": budget_search(_first_run(folder / "budget_search" / "trace.csv", seed), exits),
    }


def _first_run(path: Path, seed: int) -> pd.DataFrame:
    trace = pd.read_csv(path)
    return trace[(trace["method"] == trace["method"].iloc[0]) & (trace["seed"] == seed)]
