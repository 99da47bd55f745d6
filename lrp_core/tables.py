"""Tables: from the tidy rows of the curves to the areas under them, paired over seeds."""

from collections.abc import Collection

import pandas as pd

from lrp_core.evaluation import paired_interval, pruning_auc


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


def auc_table(areas: pd.DataFrame, baselines: Collection[str]) -> pd.DataFrame:
    """Compare every method with the best baseline, seed by seed.

    The best baseline is the one with the highest mean area on the same test curves that it is compared on, which
    favours the baseline.

    Args:
        areas: of one data set and backbone, as :func:`areas` returns them.
        baselines: names of the conventional methods.

    Returns:
        One row a method, best first: method, auc (mean over seeds), auc_sd, auc_harmonic_mean, gain (relative to the
        best baseline's mean), difference (mean), low, high (its 95 % bootstrap interval), verdict (in words).
    """
    auc = areas.pivot(index="seed", columns="method", values="accuracy")
    harmonic = areas.pivot(index="seed", columns="method", values="harmonic_mean").mean()
    best = auc[[name for name in auc if name in baselines]].mean().idxmax()
    rows = []
    for method in auc.mean().sort_values(ascending=False).index:
        row = {
            "method": method,
            "auc": auc[method].mean(),
            "auc_sd": auc[method].std(),
            "auc_harmonic_mean": harmonic[method],
        }
        if method == best:
            row["verdict"] = "the best baseline"
        else:
            difference = auc[method] - auc[best]
            low, high = paired_interval(difference)
            row |= {
                "gain": difference.mean() / auc[best].mean(),
                "difference": difference.mean(),
                "low": low,
                "high": high,
            }
            row["verdict"] = _verdict(low, high)
        rows.append(row)
    columns = ["method", "auc", "auc_sd", "auc_harmonic_mean", "gain", "difference", "low", "high", "verdict"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "better: the interval lies above 0"
    if high < 0:
        return "worse: the interval lies below 0"
    return "undecided: the interval contains 0"


def class_table(areas: pd.DataFrame) -> pd.DataFrame:
    """Return the mean area by method and class, in the order of the methods' class-averaged areas."""
    columns = [name for name in areas if name.startswith("accuracy_")]
    means = areas.groupby("method")[["accuracy", *columns]].mean().sort_values("accuracy", ascending=False)
    return means[columns].rename(columns=lambda name: name.removeprefix("accuracy_")).reset_index()
