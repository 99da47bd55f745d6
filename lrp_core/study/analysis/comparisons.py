"""Comparisons of methods with their alternatives, paired over seeds.

Means of several methods next to each other use the seeds that all of them were run on. A difference of two methods uses
the seeds of both.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from lrp_core.study.analysis.areas import MEASURES, TASK, on_common_seeds, unpruned
from lrp_core.study.analysis.statistics import holm, paired_interval
from lrp_core.study.runs.measuring import at_rates


def compared(area: pd.Series, other: pd.Series, overlap: float) -> dict[str, float | str]:
    """Compare two methods on the seeds that both were run on.

    Args:
        area: of the one method, by seed.
        other: of the other.
        overlap: the share of the images that a seed tests.

    Returns:
        gain (the mean difference, relative to the other's mean), difference (mean), low, high (its 95 % interval by
        :func:`lrp_core.study.analysis.statistics.paired_interval`), seeds, p, verdict (in words).

    Raises:
        ValueError: fewer than two seeds in common.
    """
    difference = (area - other).dropna()
    low, high, p = paired_interval(difference, overlap)
    if low > 0:
        verdict = "better: the interval lies above 0"
    elif high < 0:
        verdict = "worse: the interval lies below 0"
    else:
        verdict = "undecided: the interval contains 0"
    found = {"gain": difference.mean() / other[difference.index].mean(), "difference": difference.mean()}
    return found | {"low": low, "high": high, "seeds": len(difference), "p": p, "verdict": verdict}


def auc_table(areas: pd.DataFrame, networks: pd.DataFrame, baselines: Collection[str]) -> pd.DataFrame:
    """Compare every method that is read at a rate with the best baseline of its backbone, seed by seed.

    All rows of a backbone are of the same seeds, those that all of these methods were run on. The best baseline is the
    one with the highest mean area on the same test curves that it is compared on, which favours the baseline.

    Args:
        areas: as returned by :func:`lrp_core.study.analysis.areas.area_table`; methods without an area over filters
            are left out.
        networks: what they are the areas of.
        baselines: names of the conventional methods.

    Returns:
        One row per backbone and method, best first: backbone, method, auc (mean over seeds), auc_sd, auc_harmonic_mean,
        retention (auc divided by the unpruned accuracy of the same seeds), gain (relative to the best baseline's mean),
        difference (mean), low, high (its 95 % interval), seeds, verdict (in words; of the best baseline itself there
        is no difference).

    Raises:
        ValueError: methods of a backbone have fewer than two seeds in common.
    """
    whole = unpruned(networks).set_index(["backbone", "seed"])["accuracy"]
    rows = []
    for backbone, group in on_common_seeds(areas[areas["accuracy"].notna()]).groupby("backbone", sort=False):
        auc = group.pivot(index="seed", columns="method", values="accuracy")
        harmonic = group.groupby("method")["harmonic_mean"].mean()
        best, overlap = auc[[name for name in auc if name in baselines]].mean().idxmax(), group["overlap"].iloc[0]
        for method in auc.mean().sort_values(ascending=False, kind="stable").index:
            row = {
                "backbone": backbone,
                "method": method,
                "auc": auc[method].mean(),
                "auc_sd": auc[method].std(),
                "auc_harmonic_mean": harmonic[method],
                "retention": auc[method].mean() / whole[backbone][auc.index].mean(),
            }
            itself = {"seeds": len(auc), "verdict": "the best baseline"}
            rows.append(row | (itself if method == best else compared(auc[method], auc[best], overlap)))
    columns = ["backbone", "method", "auc", "auc_sd", "auc_harmonic_mean", "retention"]
    return pd.DataFrame(rows, columns=[*columns, "gain", "difference", "low", "high", "seeds", "verdict"])


def comparison_table(areas: pd.DataFrame, proposed: str, against: Sequence[str]) -> pd.DataFrame:
    """Compare one method with its simplest alternatives, on each task and network, by every measure that both have.

    All rows of a task and measure are of the same seeds, those that all of these methods were run on.

    Args:
        areas: as returned by :func:`lrp_core.study.analysis.areas.area_table`.
        proposed: the method.
        against: the others.

    Returns:
        One row per dataset, backbone, measure and other method: dataset, backbone, measure, other, area, other_area,
        difference (mean over the seeds), low, high (its 95 % interval), seeds, p, p_holm (Holm's, for all rows
        together), verdict: better or worse where p_holm is below 5 %, else undecided.
    """
    rows = []
    for (dataset, backbone), group in areas[areas["method"].isin([proposed, *against])].groupby(TASK, sort=False):
        for measure in MEASURES:
            area = (
                group.pivot(index="seed", columns="method", values=measure).dropna(axis="columns", how="all").dropna()
            )
            for other in against:
                if {proposed, other} <= set(area):
                    row = {"dataset": dataset, "backbone": backbone, "measure": measure, "other": other}
                    row |= {"area": area[proposed].mean(), "other_area": area[other].mean()}
                    rows.append(row | compared(area[proposed], area[other], group["overlap"].iloc[0]))
    columns = ["area", "other_area", "difference", "low", "high", "seeds", "p"]
    table = pd.DataFrame(rows, columns=[*TASK, "measure", "other", *columns])
    table["p_holm"] = holm(table["p"])
    decided = np.where(table["difference"] > 0, "better", "worse")
    return table.assign(verdict=np.where(table["p_holm"] < 0.05, decided, "undecided"))


def where_both_have_networks(budgets: pd.DataFrame, proposed: str, against: Sequence[str]) -> pd.DataFrame:
    """Compare one method with others on the budgets for which both have a network in every seed.

    Args:
        budgets: as returned by :func:`lrp_core.study.analysis.areas.budget_table`.
        proposed: the method.
        against: the others.

    Returns:
        One row per dataset, backbone and other method: dataset, backbone, other, down_to (the smallest such budget),
        difference (of the accuracy, mean over these budgets and the seeds of both), low, high (its 95 % interval),
        seeds.
    """
    rows = []
    for task, group in budgets.groupby(TASK, sort=False):
        shape = {"index": "budget", "columns": ["method", "seed"]}
        accuracy, guess = group.pivot(values="accuracy", **shape), group.pivot(values="guess", **shape)
        for other in against:
            if {proposed, other} <= set(group["method"]):
                seeds = accuracy[proposed].columns.intersection(accuracy[other].columns)
                real = ~(guess[proposed][seeds].any(axis=1) | guess[other][seeds].any(axis=1)).astype(bool)
                means = (accuracy[method][seeds][real].mean() for method in (proposed, other))
                found = compared(*means, group["overlap"].iloc[0])
                row = dict(zip(TASK, task, strict=True)) | {"other": other, "down_to": real.index[real].min()}
                rows.append(row | {name: found[name] for name in ("difference", "low", "high", "seeds")})
    return pd.DataFrame(rows, columns=[*TASK, "other", "down_to", "difference", "low", "high", "seeds"])


def collapse_table(
    networks: pd.DataFrame, method: str = "px-iterative-abs", rates: Sequence[float] = (0.25, 0.5, 0.75, 0.95)
) -> pd.DataFrame:
    """Return what a method loses at each rate, and how much of it a refitted head recovers.

    Args:
        networks: as for :func:`lrp_core.study.analysis.areas.budget_table`; tasks without the method, or without the
            same with ``+refit``, are left out.
        method: one that is read at a rate, without a refitted head.
        rates: of the grid.

    Returns:
        One row per dataset, backbone and rate: dataset, backbone, rate, lost, lost_refitted (accuracy, mean over the
        seeds of both), head_share (of the loss; NaN where less than five points are lost), seeds.
    """
    rows, both = [], [method, f"{method}+refit"]
    for task, group in at_rates(networks).groupby(TASK, sort=False):
        accuracy = group.pivot(index=["seed", "rate_requested"], columns="method", values="accuracy")
        if not set(both) <= set(accuracy):
            continue
        by_rate = accuracy[both].dropna().groupby("rate_requested")
        lost, seeds = by_rate.mean().loc[0.0, method] - by_rate.mean(), by_rate.size()
        for rate in rates:
            before, after = lost.loc[rate]
            share = 1 - after / before if before >= 0.05 else np.nan
            rows.append((*task, rate, before, after, share, seeds[rate]))
    return pd.DataFrame(rows, columns=[*TASK, "rate", "lost", "lost_refitted", "head_share", "seeds"])


def claim(comparisons: pd.DataFrame, proposed: str) -> str:
    """Describe in Markdown how a method compares with its alternatives, by multiply-adds.

    Args:
        comparisons: as returned by :func:`comparison_table`.
        proposed: the method.
    """
    lines = [f"`{proposed}`, accuracy averaged from 100 % to 1 % of a network's multiply-adds:", ""]
    rows = comparisons[comparisons["measure"] == "multiply_adds"]
    for (dataset, backbone), group in rows.groupby(TASK, sort=False):
        parts = [
            f"against `{row.other}` {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}; {row.verdict})"
            for row in group.itertuples()
        ]
        area, seeds = group["area"].iloc[0], group["seeds"].iloc[0]
        lines.append(f"- **{dataset}, {backbone}**, {seeds} seeds: {area:.3f}; {'; '.join(parts)}.")
    note = f"""In brackets 95 % intervals, paired by seed and corrected for seeds that draw from one pool of images
(Nadeau and Bengio 2003), and what Holm's test says of all {len(comparisons)} comparisons in the table together."""
    return "\n".join([*lines, "", note])


def chance_note(heads: Mapping[str, pd.DataFrame]) -> str:
    """Describe in Markdown where the unpruned network is no better than chance; empty if it is better everywhere.

    Args:
        heads: by backbone, what notebook 2 leaves: columns seed, measured on, average, above chance.
    """
    lines = []
    for backbone, rows in heads.items():
        test = rows[(rows["measured on"] == "test") & ~rows["above chance"].astype(bool)]
        if len(test):
            seeds = ", ".join(map(str, test["seed"]))
            lines.append(f"- {backbone}, seed {seeds}: test accuracy {test['average'].mean():.0%}")
    if not lines:
        return ""
    head = "**At chance here.** Unpruned, these cannot be told from guessing; what is said of them is noise."
    return "\n".join([head, "", *lines])
