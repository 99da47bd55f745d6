"""The tables on README.md and docs/, written from the CSV files under results/: ``make tables``.

A table stands between two lines, ``<!-- table: NAME -->`` and ``<!-- end of table -->``; :data:`TABLES` has the names.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from lrp_core.metrics.curve import pruning_auc
from lrp_core.study.analysis.areas import unpruned
from lrp_core.study.analysis.promise import DEFAULT as CALL
from lrp_core.study.analysis.promise import DISTILLED, LAYER_BY_LAYER, NEURON_MERGING, at_size, choices
from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.study.paths import ROOT
from lrp_core.utils.errors import check_choice
from lrp_core.utils.files import atomic


class Task(NamedTuple):
    """A network on a data set, and the profile whose results they are."""

    profile: str
    dataset: str
    backbone: str


TASKS = (
    Task("full", "elpv", "efficientnet-lite0"),
    Task("full", "elpv", "squeezenet1_1"),
    Task("vgg16", "elpv", "vgg16"),
    Task("cifar10", "cifar10", "efficientnet-lite0"),
    Task("cifar10", "cifar10", "squeezenet1_1"),
)
DEFAULT = (Task("default", "elpv", "efficientnet-lite0"), Task("default", "elpv", "squeezenet1_1"))
P = "px-iterative-abs"
REFITTED, RECONSTRUCTED = f"{P}+refit", f"{P}+reconstruction+refit"
EXIT, EXIT_PRUNED, SEARCH = "early-exit", f"early-exit+{RECONSTRUCTED}", "budget-search"


def _read(path: str, **options) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / path, **options)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([*cells, *[""] * (len(header) - len(cells))] for cells in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _name(method: str) -> str:
    return f"`{method.replace(P, 'P')}`"


def _names(tasks: Iterable[Task]) -> list[str]:
    return [f"{task.dataset}, {task.backbone}" for task in tasks]


def _doubt(low: float, high: float) -> str:
    return " (?)" if low <= 0 <= high else ""


def _auc(task: Task, measure: str, methods: Sequence[str]) -> pd.DataFrame:
    """Return areas over the filters removed: a row a seed, a column for each of the methods that was run."""
    curves = _read(f"{task.profile}/tables/curves.csv")
    curves = curves[(curves["backbone"] == task.backbone) & curves["rate_requested"].notna()]
    runs = curves[curves["method"].isin(methods)].groupby(["method", "seed"])
    return pd.Series({run: pruning_auc(rows["rate_requested"], rows[measure]) for run, rows in runs}).unstack(0)


def _more(areas: pd.DataFrame, method: str, other: str) -> tuple[float, float, float, float]:
    """Return by how much one column exceeds another on their common seeds: mean, interval, share of the other."""
    both = areas[[method, other]].dropna()
    differences = both[method] - both[other]
    low, high, *_ = paired_interval(differences)
    return differences.mean(), low, high, differences.mean() / both[other].mean()


def _interval(difference: float, low: float, high: float) -> str:
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"


def areas_over_filters(tasks: Sequence[Task]) -> str:
    """Return AUC with the head as it was and with a refitted one, and gains over ``P``, on common seeds."""
    methods = [P, "dynamic", "joint", "dynamic-joint", REFITTED]
    rows = []
    for task in tasks:
        areas = _auc(task, "accuracy", methods).dropna()
        cells = [task.dataset, task.backbone, str(len(areas))]
        for method in methods:
            cells.append(f"{fmean(areas[method]):.3f}" if method in areas else "")
            if method in areas and method not in (P, REFITTED):
                _, low, high, share = _more(areas, method, P)
                cells[-1] += f", {share:+.0%} ({low:+.3f} to {high:+.3f})" + _doubt(low, high)
        rows.append(cells)
    return _markdown(["task", "network", "seeds", *map(_name, methods)], rows)


def areas_over_multiply_adds(tasks: Sequence[Task]) -> str:
    """Return areas over multiply-adds on common seeds, and what ``budget-search`` has more than three others."""
    methods, others = [P, REFITTED, RECONSTRUCTED, EXIT, EXIT_PRUNED, SEARCH], [RECONSTRUCTED, EXIT, EXIT_PRUNED]
    folder = f"{tasks[0].profile}/tables"
    every = (
        _read(f"{folder}/areas.csv").set_index(["dataset", "backbone", "method", "seed"])["multiply_adds"].sort_index()
    )
    compared = _read(f"{folder}/comparisons.csv").query("measure == 'multiply_adds'")
    compared = compared.set_index(["dataset", "backbone", "other"])
    rows = []
    for task in tasks:
        areas = every[task.dataset, task.backbone].unstack("method").filter(methods).dropna()
        curves = _read(f"{task.profile}/tables/curves.csv")
        whole = unpruned(curves[curves["backbone"] == task.backbone])["accuracy"].mean()
        cells = [task.dataset, task.backbone, f"{whole:.3f}"]
        cells += [f"{fmean(areas[method]):.3f}" if method in areas else "" for method in methods]
        for other in others:
            if (key := (task.dataset, task.backbone, other)) in compared.index:
                row = compared.loc[key]
                doubt = " (?)" if row["verdict"] == "undecided" else ""
                cells.append(_interval(row["difference"], row["low"], row["high"]) + doubt)
            else:
                cells.append("")
        rows.append(cells)
    against = [f"{_name(SEARCH)} against {_name(other)}" for other in others]
    return _markdown(["task", "network", "unpruned", *map(_name, methods), *against], rows)


def collapse() -> str:
    """Return what pruning loses with the head as it was and refitted, and how much of the loss is the head's."""
    table = _read("full/tables/collapse.csv")
    header = ["task", "network", *(f"{rate:.0%} of the filters pruned" for rate in table["rate"].unique())]
    rows = []
    for (dataset, backbone), losses in table.groupby(["dataset", "backbone"], sort=False):
        shares = ["" if pd.isna(share) else f" ({share:.0%})" for share in losses["head_share"]]
        lost = zip(losses["lost"], losses["lost_refitted"], shares, strict=True)
        rows.append([dataset, backbone, *(f"{before:.2f} to {after:.2f}{share}" for before, after, share in lost)])
    return _markdown(header, rows)


