"""All tables and figures of a profile, from the rows that its runs have stored: the end of the pipeline.

This runs no network: ``python -m lrp_core.study.show.summary --profile full`` makes them again, in a minute, after a
change of the analysis or of a figure. Notebook 5 shows them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lrp_core.control.methods import CONVENTIONAL
from lrp_core.study import show
from lrp_core.study.analysis.ablations import ablation_table
from lrp_core.study.analysis.areas import (
    MEASURES,
    area_table,
    budget_table,
    class_table,
    metrics,
    on_common_seeds,
    unpruned,
)
from lrp_core.study.analysis.comparisons import auc_table, collapse_table, comparison_table, where_both_have_networks
from lrp_core.study.analysis.costs import cost_table, smallest_networks
from lrp_core.study.analysis.robustness import CORRUPTIONS, robustness_summary
from lrp_core.study.data.files import write_csv, write_text
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.experiment import STAGES
from lrp_core.study.runs.measuring import at_rates
from lrp_core.study.runs.pipeline import add_choice, read_params

_KEYS = ["dataset", "backbone", "method"]


@dataclass(frozen=True)
class Rows:
    """What the runs of a profile have left.

    Attributes:
        folder: of the results.
        backbones: in the order in which they are shown; the first one is drawn where one has to do.
        networks: one row per network that was measured, without columns by layer.
        everywhere: the same, with those of other tasks.
        traces: one row per step of the methods that are read at a rate.
        robustness: one row per network and kind of test images.
    """

    folder: Path
    backbones: Sequence[str]
    networks: pd.DataFrame
    everywhere: pd.DataFrame
    traces: pd.DataFrame
    robustness: pd.DataFrame

    @cached_property
    def budgets(self) -> pd.DataFrame:
        """What each run has to offer by budget, of all tasks."""
        return budget_table(self.everywhere)

    @cached_property
    def areas(self) -> pd.DataFrame:
        """The areas of each run, of all tasks."""
        return area_table(self.everywhere, self.budgets)

    @cached_property
    def own_areas(self) -> pd.DataFrame:
        """Those of this profile's runs."""
        here = self.areas["dataset"].isin(self.networks["dataset"])
        return self.areas[here & self.areas["backbone"].isin(self.backbones)]

    def of_runs(self, file: str, stages: Sequence[str]) -> pd.DataFrame:
        """Return a file of each backbone and stage, one below the other."""
        return _of_runs(self.folder, self.backbones, file, stages)


def _of_runs(folder: Path, backbones: Sequence[str], file: str, stages: Sequence[str]) -> pd.DataFrame:
    parts = [pd.read_csv(folder / "runs" / backbone / stage / file) for backbone in backbones for stage in stages]
    return pd.concat(parts, ignore_index=True)


def read_rows(
    folder: Path, backbones: Sequence[str], beside: Sequence[str] = (), robustness: pd.DataFrame | None = None
) -> Rows:
    """Read what the runs of a profile have left.

    Args:
        folder: of the results.
        backbones: that were pruned.
        beside: curves.csv of other tasks, paths from the repository root.
        robustness: as returned by :func:`lrp_core.study.analysis.robustness.robustness`; if None, what is in the
        folder.

    Raises:
        FileNotFoundError: a stage has not been run.
    """
    networks = _of_runs(folder, backbones, "curves.csv", STAGES[::-1])
    networks = networks[[name for name in networks if not name.startswith("kept_")]]
    others = [pd.read_csv(ROOT / path) for path in beside]
    traces = _of_runs(folder, backbones, "trace.csv", STAGES[:2])
    if robustness is None:
        robustness = pd.read_csv(folder / "tables" / "robustness.csv")
    everywhere = pd.concat([networks, *others], ignore_index=True)
    return Rows(folder, list(backbones), networks, everywhere, traces, robustness)


