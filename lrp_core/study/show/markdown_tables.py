"""The tables on README.md and docs/, written from the CSV files under results/: ``make tables``.

A table stands between two lines, ``<!-- table: NAME -->`` and ``<!-- end of table -->``; :data:`TABLES` has the names.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain

import pandas as pd

from lrp_core.metrics.curve import pruning_auc
from lrp_core.study.analysis.promise import (
    CHOSEN,
    DEFAULT,
    DISTILLED,
    DRAW,
    FRESH,
    LAYER_BY_LAYER,
    NEURON_MERGING,
    OURS,
    at_size,
    by_default,
    choices,
    errors,
    with_default,
)
from lrp_core.study.analysis.real_size import (
    CHOICE_ALONE,
    CONTROLLED,
    CONTROLLERS,
    LAYERS_PREPARED,
    LAYERS_REPAIRED,
    LRP,
    LRP_REPAIRED,
    NAMES,
    ONE_SHOT,
    PAIR,
    SMALLER,
    SMALLER_HALF,
    SMALLER_INTERMEDIATE,
    WITH_REPAIR,
    accuracies,
    areas,
    differences,
    draws,
    means,
    overlaps,
)
from lrp_core.study.analysis.robustness import CORRUPTIONS, robustness_summary
from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.study.paths import ROOT
from lrp_core.study.show.names import METHODS, NETWORKS, at_real_size, pair
from lrp_core.utils.errors import check_choice
from lrp_core.utils.files import atomic

BACKBONES = ("efficientnet-lite0", "squeezenet1_1")  # of the default profile
REFITTED, EXIT, SEARCH = f"{LRP}+refit", "early-exit", "budget-search"
EXIT_PRUNED = f"{EXIT}+{LRP}+reconstruction+refit"


def _read(path: str, **options) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / path, **options)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([*cells, *[""] * (len(header) - len(cells))] for cells in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _interval(difference: float, low: float, high: float) -> str:
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"


def collapse() -> str:
    """Return what pruning loses with the head as it was and refitted, and how much of the loss is the head's."""
    rows = []
    for row in _read("default/tables/collapse.csv").itertuples():
        share = "" if pd.isna(row.head_share) else f"{row.head_share:.0%}"
        rows.append([NETWORKS[row.backbone], f"{row.rate:.0%}", f"{row.lost:.3f}", f"{row.lost_refitted:.3f}", share])
    header = ["network", "filters pruned", "accuracy lost, old head", "accuracy lost, refitted head"]
    return _markdown([*header, "share of the loss that a refitted head regains"], rows)


ABLATIONS = (  # what changes, without it, with it
    ("the head is refitted", LRP, REFITTED),
    *(("the controller is added", *both) for both in CONTROLLERS.items()),
)


def ablations() -> str:
    """Return what each change is worth by both areas."""
    keys = ["backbone", "without", "with_ablation", "measure"]
    table = _read("default/tables/ablations.csv").set_index(keys).sort_index()
    rows = []
    for what, without, changed in ABLATIONS:
        for backbone in BACKBONES:
            cells = [what, METHODS[without], NETWORKS[backbone]]
            for measure in ("accuracy", "multiply_adds"):
                row = table.loc[(backbone, without, changed, measure)]
                cells.append(_interval(row["difference"], row["low"], row["high"]))
            rows.append(cells)
    return _markdown(["what changes", "on", "network", "area over filters", "area over multiply-adds"], rows)


def areas_over_multiply_adds() -> str:
    """Return areas over multiply-adds, and what budget search has more than the methods that it is compared with."""
    areas = _read("default/tables/areas.csv").groupby(["backbone", "method"])["multiply_adds"].mean()
    compared = _read("default/tables/comparisons.csv").query("measure == 'multiply_adds'")
    compared = compared.set_index(["backbone", "other"])
    rows = []
    for backbone in BACKBONES:
        for method, area in areas[backbone].sort_values(ascending=False).items():
            rows.append([NETWORKS[backbone], METHODS[method], f"{area:.3f}"])
            if (key := (backbone, method)) in compared.index:
                row = compared.loc[key]
                verdict = (
                    "no difference detected" if row["verdict"] == "undecided" else f"budget search {row['verdict']}"
                )
                rows[-1] += [_interval(row["difference"], row["low"], row["high"]), verdict]
    return _markdown(["network", "method", "area", "budget search minus this method", "Holm's test"], rows)


ACTIONS = {"filters": "filters pruned", "block": "a block skipped", "exit": "an earlier exit", "start": "a new start"}


def actions() -> str:
    """Return how often the budget search took which action."""
    rows = []
    for backbone in BACKBONES:
        trace = _read(f"default/runs/{backbone}/budget_search/trace.csv").query("method == @SEARCH")
        rows.append([NETWORKS[backbone], *(str((trace["action"] == action).sum()) for action in ACTIONS)])
    return _markdown(["network", *ACTIONS.values()], rows)