ABLATIONS = {  # what changes: without it, with it
    "the head is refitted": (P, REFITTED),
    "the network is reconstructed": (REFITTED, RECONSTRUCTED),
    "the backbone exits early": (RECONSTRUCTED, EXIT_PRUNED),
    "the controller chooses among three actions": (RECONSTRUCTED, SEARCH),
    "the third action, skipping blocks": (f"{SEARCH}-filters-exit", SEARCH),
    "blocks are skipped in the order of CKA": (SEARCH, f"{SEARCH}-cka"),
    "the controller, head as it was": (P, "dynamic"),
    "the head is refitted, filters chosen jointly": ("joint", "joint+refit"),
    "the controller, filters chosen jointly": ("joint", "dynamic-joint"),
}


def ablations() -> str:
    """Return what each change is worth by the area over multiply-adds."""
    keys = ["backbone", "without", "with_ablation"]
    tables = {
        task.profile: _read(f"{task.profile}/tables/ablations.csv").query("measure == 'multiply_adds'").set_index(keys)
        for task in TASKS
    }
    rows = []
    for what, (without, changed) in ABLATIONS.items():
        cells = []
        for task in TASKS:
            if (key := (task.backbone, without, changed)) in tables[task.profile].index:
                row = tables[task.profile].loc[key]
                cells.append(f"{row['difference']:+.3f}" + _doubt(row["low"], row["high"]))
            else:
                cells.append("")
        rows.append([what, _name(without), *cells])
    return _markdown(["what changes", "from", *_names(TASKS)], rows)


ACTIONS = {"filters": "filters pruned", "block": "a block skipped", "exit": "an earlier exit", "start": "a new start"}


def actions() -> str:
    """Return how often the budget search took which action."""
    rows = []
    for task in TASKS:
        trace = _read(f"{task.profile}/runs/{task.backbone}/budget_search/trace.csv").query("method == @SEARCH")
        counts = [str((trace["action"] == action).sum()) for action in ACTIONS]
        rows.append([task.dataset, task.backbone, str(trace["seed"].nunique()), *counts])
    return _markdown(["task", "network", "seeds", *ACTIONS.values()], rows)


