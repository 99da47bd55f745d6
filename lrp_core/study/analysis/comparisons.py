"""Methods compared with their alternatives, paired over seeds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import permutations

import numpy as np
import pandas as pd

from lrp_core.control.methods import METHODS, REFIT, Method
from lrp_core.study.analysis.areas import _TASK, MEASURES, unpruned
from lrp_core.study.analysis.statistics import holm, paired_interval


def auc_table(areas: pd.DataFrame, networks: pd.DataFrame, baselines: Collection[str]) -> pd.DataFrame:
    """Compare every method with the best baseline of its backbone, seed by seed.

    The best baseline is the one with the highest mean area on the same test curves that it is compared on, which
    favours the baseline.

    Args:
        areas: as :func:`areas` returns them.
        networks: what they are the areas of.
        baselines: names of the conventional methods.

    Returns:
        One row a backbone and method, best first: backbone, method, auc (mean over seeds), auc_sd, auc_harmonic_mean,
        retention (auc divided by the unpruned accuracy of the same seeds), gain (relative to the best baseline's mean),
        difference (mean), low, high (its 95 % interval), seeds (that both were run on), verdict (in words).
    """
    whole = unpruned(networks).set_index(["backbone", "seed"])["accuracy"]
    rows = []
    for backbone, group in areas.groupby("backbone", sort=False):
        auc = group.pivot(index="seed", columns="method", values="accuracy")
        harmonic = group.groupby("method")["harmonic_mean"].mean()
        best = auc[[name for name in auc if name in baselines]].mean().idxmax()
        for method in auc.mean().sort_values(ascending=False, kind="stable").index:
            row = {
                "backbone": backbone,
                "method": method,
                "auc": auc[method].mean(),
                "auc_sd": auc[method].std(),
                "auc_harmonic_mean": harmonic[method],
                "retention": auc[method].mean() / whole[backbone][auc[method].dropna().index].mean(),
            }
            rows.append(
                row | (_compared(auc[method], auc[best]) if method != best else {"verdict": "the best baseline"})
            )
    columns = ["backbone", "method", "auc", "auc_sd", "auc_harmonic_mean", "retention"]
    return pd.DataFrame(rows).reindex(columns=[*columns, "gain", "difference", "low", "high", "seeds", "verdict"])


def comparisons(areas: pd.DataFrame, proposed: str, against: Sequence[str]) -> pd.DataFrame:
    """Compare one method with its plainest alternatives, on each task and network, by both measures.

    Args:
        areas: as :func:`areas` returns them.
        proposed: the method.
        against: the others.

    Returns:
        One row a dataset, backbone, measure and other method: dataset, backbone, measure, other, area, other_area,
        difference (mean over the seeds of both), low, high (its 95 % interval), seeds, p, p_holm (Holm's, for all rows
        together), verdict: better or worse where p_holm is below 5 %, else undecided.
    """
    rows = []
    for (dataset, backbone), group in areas.groupby(_TASK, sort=False):
        for measure in MEASURES:
            area = group.pivot(index="seed", columns="method", values=measure)
            for other in against:
                if {proposed, other} <= set(area):
                    both = area[[proposed, other]].dropna()
                    compared = _compared(both[proposed], both[other])
                    row = {"dataset": dataset, "backbone": backbone, "measure": measure, "other": other}
                    rows.append(row | {"area": both[proposed].mean(), "other_area": both[other].mean()} | compared)
    columns = ["area", "other_area", "difference", "low", "high", "seeds", "p"]
    table = pd.DataFrame(rows, columns=[*_TASK, "measure", "other", *columns])
    table["p_holm"] = holm(table["p"])
    decided = np.where(table["difference"] > 0, "better", "worse")
    return table.assign(verdict=np.where(table["p_holm"] < 0.05, decided, "undecided"))


def where_both_have_networks(by_budget: pd.DataFrame, proposed: str, against: Sequence[str]) -> pd.DataFrame:
    """Compare one method with others on the budgets for which both have a network, so that nobody guesses.

    Args:
        by_budget: as :func:`by_budget` returns it.
        proposed: the method.
        against: the others.

    Returns:
        One row a dataset, backbone and other method: dataset, backbone, other, down_to (the smallest such budget),
        difference (of the accuracy, mean over these budgets and the seeds of both), low, high (its 95 % interval),
        seeds.
    """
    rows = []
    for task, group in by_budget.groupby(_TASK, sort=False):
        shape = {"index": "budget", "columns": ["method", "seed"]}
        accuracy, guess = group.pivot(values="accuracy", **shape), group.pivot(values="guess", **shape)
        for other in against:
            if {proposed, other} <= set(group["method"]):
                seeds = accuracy[proposed].columns.intersection(accuracy[other].columns)
                real = ~(guess[proposed][seeds].any(axis=1) | guess[other][seeds].any(axis=1)).astype(bool)
                compared = _compared(accuracy[proposed][seeds][real].mean(), accuracy[other][seeds][real].mean())
                row = dict(zip(_TASK, task, strict=True)) | {"other": other, "down_to": real.index[real].min()}
                rows.append(row | {name: compared[name] for name in ("difference", "low", "high", "seeds")})
    return pd.DataFrame(rows)


def claim(comparisons: pd.DataFrame, proposed: str) -> str:
    """Say in words, Markdown, what a method is worth against its alternatives, by multiply-adds.

    Args:
        comparisons: as :func:`comparisons` returns them.
        proposed: the method.
    """
    lines = [f"`{proposed}`, accuracy averaged from 100 % to 1 % of a network's multiply-adds:", ""]
    rows = comparisons[comparisons["measure"] == "multiply_adds"]
    for (dataset, backbone), group in rows.groupby(_TASK, sort=False):
        parts = [
            f"against `{row.other}` {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}; {row.verdict})"
            for row in group.itertuples()
        ]
        area, seeds = group["area"].iloc[0], group["seeds"].iloc[0]
        lines.append(f"- **{dataset}, {backbone}**, {seeds} seeds: {area:.3f}; {'; '.join(parts)}.")
    note = f"""In brackets 95 % intervals by Student's t, paired by seed, and what Holm's test says of all
{len(comparisons)} comparisons together, these and those over filters."""
    return "\n".join([*lines, "", note])


def chance_note(heads: Mapping[str, pd.DataFrame]) -> str:
    """Say in words, Markdown, where the unpruned network cannot be told from guessing; empty where it can.

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


def _compared(area: pd.Series, other: pd.Series) -> dict[str, float | str]:
    difference = (area - other).dropna()  # of the seeds that both were run on
    low, high, p = paired_interval(difference)
    compared = {"gain": difference.mean() / other[difference.index].mean(), "difference": difference.mean()}
    return compared | {"low": low, "high": high, "seeds": len(difference), "p": p, "verdict": _verdict(low, high)}


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "better: the interval lies above 0"
    if high < 0:
        return "worse: the interval lies below 0"
    return "undecided: the interval contains 0"


def collapse_table(
    networks: pd.DataFrame, method: str = "px-iterative-abs", rates: Sequence[float] = (0.25, 0.5, 0.75, 0.95)
) -> pd.DataFrame:
    """Return what a method loses by rate, and how much of it a head that is fitted anew gets back.

    Args:
        networks: as for :func:`areas`; tasks without the method, or without the same with ``+refit``, are left out.
        method: without.
        rates: of the grid.

    Returns:
        One row a dataset, backbone and rate: dataset, backbone, rate, lost, lost_refitted (accuracy, mean over the
        seeds of both), head_share (of the loss; NaN where less than five points are lost).
    """
    rows = []
    for task, group in networks[networks["rate_requested"].notna()].groupby(_TASK, sort=False):
        accuracy = group.pivot(index=["seed", "rate_requested"], columns="method", values="accuracy")
        if not {method, method + REFIT} <= set(accuracy):
            continue
        accuracy = accuracy[[method, method + REFIT]].dropna().groupby("rate_requested").mean()
        lost = accuracy.loc[0.0, method] - accuracy
        for rate in rates:
            before, after = lost.loc[rate]
            share = 1 - after / before if before >= 0.05 else np.nan
            rows.append((*task, rate, before, after, share))
    return pd.DataFrame(rows, columns=[*_TASK, "rate", "lost", "lost_refitted", "head_share"])


def ablation_table(areas: pd.DataFrame) -> pd.DataFrame:
    """Return what each ablation is worth: the differences between methods that differ in nothing else.

    Args:
        areas: as :func:`areas` returns them.

    Returns:
        One row a dataset, backbone, measure and pair of methods: dataset, backbone, measure, ablation (an attribute
        of :class:`lrp_core.control.methods.Method` that has another value than its default, or more levers; "controller" for
        its order and rate together), value (of levers those that are added), without, with_ablation (the two
        methods), difference (of the area, mean over seeds), low, high (its 95 % interval), seeds, verdict.
    """
    rows, default = [], asdict(Method())
    for (dataset, backbone), group in areas.groupby(_TASK, sort=False):
        tables = {measure: group.pivot(index="seed", columns="method", values=measure) for measure in MEASURES}
        for without, other in permutations(group["method"].unique(), 2):
            old, new = asdict(METHODS[without]), asdict(METHODS[other])
            changed = [name for name in default if old[name] != new[name]]
            # Methods that rank once sum over images in a way of their own, too; a backbone only cut scores nothing.
            if changed in (["static"], []) or None in (old["criterion"], new["criterion"]):
                continue
            if len(changed) > 1 and changed != ["order", "rate"]:
                continue
            if changed == ["actions"]:
                if not set(old["actions"]) < set(new["actions"]):
                    continue
                value = "+".join(action for action in new["actions"] if action not in old["actions"])
            elif any(old[name] != default[name] for name in changed):
                continue
            else:
                value = new[changed[0]]
            what = {"ablation": changed[0] if len(changed) == 1 else "controller", "value": value}
            for measure, area in tables.items():
                compared = _compared(area[other], area[without])
                row = {"dataset": dataset, "backbone": backbone, "measure": measure, **what}
                rows.append(row | {"without": without, "with_ablation": other} | compared)
    columns = ["ablation", "value", "without", "with_ablation", "difference", "low", "high", "seeds", "verdict"]
    table = pd.DataFrame(rows, columns=[*_TASK, "measure", *columns])
    return table.sort_values("ablation", kind="stable", ignore_index=True)