def robustness() -> str:
    """Return accuracy on clean and on corrupted or attacked images, and how much more is lost on the latter."""
    table, rows = _read("default/tables/robustness_summary.csv"), []
    for (backbone, images), some in table.groupby(["backbone", "images"], sort=False):
        some = some[some["method"] != LRP].sort_values("budget", ascending=False, kind="stable")
        for row in some.itertuples():
            cells = [NETWORKS[backbone], images.replace("fgsm", "attacked"), f"{row.budget:.0%}"]
            cells += [METHODS.get(row.method, row.method), f"{row.clean:.3f}", f"{row.corrupted:.3f}"]
            rows.append([*cells, *([_interval(row.more_lost, row.low, row.high)] if row.budget < 1 else [])])
    header = ["network", "images", "multiply-adds left", "method", "clean accuracy", "accuracy on these images"]
    return _markdown([*header, "more lost than on clean images"], rows)


def monitored_errors() -> str:
    """Return how far a monitored accuracy is from the test accuracy, and how the two rank networks."""
    tables = [
        _read(f"default/runs/{backbone}/dynamic/monitored_errors.csv").set_index("monitored") for backbone in BACKBONES
    ]
    measures = {"mean absolute error": 3, "rank correlation": 2}  # and decimals
    rows = [
        [name, *(f"{table.loc[name, measure]:.{places}f}" for measure, places in measures.items() for table in tables)]
        for name in tables[0].index
    ]
    header = [f"{measure}, {NETWORKS[backbone]}" for measure in measures for backbone in BACKBONES]
    return _markdown(["monitored accuracy", *header], rows)


def auc() -> str:
    """Return AUC of every method that is read at a rate."""
    rows = []
    for row in _read("default/tables/auc.csv").itertuples():
        cells = [NETWORKS[row.backbone], METHODS[row.method], f"{row.auc:.3f}", f"{row.auc_sd:.3f}"]
        cells += [f"{row.auc_harmonic_mean:.3f}", f"{row.retention:.3f}"]
        rows.append([*cells, "" if pd.isna(row.difference) else _interval(row.difference, row.low, row.high)])
    header = ["network", "method", "AUC", "sd", "AUC of the harmonic mean", "AUC / unpruned accuracy"]
    return _markdown([*header, f"AUC minus that of {METHODS[LRP]}"], rows)


def controllers() -> str:
    """Return what the controller adds to AUC and to that of the harmonic mean, paired by seed."""
    curves, rows = _read("default/tables/curves.csv", low_memory=False), []
    curves = curves[curves["rate_requested"].notna()]
    for backbone in BACKBONES:
        runs = curves[curves["backbone"] == backbone].groupby(["method", "seed"])
        areas = [
            pd.Series({run: pruning_auc(some["rate_requested"], some[measure]) for run, some in runs}).unstack(0)
            for measure in ("accuracy", "harmonic_mean")
        ]
        for without, method in CONTROLLERS.items():
            if {without, method} <= set(areas[0]):
                cells = [NETWORKS[backbone], METHODS[without]]
                for both in (area[[without, method]].dropna() for area in areas):
                    difference = both[method] - both[without]
                    low, high, _ = paired_interval(difference, curves["overlap"].iloc[0])
                    cells += [f"{both[without].mean():.3f}", _interval(difference.mean(), low, high)]
                rows.append(cells)
    header = ["AUC", "the controller adds", "AUC of the harmonic mean", "the controller adds"]
    return _markdown(["network", "method", *header], rows)


def smallest() -> str:
    """Return the smallest networks within so many points, as the calibration images chose them."""
    rows = []
    for row in _read("default/tables/smallest.csv").itertuples():
        cells = [METHODS.get(row.method, row.method), f"{100 * row.max_accuracy_drop:.0f}"]
        if row.found:
            some = "" if row.found == row.seeds else f" ({row.found} of {row.seeds} seeds)"
            cells += [f"{NETWORKS[row.backbone]}{some}", f"{row.multiply_adds / 1e6:.2f} M"]
            cells += [f"{row.parameters / 1e3:.1f} k", f"{row.accuracy:.3f}"]
            cells += [_interval(row.difference, row.low, row.high)] if row.method != "unpruned" else []
        rows.append(cells)
    header = ["method", "points allowed", "network", "multiply-adds", "parameters", "test accuracy"]
    return _markdown([*header, "minus unpruned"], rows)


COMPOSITES = {
    "epsilon": "epsilon",
    "epsilon-zplus": "z+",
    "epsilon-alpha2-beta1": "alpha2-beta1",
    "epsilon-gamma-box": "gamma, box",
}