def robustness() -> str:
    """Return accuracy on clean and on corrupted or attacked images, and how much more is lost on the latter."""
    methods = [REFITTED, RECONSTRUCTED, EXIT, EXIT_PRUNED, SEARCH]
    rows = []
    for task in TASKS:
        table = _read(f"{task.profile}/tables/robustness_summary.csv").query("backbone == @task.backbone")
        for (images, budget), some in table[table["budget"] < 1].groupby(["images", "budget"], sort=False):
            whole = table[(table["method"] == "unpruned") & (table["images"] == images)].iloc[0]
            cells = [
                task.dataset,
                task.backbone,
                images,
                f"{budget:.0%}",
                f"{whole.clean:.2f} to {whole.corrupted:.2f}",
            ]
            some = some.set_index("method")
            for method in methods:
                cells.append("")
                if method in some.index:
                    row = some.loc[method]
                    more = f"{row.more_lost:+.2f}{_doubt(row.low, row.high)}"
                    cells[-1] = f"{row.clean:.2f} to {row.corrupted:.2f}, {more}"
            rows.append(cells)
    return _markdown(["task", "network", "images", "multiply-adds", "unpruned", *map(_name, methods)], rows)


def monitored_errors() -> str:
    """Return how far a monitored accuracy is from the test accuracy, and how the two rank networks."""
    tables = [
        _read(f"{task.profile}/runs/{task.backbone}/dynamic/monitored_errors.csv").set_index("monitored")
        for task in TASKS
    ]
    rows = []
    for name in tables[0].index:
        found = [table.loc[name] if name in table.index else None for table in tables]
        cells = (
            "" if row is None else f"{row['mean absolute error']:.3f} ({row['rank correlation']:.2f})" for row in found
        )
        rows.append([name, *cells])
    return _markdown(["monitored accuracy", *_names(TASKS)], rows)


def _development(rows: pd.DataFrame, usual: pd.DataFrame, measure: str) -> str:
    """Return the mean of development runs and, of other runs than the usual ones, what they have more than those."""
    text = f"{fmean(rows[measure]):.3f}"
    if rows.index.equals(usual.index):
        return text
    areas = pd.DataFrame({"it": rows.set_index("seed")[measure], "usual": usual.set_index("seed")[measure]})
    return f"{text}, {_interval(*_more(areas, 'it', 'usual')[:3])}"


def controllers_by_monitored() -> str:
    """Return what the controller makes of each monitored accuracy, on development seeds."""
    table = _read("benchmarks/monitored.csv", keep_default_na=False)
    usual = table[table["monitored"] == "cross-fitted"]
    rows = [
        [_name(method), monitored, f"{some['evaluations'].mean():.0f}"]
        + [_development(some, usual, measure) for measure in ("auc", "auc_harmonic_mean")]
        for (method, monitored), some in table.groupby(["method", "monitored"], sort=False)
    ]
    return _markdown(["method", "monitored accuracy", "evaluations", "AUC", "AUC of the harmonic mean"], rows)


def corrupted_copies() -> str:
    """Return what copies of the calibration images are worth, by the images that are tested, on development seeds."""
    table = _read("benchmarks/corrupted.csv", keep_default_na=False)
    columns = ["dataset", "network", "method", "copies", "used for"]
    rows = []
    for (dataset, network, method, copies, use), some in table.groupby(columns, sort=False):
        cells = [dataset, network, _name(method), copies, use]
        cells.append(f"{some['evaluations'].mean():.0f}")
        task = table[(table["dataset"] == dataset) & (table["network"] == network) & (table["method"] == method)]
        usual = task[task["copies"] == ""]
        for images, tested in some.groupby("images", sort=False):
            cells.append(_development(tested, usual[usual["images"] == images], "auc"))
        rows.append(cells)
    header = ["task", "network", "method", "copies", "used for", "evaluations", "AUC, clean", "seen", "unseen"]
    return _markdown(header, rows)


def auc() -> str:
    """Return AUC of every method that is read at a rate."""
    rows = []
    for profile in dict.fromkeys(task.profile for task in TASKS):
        for row in _read(f"{profile}/tables/auc.csv").itertuples():
            cells = [profile, row.backbone, _name(row.method), f"{row.seeds:.0f}"]
            cells += [f"{row.auc:.3f} ± {row.auc_sd:.3f}", f"{row.auc_harmonic_mean:.3f}", f"{row.retention:.3f}"]
            if pd.isna(row.difference):
                rows.append([*cells, "", "", row.verdict])
            else:
                interval = f"{row.low:+.3f} to {row.high:+.3f}"
                rows.append([*cells, f"{row.gain:+.1%}", interval, row.verdict.split(":")[0]])
    header = ["profile", "network", "method", "seeds", "AUC (mean ± sd)", "AUC of the harmonic mean", "retention"]
    return _markdown([*header, "gain", "95 % interval of the difference", ""], rows)


