"""Tables: from the tidy rows of the curves to the areas under them, paired over seeds."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from itertools import permutations
from pathlib import Path

import pandas as pd

from lrp_core.evaluation import pruning_auc
from lrp_core.methods import METHODS, Method
from lrp_core.study.statistics import paired_interval


def areas(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the area under each run's curve, a row a run.

    Args:
        curves: columns dataset, backbone, method, seed, rate, accuracy, harmonic_mean, accuracy_<class>.

    Returns:
        Columns dataset, backbone, method, seed, and of the same names as the measures, their areas. The area under
        ``accuracy`` is the class-averaged AUC: the mean of the classes' areas.
    """
    measures = ["accuracy", "harmonic_mean", *(name for name in curves if name.startswith("accuracy_"))]
    runs = ["dataset", "backbone", "method", "seed"]
    rows = [
        dict(zip(runs, key, strict=True)) | {name: pruning_auc(rows["rate"], rows[name]) for name in measures}
        for key, rows in curves.groupby(runs, sort=False)
    ]
    return pd.DataFrame(rows)


def auc_table(areas: pd.DataFrame, curves: pd.DataFrame, baselines: Collection[str]) -> pd.DataFrame:
    """Compare every method with the best baseline of its backbone, seed by seed.

    The best baseline is the one with the highest mean area on the same test curves that it is compared on, which
    favours the baseline.

    Args:
        areas: as :func:`areas` returns them.
        curves: what they are the areas of.
        baselines: names of the conventional methods.

    Returns:
        One row a backbone and method, best first: backbone, method, auc (mean over seeds), auc_sd, auc_harmonic_mean,
        retention (auc divided by the unpruned accuracy), gain (relative to the best baseline's mean), difference
        (mean), low, high (its 95 % bootstrap interval), verdict (in words).
    """
    unpruned = curves[curves["rate"] == 0].groupby("backbone", sort=False)["accuracy"].mean()
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
                "retention": auc[method].mean() / unpruned[backbone],
            }
            rows.append(
                row | (_compared(auc[method], auc[best]) if method != best else {"verdict": "the best baseline"})
            )
    columns = ["backbone", "method", "auc", "auc_sd", "auc_harmonic_mean", "retention"]
    return pd.DataFrame(rows).reindex(columns=[*columns, "gain", "difference", "low", "high", "verdict"])


def claim(auc: pd.DataFrame, proposed: str, curves: pd.DataFrame) -> str:
    """Say in words, Markdown, what a method is worth against the best baseline of each backbone.

    Args:
        auc: as :func:`auc_table` returns it.
        proposed: the method.
        curves: what ``auc`` was made from.
    """
    n_seeds, datasets = curves["seed"].nunique(), ", ".join(curves["dataset"].unique())
    lines = [f"On {datasets}, over {n_seeds} seeds:", ""]
    for backbone, group in auc.groupby("backbone", sort=False):
        rows = group.set_index("method")
        (best,) = rows.index[rows["verdict"] == "the best baseline"]
        row = rows.loc[proposed]
        lines.append(
            f"- **{backbone}**: `{proposed}` has an AUC of {row['auc']:.3f} and keeps {row['retention']:.1%} of the "
            f"unpruned accuracy, averaged over the rates. Against `{best}` ({rows['auc'][best]:.3f}), the best "
            f"conventional LRP method here, that is {row['gain']:+.1%}; the paired difference is "
            f"{row['difference']:+.3f}, its 95 % interval {row['low']:+.3f} to {row['high']:+.3f}."
        )
    return "\n".join(lines)


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


def _compared(auc: pd.Series, baseline: pd.Series) -> dict[str, float | str]:
    difference = auc - baseline
    low, high = paired_interval(difference)
    gain = difference.mean() / baseline.mean()
    interval = {"gain": gain, "difference": difference.mean(), "low": low, "high": high}
    return interval | {"verdict": _verdict(low, high)}


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "better: the interval lies above 0"
    if high < 0:
        return "worse: the interval lies below 0"
    return "undecided: the interval contains 0"