def relevance_cost() -> str:
    """Return what relevance costs in forward passes and memory, ours and zennit's."""
    rows = []
    for (network, pixels), some in _read("benchmarks/relevance.csv").groupby(["network", "pixels"], sort=False):
        some = some.set_index("composite")
        for library, name in (("ours", "lrp_core"), ("zennit", "zennit")):
            passes = [f"{some[library][composite]:.1f}" for composite in COMPOSITES]
            memory = f"{some[f'memory_{library}_MiB']['epsilon-zplus']:.0f} MiB"
            rows.append([f"{NETWORKS[network]}, {pixels} px", name, *passes, memory])
    return _markdown(["network", "library", *COMPOSITES.values(), "memory, z+"], rows)


def pruning_cost() -> str:
    """Return the controller's seconds, and how many times those of plain pruning they are."""
    rows = []
    settings = ["network", "filters", "images", "px"]
    for (network, filters, images, pixels), some in _read("benchmarks/cost.csv").groupby(settings, sort=False):
        seconds = some.set_index(["method", "steps"])["seconds"]
        for repair in ("", "+reconstruction"):
            ours = seconds[f"{CONTROLLED}{repair}", "its own"]
            times = [f"{ours / seconds[LRP + repair, steps]:.1f}" for steps in ("its own", "the controller's")]
            cells = [f"{NETWORKS[network]}, {pixels} px", f"{filters:,}", str(images), METHODS[CONTROLLED + repair]]
            rows.append([*cells, f"{ours:.0f}", *times])
    header = ["network", "filters", "images", "method", "seconds", "times iterative LRP with 5 % a step"]
    return _markdown([*header, "times iterative LRP with as many steps"], rows)


def _promise() -> pd.DataFrame:
    return _read("benchmarks/promise.csv").query("seed < @FRESH")


def promise() -> str:
    """Compare what the call's default promises with what unseen images say, last those of draws that chose nothing."""
    every = choices(_read("benchmarks/promise.csv"))
    fresh = every["seed"] >= FRESH
    chosen = every[~fresh]
    groups = [(pair(*names), some) for names, some in chosen.groupby(PAIR, sort=False)] + [("all", chosen)]
    rows = []
    for name, some in [*groups, ("other draws", every[fresh])] if fresh.any() else groups:
        left = some["multiply_adds"]
        cells = [name, f"{left.mean():.2f} ({left.min():.2f} to {left.max():.2f})"]
        needed = some["layer_by_layer"].mean()
        cells += ["" if pd.isna(needed) else f"{needed:.2f}", f"{some['estimated_loss'].mean():+.1f}"]
        rows.append([*cells, *_kept(some["loss"], some["accuracy_holds"])])
    harmonic_mean = _kept(chosen["harmonic_mean_loss"], chosen["harmonic_mean_holds"])
    rows.insert(len(groups), ["all, harmonic mean of the classes", "", "", "", *harmonic_mean])
    header = ["task, network", "multiply-adds left", "layer by layer needs", "predicted drop"]
    return _markdown(
        [*header, "drop on unseen images", "above 2 points", "above 5 points", "intervals that hold"], rows
    )


def promise_images() -> str:
    """Compare what the call keeps by default and with images and head as they are, on the same draws."""
    rows = with_default(_promise())
    found = {method: choices(rows, method).set_index(DRAW) for method in (OURS, DEFAULT)}
    both = found[OURS].index.intersection(found[DEFAULT].index, sort=False).to_frame(index=False)
    trained = both["network"].map(by_default) == CHOSEN
    groups = [(pair(*names), some) for names, some in both.groupby(PAIR, sort=False)]
    groups += [("all trained", both[trained]), ("all frozen", both[~trained])]
    table = []
    for name, some in groups:
        for method, chosen in found.items() if len(some) else ():
            of = chosen.loc[pd.MultiIndex.from_frame(some)]
            cells = [METHODS[method], f"{of['multiply_adds'].mean():.2f}"]
            table.append([name, *cells, *_kept(of["loss"], of["accuracy_holds"])])
    header = ["task, network", "method", "multiply-adds left", "drop on unseen images"]
    return _markdown([*header, "above 2 points", "above 5 points", "intervals that hold"], table)


def _kept(loss: pd.Series, holds: pd.Series) -> list[str]:
    """Return the mean loss, and in how many draws it is beyond 2 and 5 points and the stated interval holds."""
    counts = ((loss > 2).sum(), (loss > 5).sum(), holds.sum())
    return [f"{loss.mean():+.1f}", *(f"{count} of {len(loss)}" for count in counts)]


PROMISED = (DEFAULT, OURS, DISTILLED, LAYER_BY_LAYER, NEURON_MERGING)
PROMISED_SIZES = (0.71, 0.5, 0.3, 0.125)


