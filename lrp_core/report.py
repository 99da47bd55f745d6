"""Prints what a finished ``make repro`` has made: the AUC table and where the figures lie."""

import argparse

import pandas as pd

from lrp_core.paths import ROOT
from lrp_core.pipeline import add_choice, read_params


def main(arguments: list[str] | None = None) -> None:
    """Print the AUC table of a run and the names of its figures."""
    parser = argparse.ArgumentParser(prog="python -m lrp_core.report", description=__doc__)
    add_choice(parser)
    results = ROOT / read_params(**vars(parser.parse_args(arguments)))["base"]["results"]
    table = pd.read_csv(results / "tables" / "auc.csv").drop(columns=["auc_sd", "difference"])
    print("\nClass-averaged AUC of accuracy against pruning rate (0 to 95 %), paired with the best baseline:\n")
    print(table.to_string(index=False, float_format="%.3f", na_rep=""))
    figures = sorted(path.relative_to(ROOT) for path in (results / "figures").glob("*.png"))
    print("\nFigures:", *figures, sep="\n  ")


if __name__ == "__main__":
    main()