def controllers() -> str:
    """Return what the controller adds to AUC and to that of the harmonic mean, paired by seed."""
    rows = []
    for task in TASKS:
        methods = [P, "dynamic", "joint", "dynamic-joint"]
        areas = [_auc(task, measure, methods) for measure in ("accuracy", "harmonic_mean")]
        for method, without in (("dynamic", P), ("dynamic-joint", "joint")):
            found = [_more(some, method, without) for some in areas]
            cells = [f"{_interval(*numbers)}, {share:+.0%}" for *numbers, share in found]
            seeds = areas[0][[method, without]].dropna()
            rows.append([task.dataset, task.backbone, _name(method), _name(without), str(len(seeds)), *cells])
    return _markdown(["task", "network", "method", "against", "seeds", "AUC", "AUC of the harmonic mean"], rows)


def evaluations() -> str:
    """Return what the controller gains by more evaluations, on development seeds."""
    table = _read("benchmarks/evaluations.csv")
    means = table.groupby(["network", "method", "settings"], sort=False)[["evaluations", "auc", "auc_harmonic_mean"]]
    rows = []
    for (network, method, settings), row in (means := means.mean()).iterrows():
        gain = row["auc"] / means.loc[(network, P, "default"), "auc"] - 1
        cells = [f"{row['evaluations']:.0f}", f"{row['auc']:.3f}", f"{gain:+.0%}", f"{row['auc_harmonic_mean']:.3f}"]
        rows.append([network, _name(method), settings, *cells])
    header = ["network", "method", "settings", "evaluations", "AUC", f"against {_name(P)}", "AUC of the harmonic mean"]
    return _markdown(header, rows)


def smallest() -> str:
    """Return the smallest networks within so many points, as the calibration images chose them."""
    rows = []
    for row in _read("full/tables/smallest.csv").itertuples():
        if row.method not in ("unpruned", P, REFITTED, RECONSTRUCTED, EXIT, EXIT_PRUNED, SEARCH):
            continue
        cells = [row.dataset, _name(row.method), f"{100 * row.max_accuracy_drop:.0f}", f"{row.found} of {row.seeds}"]
        if row.found:
            cells += [row.backbone, f"{row.multiply_adds / 1e6:.2f} M", f"{row.parameters / 1e3:.0f} k"]
            compared = row.method != "unpruned" and not pd.isna(row.low)
            cells += [f"{row.accuracy:.3f}", _interval(row.difference, row.low, row.high) if compared else ""]
        rows.append(cells)
    header = ["task", "method", "points", "found in", "network", "multiply-adds", "parameters", "test accuracy"]
    return _markdown([*header, "difference"], rows)


COMPOSITES = {
    "epsilon": "epsilon",
    "epsilon-zplus": "z+",
    "epsilon-alpha2-beta1": "alpha2-beta1",
    "epsilon-gamma-box": "gamma, box",
}


def relevance_cost() -> str:
    """Return what relevance costs in forward passes and memory, ours and (zennit's)."""
    rows = []
    for (network, pixels), some in _read("benchmarks/relevance.csv").groupby(["network", "pixels"], sort=False):
        some = some.set_index("composite")
        cells = [f"{some.ours[name]:.1f} ({some.zennit[name]:.1f})" for name in COMPOSITES]
        memory = some.loc["epsilon-zplus"]
        rows.append(
            [network, str(pixels), *cells, f"{memory.memory_ours_MiB:.0f} ({memory.memory_zennit_MiB:.0f}) MiB"]
        )
    return _markdown(["network", "px", *COMPOSITES.values(), "memory (z+)"], rows)