def promise_errors() -> str:
    """By how much the call's estimates miss the test's values, on average over draws and sizes."""
    missed = errors(_promise())
    table = [[name, f"{row['accuracy']:+.1f}", f"{row['drop']:+.1f}"] for name, row in missed.iterrows()]
    return _markdown(["of", "accuracy, predicted minus tested", "drop, predicted minus tested"], table)


def promised_sizes() -> str:
    """Compare test accuracies at some sizes: the call's default and its alternatives, means of draws."""
    rows, table = with_default(_promise()), []
    for names, some in rows.groupby(PAIR, sort=False):
        at = [at_size(some, size) for size in PROMISED_SIZES]
        for method in PROMISED:
            cells = [_number(one[method].mean(skipna=False)) if method in one else "" for one in at]
            table.append([pair(*names), _number(at[0]["unpruned"].mean()), METHODS[method], *cells])
    return _markdown(["task, network", "unpruned", "method", *(f"{size:.1%}" for size in PROMISED_SIZES)], table)


SIZES = (0.5, 0.25, 0.1)  # of the multiply-adds, at real size
_LEFT = [f"{size:.0%} left" for size in SIZES]
_PARTS = {  # a method, minus another that differs in how filters are chosen, or in the repair
    "our choice, not layer by layer": (OURS, LAYERS_REPAIRED),
    "our choice, not iterative LRP": (OURS, LRP_REPAIRED),
    "our reconstruction, of our choice": (OURS, CHOICE_ALONE),
    "our reconstruction, of layer by layer": (LAYERS_REPAIRED, LAYER_BY_LAYER),
}


def _real_size() -> pd.DataFrame:
    return _read("benchmarks/real_size.csv")


FRONT = (  # with the pairs that lose most; the others are in docs/results.md
    ("cifar10", "resnet20"),
    ("cifar10", "resnet56"),
    ("elpv", "squeezenet1_1"),
    ("trashnet", "squeezenet1_1"),
    ("trashnet", "efficientnet-lite0"),
)


def real_size() -> str:
    """Compare the call's default with LRP and the best plain alternative, at a quarter of the multiply-adds."""
    rows, table = with_default(_real_size()), []
    whole, predicted, measured = means(rows, 1.0), means(rows, 0.25, "accuracy"), draws(rows)
    quarter = means(rows, 0.25).where(measured.ge(measured[DEFAULT], axis=0))
    for names in (names for names in FRONT if names in quarter.index):
        at = quarter.loc[names]
        plain = at.reindex([LAYER_BY_LAYER, SMALLER, SMALLER_INTERMEDIATE]).dropna()
        best = f"{_number(plain.max())} ({METHODS[plain.idxmax()]})"
        ours = [_number(at[DEFAULT]), _number(predicted.loc[names, DEFAULT])]
        table.append([at_real_size(*names), _number(whole.loc[names, DEFAULT]), _number(at[ONE_SHOT]), best, *ours])
    header = ["task, network, image size", "unpruned", "LRP", "best plain alternative", "ours", "ours, as predicted"]
    return _markdown(header, table)


def real_size_sizes() -> str:
    """Compare the call's default with plain alternatives, and with what it predicts, at three sizes."""
    rows, table = with_default(_real_size()), []
    compared = [ONE_SHOT, LAYER_BY_LAYER, SMALLER, SMALLER_INTERMEDIATE, DEFAULT]
    whole = means(rows, 1.0)
    for names in whole.index:
        for size in SIZES:
            at = [_number(value) for value in means(rows, size).reindex(columns=compared).loc[names]]
            predicted = _number(means(rows, size, "accuracy").loc[names, DEFAULT])
            table.append([at_real_size(*names), f"{size:.0%}", _number(whole.loc[names, DEFAULT]), *at, predicted])
    header = ["task, network, image size", "multiply-adds left", "unpruned", *(METHODS[method] for method in compared)]
    return _markdown([*header, "ours, as predicted"], table)


def real_size_methods() -> str:
    """Return the accuracy of every method at three sizes."""
    rows = with_default(_real_size())
    whole, measured, at = means(rows, 1.0), draws(rows), [means(rows, size) for size in SIZES]
    table = []
    for names, count in measured.reindex(columns=NAMES, fill_value=0).iterrows():
        for method in count.index[count > 0]:
            cells = [_number(one.loc[names, method]) for one in (whole, *at)]
            table.append([at_real_size(*names), METHODS[method], str(count[method]), *cells])
    return _markdown(["task, network, image size", "method", "draws", "unpruned", *_LEFT], table)


