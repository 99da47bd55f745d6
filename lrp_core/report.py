"""Prints what a finished ``make repro`` has made: the AUC table and where the figures lie."""

import pandas as pd

from lrp_core.paths import ROOT


def main() -> None:
    """Print the AUC table of results/ and the names of the figures."""
    table = pd.read_csv(ROOT / "results" / "tables" / "auc.csv").drop(columns=["auc_sd", "difference"])
    print("\nClass-averaged AUC of accuracy against pruning rate (0 to 95 %), paired with the best baseline:\n")
    print(table.to_string(index=False, float_format="%.3f", na_rep=""))
    figures = sorted(path.relative_to(ROOT) for path in (ROOT / "results" / "figures").glob("*.png"))
    print("\nFigures:", *figures, sep="\n  ")


if __name__ == "__main__":
    main()