def pruning_cost() -> str:
    """Return the controller's seconds, and how many times those of plain pruning they are."""
    repairs = ["", "+reconstruction"]
    rows = []
    settings = ["network", "filters", "images", "px"]
    for (network, filters, images, pixels), some in _read("benchmarks/cost.csv").groupby(settings, sort=False):
        cells = [network, f"{filters:,}", str(images), str(pixels)]
        seconds = some.set_index(["method", "steps"])["seconds"]
        for repair in repairs:
            ours = seconds[f"dynamic{repair}", "its own"]
            plain = [seconds[P + repair, steps] for steps in ("its own", "the controller's")]
            cells += [f"{ours:.0f} s", *(f"{ours / other:.1f}" for other in plain)]
        rows.append(cells)
    header = [name for repair in repairs for name in (f"`dynamic{repair}`", "times 5 % a step", "times as many steps")]
    return _markdown([*settings, *header], rows)


def promise() -> str:
    """Compare what the call's default promises with what unseen images say."""
    chosen = choices(_read("benchmarks/promise.csv"))
    header = [
        "task",
        "network",
        "draws",
        "multiply-adds left",
        "layer by layer as good: left",
        "estimated fall",
        "fall on unseen images: mean",
        "most",
        "beyond 5 points",
        "of the harmonic mean: mean",
        "beyond 5",
        "accuracy within its interval",
        "harmonic mean within its",
    ]
    every = [(*names, some) for names, some in chosen.groupby(["task", "network"], sort=False)]
    return _markdown(header, [_promised(*one) for one in [*every, ("all", "", chosen)]])


def _promised(task: str, network: str, chosen: pd.DataFrame) -> list[str]:
    n, left = len(chosen), chosen["multiply_adds"]
    return [
        task,
        network,
        str(n),
        f"{left.mean():.2f} ({left.min():.2f} to {left.max():.2f})",
        f"{chosen['layer_by_layer'].mean():.2f}",
        f"{chosen['estimated_loss'].mean():+.1f}",
        f"{chosen['loss'].mean():+.1f}",
        f"{chosen['loss'].max():+.1f}",
        f"{(chosen['loss'] > 5).sum()} of {n}",
        f"{chosen['harmonic_mean_loss'].mean():+.1f}",
        f"{(chosen['harmonic_mean_loss'] > 5).sum()} of {n}",
        f"{chosen['accuracy_holds'].sum()} of {n}",
        f"{chosen['harmonic_mean_holds'].sum()} of {n}",
    ]


PROMISED = {
    CALL: f"`{CALL}`",
    DISTILLED: f"`{DISTILLED}`",
    LAYER_BY_LAYER: "layer by layer",
    NEURON_MERGING: "Neuron Merging",
}
PROMISED_SIZES = (0.71, 0.5, 0.3, 0.125)


def promised_sizes() -> str:
    """Compare test accuracies at some sizes: the call's default and its alternatives, means of draws."""
    rows, table = _read("benchmarks/promise.csv"), []
    for (task, network), some in rows.groupby(["task", "network"], sort=False):
        for method, name in PROMISED.items():
            at = [at_size(some, size) for size in PROMISED_SIZES]
            cells = [f"{one[method].mean():.3f}" if method in one and one[method].notna().all() else "" for one in at]
            table.append([task, network, f"{at[0]['unpruned'].mean():.3f}", name, *cells])
    return _markdown(["task", "network", "unpruned", "method", *(f"{size:.1%}" for size in PROMISED_SIZES)], table)


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
    "areas-over-filters": partial(areas_over_filters, TASKS),
    "areas-over-multiply-adds": partial(areas_over_multiply_adds, TASKS),
    "default-areas-over-filters": partial(areas_over_filters, DEFAULT),
    "default-areas-over-multiply-adds": partial(areas_over_multiply_adds, DEFAULT),
    "collapse": collapse,
    "ablations": ablations,
    "actions": actions,
    "robustness": robustness,
    "monitored-errors": monitored_errors,
    "controllers-by-monitored": controllers_by_monitored,
    "corrupted-copies": corrupted_copies,
    "auc": auc,
    "controllers": controllers,
    "evaluations": evaluations,
    "smallest": smallest,
    "relevance-cost": relevance_cost,
    "pruning-cost": pruning_cost,
    "promise": promise,
    "promised-sizes": promised_sizes,
    "zoo-torchvision": partial(zoo, "torchvision"),
    "zoo-timm": partial(zoo, "timm"),
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