def real_size_parameters() -> str:
    """Return the parameters that ours leaves at three sizes, by default and on images as given."""
    rows, table = with_default(_real_size()), []
    at = [means(rows, size, "parameters") for size in SIZES]
    for names in at[0].index:
        for method in (DEFAULT, OURS):
            cells = [f"{one.loc[names, method]:.0%}" for one in at]
            table.append([at_real_size(*names), METHODS[method], *cells])
    return _markdown(["task, network, image size", "method", *_LEFT], table)


def real_size_differences() -> str:
    """Return what the call's default has more than the unpruned network and plain alternatives, at three sizes."""
    others = ("unpruned", LAYER_BY_LAYER, LAYERS_PREPARED, SMALLER, SMALLER_INTERMEDIATE)
    return _differences(with_default(_real_size()), *((DEFAULT, other) for other in others))


def real_size_images() -> str:
    """Return what smaller images lose, and what a chosen image size gains over the given one and over such images."""
    return _differences(_real_size(), (SMALLER, "unpruned"), (CHOSEN, OURS), (CHOSEN, SMALLER))


_NEW_HEAD = "unpruned, new head"


def real_size_intermediate() -> str:
    """Return what a head on intermediate features gains: for the unpruned network, smaller images, and ours.

    The unpruned network with such a head is the first row of smaller images with it.
    """
    rows = with_default(_real_size())
    whole = rows[(rows["method"] == SMALLER_INTERMEDIATE) & (rows["multiply_adds"] == 1)]
    alike = [whole.assign(multiply_adds=size, limit=size, method=_NEW_HEAD) for size in SIZES]
    alone = ((_NEW_HEAD, "unpruned"), (SMALLER_INTERMEDIATE, SMALLER), (SMALLER_INTERMEDIATE, OURS))
    both = ((DEFAULT, other) for other in (OURS, CHOSEN, SMALLER_HALF, _NEW_HEAD))
    rows = rows[rows["network"].isin(whole["network"])]
    return _differences(pd.concat([rows, *alike]), *alone, *both)


def _differences(rows: pd.DataFrame, *pairs: tuple[str, str]) -> str:
    """Return differences of methods, the first minus the second, at three sizes."""
    table, found = [], {}
    whole, at = accuracies(rows, 1.0), {size: accuracies(rows, size) for size in SIZES}
    for both in pairs:
        for size in SIZES:
            with_whole = at[size].assign(unpruned=whole[both[0] if both[0] in whole else OURS])
            found[both, size] = differences(with_whole, overlaps(rows), *both)
    for names, _ in rows.groupby(PAIR):
        for both in pairs:
            by_size = [found[both, size] for size in SIZES]
            cells = [_interval(*one.loc[names, _MEAN]) if names in one.index else "" for one in by_size]
            difference = " minus ".join(METHODS.get(method, method) for method in both)
            table += [[at_real_size(*names), difference, *cells]] if any(cells) else []
    return _markdown(["task, network, image size", "difference", *_LEFT], table)


def real_size_parts() -> str:
    """Return what the choice of filters and the repair gain at three sizes, each with the other part alike."""
    rows, table = _real_size(), []
    gains = {
        size: [differences(accuracies(rows, size), overlaps(rows), *both) for both in _PARTS.values()] for size in SIZES
    }
    for names, _ in rows.groupby(PAIR):
        for size in SIZES:
            cells = [_interval(*one.loc[names, _MEAN]) if names in one.index else "" for one in gains[size]]
            table += [[at_real_size(*names), f"{size:.0%}", *cells]] if any(cells) else []
    return _markdown(["task, network, image size", "multiply-adds left", *_PARTS], table)


def real_size_estimates() -> str:
    """Compare what the call predicts with what the test images say, at three sizes."""
    rows, table, draw = with_default(_real_size()), [], [*PAIR, "seed", "method"]
    whole = rows[rows["multiply_adds"] == 1].drop_duplicates(draw).set_index(draw)["test_accuracy"]
    rows = rows.join(whole.rename("unpruned"), on=draw).dropna(subset="accuracy")
    for (*names, method), of_pair in rows.groupby([*PAIR, "method"]):
        name, *options = method.split()
        for size in SIZES:
            some = of_pair[of_pair["limit"] == size]
            predicted, found = some["accuracy"], some["test_accuracy"]
            held = found.between(some["accuracy_low"], some["accuracy_high"]).sum()
            cells = [at_real_size(*names), ", ".join([METHODS[name], *options]), f"{size:.0%}"]
            cells += [_number(value) for value in (predicted.mean(), found.mean(), (predicted - found).abs().mean())]
            drops = ["", ""]
            if some["drop"].notna().all():
                drops = [f"{some['drop'].mean():+.1f}", f"{100 * (some['unpruned'] - found).mean():+.1f}"]
            table += [[*cells, f"{held} of {len(some)}", *drops]] if len(some) else []
    header = ["task, network, image size", "method", "multiply-adds left", "predicted accuracy", "test accuracy"]
    header += ["mean distance", "90 % intervals that hold", "predicted drop", "drop on test images"]
    return _markdown(header, table)


