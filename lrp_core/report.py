"""Prints what a finished ``make repro`` has made: the AUC table and where the figures lie."""

import sys

import pandas as pd

from lrp_core.paths import ROOT
from lrp_core.pipeline import read_params


def main(profile: str | None = None) -> None:
    """Print the AUC table of a profile (of the default run, if none) and the names of the figures."""
    results = ROOT / read_params(profile)["base"]["results"]
    table = pd.read_csv(results / "tables" / "auc.csv").drop(columns=["auc_sd", "difference"])
    print("\nClass-averaged AUC of accuracy against pruning rate (0 to 95 %), paired with the best baseline:\n")
    print(table.to_string(index=False, float_format="%.3f", na_rep=""))
    figures = sorted(path.relative_to(ROOT) for path in (results / "figures").glob("*.png"))
    print("\nFigures:", *figures, sep="\n  ")


if __name__ == "__main__":
    main(*sys.argv[1:])