def ingredient_table(areas: pd.DataFrame) -> pd.DataFrame:
    """Return what each ingredient is worth: the differences between methods that differ in nothing else.

    Args:
        areas: as :func:`areas` returns them.

    Returns:
        One row a backbone and pair of methods: backbone, ingredient (an attribute of
        :class:`lrp_core.methods.Method` that has another value than its default), value, without, with_ingredient (the
        two methods), difference (of the AUC, mean over seeds), low, high (its 95 % bootstrap interval), verdict.
    """
    rows, default = [], asdict(Method())
    for backbone, group in areas.groupby("backbone", sort=False):
        auc = group.pivot(index="seed", columns="method", values="accuracy")
        for without, other in permutations(group["method"].unique(), 2):
            old, new = asdict(METHODS[without]), asdict(METHODS[other])
            changed = [name for name in default if old[name] != new[name]]
            # Methods that rank once sum over images in a way of their own, too.
            if len(changed) == 1 and changed != ["static"] and old[changed[0]] == default[changed[0]]:
                pair = {
                    "ingredient": changed[0],
                    "value": new[changed[0]],
                    "without": without,
                    "with_ingredient": other,
                }
                compared = _compared(auc[other], auc[without])
                rows.append({"backbone": backbone} | pair | compared)
    columns = ["backbone", "ingredient", "value", "without", "with_ingredient", "difference", "low", "high", "verdict"]
    backbones = list(areas["backbone"].unique())
    table = pd.DataFrame(rows, columns=columns).sort_values("ingredient", kind="stable")
    return table.sort_values("backbone", kind="stable", key=lambda names: names.map(backbones.index))


def class_table(areas: pd.DataFrame) -> pd.DataFrame:
    """Return the mean area by backbone, method and class, in the order of the methods' class-averaged areas."""
    columns = [name for name in areas if name.startswith("accuracy_")]
    means = areas.groupby(["backbone", "method"], sort=False)[["accuracy", *columns]].mean().reset_index()
    means = means.sort_values(["backbone", "accuracy"], ascending=False, kind="stable")
    return means.drop(columns="accuracy").rename(columns=lambda name: name.removeprefix("accuracy_"))


def drop_table(curves: pd.DataFrame, points: Collection[float] = (0.01, 0.02, 0.05)) -> pd.DataFrame:
    """Return how far each method can prune before the accuracy, averaged over seeds, falls by so many points.

    Args:
        curves: columns backbone, method, seed, rate_requested, accuracy, parameters, multiply_adds.
        points: of accuracy, as fractions.

    Returns:
        One row a backbone, method and number of points: backbone, method, points, rate (the last of the grid up to
        which the accuracy stays above), parameters and multiply_adds there, as fractions of the unpruned network's.
    """
    keys = ["backbone", "method"]
    means = curves.groupby([*keys, "rate_requested"], sort=False)[["accuracy", "parameters", "multiply_adds"]].mean()
    rows = []
    for key, group in means.groupby(keys, sort=False):
        group = group.droplevel(keys).sort_index()
        for fall in points:
            holds = (group["accuracy"] >= group["accuracy"].iloc[0] - fall - 1e-9).cummin()
            size = (
                group[["parameters", "multiply_adds"]][holds].iloc[-1] / group[["parameters", "multiply_adds"]].iloc[0]
            )
            rows.append(dict(zip(keys, key, strict=True)) | {"points": fall, "rate": group.index[holds][-1], **size})
    return pd.DataFrame(rows)


def time_spent(workspace: Path, backbones: Iterable[str]) -> pd.DataFrame:
    """Return the seconds that finding an order took, mean over seeds: columns backbone, method, seconds."""
    parts = [
        pd.read_csv(workspace / backbone / f"seconds_{stage}.csv").assign(backbone=backbone)
        for backbone in backbones
        for stage in ("dynamic", "baseline")
    ]
    return pd.concat(parts).groupby(["backbone", "method"], sort=False)["seconds"].mean().reset_index()


def summary(auc: pd.DataFrame, drops: pd.DataFrame, spent: pd.DataFrame) -> pd.DataFrame:
    """Return a row a backbone and method: AUC, retention, all that :func:`drop_table` has of it, seconds spent.

    Args:
        auc: as :func:`auc_table` returns it.
        drops: as :func:`drop_table` returns it, and what else was measured there.
        spent: as :func:`time_spent` returns it.
    """
    keys = ["backbone", "method"]
    wide = drops.pivot(index=keys, columns="points")
    wide.columns = [f"{name} at -{100 * points:.0f}" for name, points in wide.columns]
    return auc.set_index(keys)[["auc", "retention"]].join(wide).join(spent.set_index(keys).round(1))


def metrics(auc: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return AUC and retention by backbone and method, for ``dvc metrics``."""
    rows = auc.round(6).set_index(["backbone", "method"])[["auc", "retention"]]
    return {backbone: rows.loc[backbone].to_dict("index") for backbone in auc["backbone"].unique()}