def tables_of(rows: Rows, proposed: str, against: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return all tables by name; see the functions that make them.

    Args:
        rows: of the profile.
        proposed: the method that is compared over multiply-adds.
        against: with these.
    """
    auc = auc_table(rows.own_areas, rows.networks, CONVENTIONAL)
    means = on_common_seeds(rows.budgets).groupby([*_KEYS, "budget"], sort=False)["accuracy"].mean().reset_index()
    return {
        "curves": rows.networks,
        "areas": rows.areas[[*_KEYS, "seed", *MEASURES]],
        "budgets": means,
        "comparisons": comparison_table(rows.areas, proposed, against),
        "where_both_have_networks": where_both_have_networks(rows.budgets, proposed, against),
        "smallest": smallest_networks(rows.everywhere[rows.everywhere["method"].isin([proposed, *against])]),
        "collapse": collapse_table(rows.everywhere),
        "auc": auc,
        "auc_by_class": class_table(rows.own_areas),
        "costs": cost_table(rows.traces, auc),
        "ablations": ablation_table(rows.own_areas),
        "robustness": rows.robustness,
        "robustness_summary": robustness_summary(rows.robustness, CORRUPTIONS),
    }


def figures_of(
    rows: Rows, tables: Mapping[str, pd.DataFrame], compare: str, proposed: str, against: Sequence[str], seed: int
) -> dict[str, Figure]:
    """Return all figures by name, but for relevance maps, for which networks have to be run.

    Args:
        rows: of the profile.
        tables: of :func:`tables_of`.
        compare: the method that stands for plain LRP pruning.
        proposed: the method that is compared over multiply-adds.
        against: with these.
        seed: whose runs of the controllers are drawn.
    """
    curves, first = at_rates(rows.networks), rows.backbones[0]
    plain = [compare, "dynamic", "joint", "dynamic-joint"]
    drawn = [*plain, f"{compare}+refit", f"{compare}+reconstruction+refit"]
    here = [name for name in drawn if name in set(curves["method"])]
    plain = [name for name in plain if name in here]
    whole = unpruned(rows.networks).groupby("backbone", sort=False)["accuracy"].mean()
    one = curves[(curves["backbone"] == first) & curves["seed"].isin(sorted(curves["seed"].unique())[:5])]
    layers = _of_runs(rows.folder, [first], "curves.csv", STAGES[1::-1])
    figures = {
        "depth": show.accuracy_by_exit(rows.of_runs("depth.csv", ["heads"])),
        "budgets": show.budgets(rows.budgets, unpruned(rows.everywhere), [*against, proposed]),
        "auc": show.areas_by_method(rows.own_areas, whole),
        "cost": show.cost(tables["costs"], rows.own_areas),
        "ablations": show.ablations(tables["ablations"], rows.own_areas, rows.backbones),
        "robustness": show.robustness(tables["robustness_summary"], rows.robustness),
        "pruning_curves": show.pruning_curves(curves, here),
        "class_accuracies": show.class_small_multiples(one, plain),
        "filters_by_layer": show.filters_by_layer(at_rates(layers), plain),
    }
    for backbone in rows.backbones:
        found = show.backbone_figures(rows.folder / "runs" / backbone, seed)
        figures |= {f"{name}-{backbone}": figure for name, figure in found.items()}
    return figures


def write(rows: Rows, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Figure]) -> None:
    """Write tables and figures into the folder of the results, each file whole or not at all; figures are closed."""
    for name, table in tables.items():
        write_csv(rows.folder / "tables" / f"{name}.csv", table)
    auc = tables["auc"].to_latex(index=False, float_format="%.3f", na_rep="", escape=True)
    write_text(rows.folder / "tables" / "auc.tex", auc)
    numbers = json.dumps(metrics(rows.own_areas, tables["auc"]), indent=2)
    write_text(rows.folder / "tables" / "metrics.json", numbers + "\n")
    for name, figure in figures.items():
        show.save_figure(figure, rows.folder / "figures" / name)
    show.close(figures.values())


def main(arguments: list[str] | None = None) -> int:
    """Write the tables and figures of a profile anew; 1 if its runs have left no rows."""
    parser = argparse.ArgumentParser(prog="python -m lrp_core.study.show.summary", description=__doc__.splitlines()[0])
    add_choice(parser)
    show.set_theme()
    try:
        params = read_params(**vars(parser.parse_args(arguments)))
        base, wanted = params["base"], params["05_auc_tables_figures"]
        rows = read_rows(ROOT / base["results"], list(base["weights"]), wanted["beside"])
        tables = tables_of(rows, wanted["proposed"], wanted["against"])
        methods = (wanted["compare"], wanted["proposed"], wanted["against"])
        write(rows, tables, figures_of(rows, tables, *methods, base["seeds"][0]))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