_MEAN = ["mean", "low", "high"]


def real_size_controller() -> str:
    """Return what the controller adds: to both areas against the pruning rate, and to the accuracy at half the cost."""
    rows, table = _real_size(), []
    found = [*(areas(rows, measure) for measure in ("test_accuracy", "test_harmonic_mean")), accuracies(rows, 0.5)]
    gains = {
        without: [differences(one, overlaps(rows), method, without) for one in found]
        for without, method in (CONTROLLERS | WITH_REPAIR).items()
    }
    for names, _ in rows.groupby(PAIR):
        for without, by_measure in gains.items():
            if names in by_measure[0].index:
                gain = [one.loc[names] if names in one.index else None for one in by_measure]
                cells = [("", "") if row is None else (_number(row["other"]), _interval(*row[_MEAN])) for row in gain]
                table.append([at_real_size(*names), METHODS[without], f"{gain[0]['draws']:.0f}", *chain(*cells)])
    header = ["task, network, image size", "method", "draws"]
    for measure in ("AUC", "AUC of the harmonic mean", "accuracy at 50% of the multiply-adds"):
        header += [measure, "the controller adds"]
    return _markdown(header, table)


def _by_size(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what a network was asked for: a limit of multiply-adds, a pruning ratio, or (alternatives) a share."""
    limits, ratios, shares = (
        rows[name].map(f"{name} {{:.3f}}".format) for name in ("limit", "pruning_ratio", "multiply_adds")
    )
    return rows.assign(size=limits.where(rows["limit"].notna(), ratios.where(rows["pruning_ratio"].notna(), shares)))


def gpu() -> str:
    """Compare the draws that were measured on a GPU and on a CPU: accuracies at each size, and seconds."""
    key, table = [*PAIR, "method", "seed", "size"], []
    rows = with_default(_by_size(pd.concat([_read("benchmarks/gpu.csv"), _real_size()]))).dropna(subset="seconds")
    on_cpu = rows["device"] == "cpu"
    both = rows[~on_cpu].merge(rows[on_cpu], on=key, suffixes=("", "_cpu"), validate="many_to_one")
    both = both[both["accuracy"].isna() == both["accuracy_cpu"].isna()]  # predictions take most of the time
    both["apart"] = (both["test_accuracy"] - both["test_accuracy_cpu"]).abs()
    for (*names, method, device), some in both.groupby([*PAIR, "method", "device"]):
        cells = [at_real_size(*names), METHODS[method], device, str(some["seed"].nunique())]
        cells += [f"{some['apart'].mean():.3f}", f"{some['apart'].max():.3f}"]
        table.append([*cells, *(f"{some[seconds].mean():.0f}" for seconds in ("seconds_cpu", "seconds"))])
    header = ["task, network, image size", "method", "GPU", "draws", "mean difference in accuracy", "largest"]
    return _markdown([*header, "seconds, CPU", "seconds, GPU"], table)


def few_images() -> str:
    """Return accuracies by the number of labelled images, and the lead over layer by layer with our reconstruction."""
    rows, table, nothing = _read("benchmarks/few_images.csv"), [], pd.Series(dtype=float)
    columns = [(OURS, 0.5), (OURS, 0.25), (LAYER_BY_LAYER, 0.25), (LAYERS_REPAIRED, 0.25), (CHOSEN, 0.25)]
    for (*names, images), some in rows.groupby([*PAIR, "images"]):
        at = {size: accuracies(some, size) for size in (1.0, 0.5, 0.25)}
        lead = differences(at[0.25], overlaps(some), OURS, LAYERS_REPAIRED)
        cells = [_number(at[size].get(method, nothing).mean()) for method, size in (("unpruned", 1.0), *columns)]
        cells.append(_number(accuracies(some, 0.25, "accuracy").get(CHOSEN, nothing).mean(skipna=False)))
        cells += [_interval(*row[_MEAN]) for _, row in lead.iterrows()]
        table.append([at_real_size(*names), str(images), str(some["seed"].nunique()), *cells])
    header = [f"{METHODS[method]}, {size:.0%} left" for method, size in columns]
    header = ["task, network, image size", "images per class", "draws", "unpruned", *header, "the same, as predicted"]
    return _markdown([*header, "ours minus layer by layer, reconstruction, 25% left"], table)


def robustness_at_real_size() -> str:
    """Return accuracies on clean and on corrupted images, what is kept of them, and how much more the latter lose."""
    rows, table = _read("benchmarks/robustness.csv"), []
    for names, some in rows.groupby(PAIR):
        found = robustness_summary(some.assign(backbone=names[1]), CORRUPTIONS)
        (whole,) = found[found["budget"] == 1].itertuples()
        for row in found.sort_values("budget", ascending=False, kind="stable").itertuples():
            cells = [at_real_size(*names), str(row.seeds), f"{row.budget:.0%}", METHODS.get(row.method, row.method)]
            cells += [_number(row.clean), _number(row.corrupted)]
            if row.budget < 1:
                cells += [f"{row.clean / whole.clean:.0%}", f"{row.corrupted / whole.corrupted:.0%}"]
                cells.append(_interval(row.more_lost, row.low, row.high))
            table.append(cells)
    header = ["task, network, image size", "draws", "multiply-adds left", "method", "clean accuracy"]
    header += ["accuracy on corrupted images", "clean, kept", "corrupted, kept"]
    return _markdown([*header, "more lost than on clean images"], table)


PARAMETERS = (0.75, 0.5, 0.25)  # left, in the published setting


def published() -> str:
    """Return the share of the unpruned accuracy that is kept in the setting of El Halabi et al."""
    rows = _read("benchmarks/published.csv")
    whole = accuracies(rows, 1.0, size="parameters")["unpruned"]
    kept = [accuracies(rows, limit, size="parameters").div(whole, axis=0) for limit in PARAMETERS]
    names, table = METHODS | {OURS: "ours", DISTILLED: "ours, distillation"}, []  # with such a budget, the default
    for method in (OURS, DISTILLED, LAYER_BY_LAYER, LAYERS_REPAIRED, NEURON_MERGING, ONE_SHOT, "weight"):
        found = [one[method].dropna() if method in one else pd.Series(dtype=float) for one in kept]
        cells = [
            _number(one.mean()) + (f" ({one.min():.3f} to {one.max():.3f})" if len(one) > 1 else "") for one in found
        ]
        table += [[names[method], str(max(map(len, found))), *cells]] if any(cells) else []
    return _markdown(["method", "draws", *(f"{limit:.0%} of the parameters left" for limit in PARAMETERS)], table)


TRAININGS = ("none", "fine-tuning", "fine-tuning, best rate by test", "distillation", "fine-tuning before")
TRAINED = ("unpruned", "ours", "layer by layer")
_PRUNED = {"ours": METHODS[OURS]}  # there


def training() -> str:
    """Return the accuracy that training gives on the same images, by network and training: means of draws."""
    rows, table = _read("benchmarks/training.csv"), []
    keys = [*PAIR, "pruning", "multiply_adds", "training"]
    found = rows.groupby(keys)["test_accuracy"].mean().unstack("training").reindex(columns=TRAININGS)
    seeds = rows.groupby(PAIR)["seed"].nunique()
    for names, some in found.groupby(PAIR):
        for pruning in TRAINED:
            for (*_, size), cells in some[some.index.isin([pruning], level="pruning")][::-1].iterrows():
                network = pruning if size == 1 else f"{_PRUNED.get(pruning, pruning)}, {size:.0%} left"
                table.append([f"{pair(*names)} ({seeds[names]})", network, *map(_number, cells)])
    header = ["no training", "fine-tuning", "fine-tuning, best step size by test images", "distillation"]
    return _markdown(["task, network (draws)", "pruned by", *header, "fine-tuning before pruning"], table)


_TRAINED_GAINS = {  # a pruning and a training, minus another
    "unpruned: fine-tuning gains": ("unpruned: fine-tuning", "unpruned: none"),
    "ours: fine-tuning before gains": ("ours: fine-tuning before", "ours: none"),
    "ours: fine-tuning after gains": ("ours: fine-tuning", "ours: none"),
    "ours: fine-tuning before, minus after": ("ours: fine-tuning before", "ours: fine-tuning"),
    "ours: distillation gains": ("ours: distillation", "ours: none"),
    "layer by layer, fine-tuned, minus ours": ("layer by layer: fine-tuning", "ours: none"),
}


def training_gains() -> str:
    """Return by how much training exceeds no training, on the same draws: unpruned, or at a quarter."""
    rows, table = _read("benchmarks/training.csv"), []
    rows = rows[rows["multiply_adds"].isin([1.0, 0.25])]
    rows = rows.assign(what=rows["pruning"] + ": " + rows["training"])
    found = rows.set_index([*PAIR, "seed", "what"])["test_accuracy"].unstack("what")
    gains = [differences(found, overlaps(rows), *both) for both in _TRAINED_GAINS.values()]
    for names, some in found.groupby(PAIR):
        cells = [_interval(*one.loc[names, _MEAN]) if names in one.index else "" for one in gains]
        table += [[pair(*names), str(len(some)), *cells]] if any(cells) else []
    header = [name.replace("ours", _PRUNED["ours"]) for name in _TRAINED_GAINS]
    return _markdown(["task, network", "draws", *header], table)


def zoo(source: str) -> str:
    """List the classifiers of a library that are read: what they are, and whether what comes of them is right."""
    rows, table = _read("benchmarks/zoo.csv"), []
    for row in rows[(rows["source"] == source) & rows["refused"].isna()].itertuples():
        arrived = "no bound" if abs(row.relevance_at_pixels) > 100 else f"{row.relevance_at_pixels:.2f}"
        sizes = [f"{row.layers:.0f}", f"{row.filters:,.0f}", f"{row.removable / row.filters:.1%}"]
        left = [f"{row.multiply_adds:.3f}", f"{row.parameters:.2f}"]
        files = ["" if pd.isna(row.exported) else f"{error:.1g}" for error in (row.reloaded, row.exported)]
        error = f"{row.error:.0e} ({row.dtype})"
        table.append([row.network, *sizes, arrived, *left, f"{row.pruning_seconds:.0f}", error, *files])
    header = ["network", "layers", "filters", "removable", "relevance that reaches the pixels", "multiply-adds left"]
    header += ["parameters left", "seconds", "error against the masked network", "of its file", "exported"]
    return _markdown(header, table)


def refused() -> str:
    """List the classifiers that are refused, and what is said."""
    rows = _read("benchmarks/zoo.csv")
    some = rows[rows["refused"].notna()]
    return _markdown(["network", "what is said"], [[row.network, f"`{row.refused}`"] for row in some.itertuples()])


TABLES: dict[str, Callable[[], str]] = {
    "real-size": real_size,
    "real-size-methods": real_size_methods,
    "real-size-differences": real_size_differences,
    "real-size-images": real_size_images,
    "real-size-intermediate": real_size_intermediate,
    "real-size-parts": real_size_parts,
    "real-size-estimates": real_size_estimates,
    "real-size-sizes": real_size_sizes,
    "real-size-parameters": real_size_parameters,
    "real-size-controller": real_size_controller,
    "few-images": few_images,
    "robustness-at-real-size": robustness_at_real_size,
    "gpu": gpu,
    "published": published,
    "promise": promise,
    "promise-images": promise_images,
    "promise-errors": promise_errors,
    "promised-sizes": promised_sizes,
    "training": training,
    "training-gains": training_gains,
    "controllers": controllers,
    "monitored-errors": monitored_errors,
    "collapse": collapse,
    "areas-over-multiply-adds": areas_over_multiply_adds,
    "ablations": ablations,
    "actions": actions,
    "robustness": robustness,
    "smallest": smallest,
    "auc": auc,
    "relevance-cost": relevance_cost,
    "pruning-cost": pruning_cost,
    "zoo-torchvision": partial(zoo, "torchvision"),
    "zoo-timm": partial(zoo, "timm"),
    "zoo-hugging-face": partial(zoo, "transformers"),
    "zoo-refused": refused,
}
END = "<!-- end of table -->"


def with_tables(text: str, tables: dict[str, Callable[[], str]]) -> tuple[str, list[str]]:
    """Return a page's text with its tables made anew, and the names of those that were not current.

    Raises:
        ValueError: a table that is unknown or has no end, or an end without a table.
    """
    pieces, stale, position = [], [], 0
    markers = list(re.finditer(r"^<!-- (?:table: (.+?)|end of table) -->$", text, re.MULTILINE))
    for start, end in zip(markers[::2], [*markers[1::2], None], strict=False):
        if not (name := start[1]):
            raise ValueError(f"{END} ends no table; before it: {text[: start.start()].rstrip()[-60:]!r}")
        check_choice("table", name, tables)
        if end is None or end[1]:
            raise ValueError(f"the table {name!r} is not closed: {END} is missing")
        made = f"\n\n{tables[name]()}\n\n"
        stale += [name] if text[start.end() : end.start()] != made else []
        pieces += [text[position : start.end()], made]
        position = end.start()
    return "".join([*pieces, text[position:]]), stale


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the tables on all pages, or exit with 1 and say which are stale."""
    parser = argparse.ArgumentParser(description="write the tables on README.md and docs/ from results/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is stale")
    check = parser.parse_args(arguments).check
    changed = {}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        try:
            text, stale = with_tables(page.read_text(encoding="utf-8"), TABLES)
        except ValueError as error:
            sys.exit(f"{page.relative_to(ROOT)}: {error}")
        if stale:
            changed[page] = text
            print(f"{page.relative_to(ROOT)}: {'stale' if check else 'written'}: {', '.join(stale)}")
    if changed and check:
        sys.exit("run make tables")
    for page, text in changed.items():
        with atomic(page) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
