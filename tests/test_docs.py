"""The documents: their code runs as it stands there, their links lead somewhere, their numbers are those of the run."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet

from lrp_core.metrics.accuracy import pruning_auc
from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.study.paths import ROOT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def code(page):
    """Return a page's blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def build():
    """Return what stands in for the reader's network: torchvision's smallest ResNet, with random weights."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)


@pytest.fixture
def readers():
    """What a reader has at hand: a network, images whose classes can be told apart, labels, a loader of both."""
    torch.manual_seed(0)
    labels = torch.arange(12) % 3
    images = torch.randn(12, 3, 32, 32) + 2 * torch.eye(3)[labels][:, :, None, None]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=8)
    return {"model": build().eval(), "images": images, "labels": labels, "loader": loader, "build": build}


@pytest.mark.parametrize(
    "page", [ROOT / "docs" / f"{name}.md" for name in ("extending", "method", "own_data", "several_places")]
)
def test_code_runs_from_top_to_bottom(page, readers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what it saves
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)  # as torchrun does
    namespace, blocks = {"__name__": page.stem} | readers, code(page)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


def test_readme_shows_the_one_call_in_six_lines(readers, tmp_path, monkeypatch):
    (block,) = code(README)
    assert len(block.splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    exec(block, readers)
    pruned = readers["pruned"]
    assert pruned.monitored == "cross-fitted"
    assert 0 < pruned.after.parameters < pruned.before.parameters
    assert (tmp_path / "pruned.safetensors").is_file()


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    assert max(len(line) for line in lines if not line.startswith("|")) <= 142  # tables have long rows


def anchors(page):
    """Return the names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "api"])  # whose links are griffe2md's
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_listed():
    for listing in (README, ROOT / "docs" / "README.md"):
        linked = {(listing.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", listing.read_text())}
        assert set(PAGES) - {README, ROOT / "docs" / "README.md"} <= linked


def test_api_page_is_that_of_the_code(tmp_path):
    """``make docs`` has been run since the last change of a docstring or a signature."""
    command = [Path(sys.executable).with_name("griffe2md"), "lrp_core", "--output", tmp_path / "api.md"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "api.md").read_text() == (ROOT / "docs" / "api.md").read_text(), "run make docs"


P = "px-iterative-abs"
BEST_CUT = f"early-exit+{P}+reconstruction+refit"
PROPOSED = "budget-search"
FULL = ROOT / "results" / "full" / "tables"
TASKS = [  # folder, data set, network
    ("full", "elpv", "efficientnet-lite0"),
    ("full", "elpv", "squeezenet1_1"),
    ("vgg16", "elpv", "vgg16"),
    ("cifar10", "cifar10", "efficientnet-lite0"),
    ("cifar10", "cifar10", "squeezenet1_1"),
]


def line(*cells):
    return "| " + " | ".join(cells) + " |"


def main_rows():
    """README's main table: areas over multiply-adds, and what the proposed method has more than three others."""
    area_table = pd.read_csv(FULL / "areas.csv").groupby(["dataset", "backbone", "method"])["multiply_adds"].mean()
    compared = pd.read_csv(FULL / "comparisons.csv").query("measure == 'multiply_adds'")
    compared = compared.set_index(["dataset", "backbone", "other"])
    for folder, dataset, backbone in TASKS:
        curves = pd.read_csv(ROOT / "results" / folder / "curves.csv")
        whole = curves[(curves["rate"] == 0) & (curves["backbone"] == backbone)].drop_duplicates("seed")["accuracy"]
        cells = [dataset, backbone, f"{whole.mean():.3f}"]
        for method in (P, f"{P}+refit", f"{P}+reconstruction+refit", "truncation", BEST_CUT, PROPOSED):
            area = area_table.get((dataset, backbone, method))
            cells.append("" if area is None else f"{area:.3f}")
        for other in (f"{P}+reconstruction+refit", "truncation", BEST_CUT):
            if (dataset, backbone, other) not in compared.index:
                cells.append("")
                continue
            row = compared.loc[(dataset, backbone, other)]
            doubt = " (?)" if row["verdict"] == "undecided" else ""
            cells.append(f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}){doubt}")
        yield line(*cells)


def fixed_head_rows():
    """README's table of the paper's measure, with the head as it was: AUC, and the gain over the best conventional."""
    for folder, dataset, backbone in TASKS:
        auc = pd.read_csv(ROOT / "results" / folder / "tables" / "auc.csv").set_index(["backbone", "method"])
        auc = auc.loc[backbone]
        cells = [dataset, backbone]
        for method in (
            P,
            "taylor-taper",
            "dynamic",
            "joint",
            "dynamic-joint",
            f"{P}+refit",
            "joint+refit",
            "truncation",
        ):
            if method not in auc.index:
                cells.append("")
                continue
            row = auc.loc[method]
            cell = f"{row['auc']:.3f}"
            if method in ("dynamic", "joint", "dynamic-joint"):
                doubt = " (?)" if row["verdict"].startswith("undecided") else ""
                cell += f", {row['gain']:+.0%}{doubt}, {row['low']:+.3f} to {row['high']:+.3f} ({row['seeds']:.0f})"
            cells.append(cell)
        yield line(*cells)


def collapse_rows():
    table = pd.read_csv(FULL / "collapse.csv")
    for (dataset, backbone), rows in table.groupby(["dataset", "backbone"], sort=False):
        cells = []
        for row in rows.itertuples():
            share = "" if pd.isna(row.head_share) else f" ({row.head_share:.0%})"
            cells.append(f"{row.lost:.2f} to {row.lost_refitted:.2f}{share}")
        yield line(dataset, backbone, *cells)


INGREDIENTS = {  # what changes, without it, with it
    "a refitted head": (P, f"{P}+refit"),
    "reconstruction": (f"{P}+refit", f"{P}+reconstruction+refit"),
    "a cut": (f"{P}+reconstruction+refit", BEST_CUT),
    "three levers": (f"{P}+reconstruction+refit", "budget-search"),
    "the third of them, blocks": ("budget-search-filters-exit", "budget-search"),
    "blocks in the order of CKA": ("budget-search", "budget-search-cka"),
    "the controller, head as it was": (P, "dynamic"),
    "a refitted head, filters chosen together": ("joint", "joint+refit"),
    "the controller, filters chosen together": ("joint", "dynamic-joint"),
}


def ingredient_rows():
    tables = {}
    for folder in ("full", "vgg16", "cifar10"):
        worth = pd.read_csv(ROOT / "results" / folder / "tables" / "ablations.csv").query("measure == 'multiply_adds'")
        tables[folder] = worth.set_index(["backbone", "without", "with_ablation"])
    for words, (without, other) in INGREDIENTS.items():
        cells = []
        for folder, _, backbone in TASKS:
            if (key := (backbone, without, other)) in tables[folder].index:
                row = tables[folder].loc[key]
                cells.append(f"{row['difference']:+.3f}" + (" (u)" if row["verdict"].startswith("undecided") else ""))
            else:
                cells.append("")
        yield line(f"{words}, on `{without}`", *cells)


def lever_rows():
    for folder, dataset, backbone in TASKS:
        trace = pd.read_csv(ROOT / "results" / folder / backbone / "trace_levers.csv").query("method == 'levers'")
        taken = [int((trace["action"] == lever).sum()) for lever in ("filters", "block", "end", "start")]
        yield line(f"{dataset}, {backbone}", str(trace["seed"].nunique()), *map(str, taken))


def robustness_rows():
    for folder, dataset, backbone in TASKS:
        table = pd.read_csv(ROOT / "results" / folder / "tables" / "robustness.csv").query("backbone == @backbone")
        for (images, budget), rows in table[table["budget"] < 1].groupby(["images", "budget"], sort=False):
            whole = table[(table["method"] == "unpruned") & (table["images"] == images)].iloc[0]
            cells = [f"{whole.clean:.2f} to {whole.corrupted:.2f}"]
            for method in (f"{P}+refit", f"{P}+reconstruction+refit", "truncation", BEST_CUT, PROPOSED):
                found = rows[rows["method"] == method]
                if found.empty:
                    cells.append("")
                    continue
                row = found.iloc[0]
                doubt = " (u)" if row["low"] <= 0 <= row["high"] else ""
                cells.append(f"{row['clean']:.2f} to {row['corrupted']:.2f}, {row['more_lost']:+.2f}{doubt}")
            yield line(dataset, backbone, images, f"{budget:.0%}", *cells)


def signal_rows():
    """How far what a signal says is from the test, mean and rank correlation, over all rates and seeds."""
    tables = {
        (folder, backbone): pd.read_csv(ROOT / "results" / folder / backbone / "tables" / "signals.csv", index_col=0)
        for folder, _, backbone in TASKS
    }
    for signal in next(iter(tables.values())).index:
        cells = []
        for table in tables.values():
            found = table.loc[signal] if signal in table.index else None
            there = "" if found is None else f"{found['mean absolute error']:.3f} ({found['rank correlation']:.2f})"
            cells.append(there)
        yield line(signal, *cells)


def watching_rows():
    table = pd.read_csv(ROOT / "results" / "benchmarks" / "signals.csv", keep_default_na=False)
    measures = [name for name in table if name.startswith("auc")]
    usual = table[table["signal"] == "cross-fitted"].set_index("seed")
    for (method, signal), rows in table.groupby(["method", "signal"], sort=False):
        cells = []
        for name in measures:
            cells.append(f"{rows[name].mean():.3f}")
            if signal != "cross-fitted":
                more = (rows.set_index("seed")[name] - usual[name]).to_numpy()
                low, high, _ = paired_interval(more)
                cells[-1] += f", {more.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        yield line(f"`{method}`", signal, f"{rows['tries'].mean():.0f}", *cells)


def corrupted_rows():
    """AUC by the images tested, and its difference from that of the same method without copies, paired."""
    table = pd.read_csv(ROOT / "results" / "benchmarks" / "corrupted.csv", keep_default_na=False)
    for (dataset, network), part in table.groupby(["dataset", "network"], sort=False):
        usual = part[part["copies"] == ""].set_index(["method", "images", "seed"])["auc"].sort_index()
        for (method, copies, use), rows in part.groupby(["method", "copies", "used for"], sort=False):
            cells = []
            for images, tested in rows.groupby("images", sort=False):
                cells.append(f"{tested['auc'].mean():.3f}")
                if copies:
                    more = (tested.set_index("seed")["auc"] - usual[method, images]).to_numpy()
                    low, high, _ = paired_interval(more)
                    cells[-1] += f", {more.mean():+.3f} ({low:+.3f} to {high:+.3f})"
            yield line(dataset, network, f"`{method}`", copies, use, f"{rows['tries'].mean():.0f}", *cells)


def controller_rows():
    """What the controller adds to the AUC and to that of the harmonic mean, paired, from the curves themselves."""
    for folder, dataset, backbone in TASKS:
        curves = pd.read_csv(ROOT / "results" / folder / "curves.csv").query("backbone == @backbone")
        runs = curves.dropna(subset="rate_requested").groupby(["method", "seed"])
        measures = ["accuracy", "harmonic_mean"]
        area_table = {run: [pruning_auc(rows["rate_requested"], rows[name]) for name in measures] for run, rows in runs}
        for method, without in (("dynamic", P), ("dynamic-joint", "joint")):
            seeds = [seed for name, seed in area_table if name == method]
            more = np.array([np.subtract(area_table[method, seed], area_table[without, seed]) for seed in seeds])
            before = np.mean([area_table[without, seed] for seed in seeds], axis=0)
            cells = []
            for base, column in zip(before, more.T, strict=True):
                low, high, _ = paired_interval(column)
                cells.append(f"{column.mean():+.3f} ({low:+.3f} to {high:+.3f}), {column.mean() / base:+.0%}")
            yield line(dataset, backbone, f"`{method}`", f"`{without}`", str(len(seeds)), *cells)


def evaluation_rows():
    table = pd.read_csv(ROOT / "results" / "benchmarks" / "evaluations.csv")
    for network, rows in table.groupby("network", sort=False):
        means = rows.groupby(["method", "settings"], sort=False)[["evaluations", "auc", "auc_harmonic_mean"]].mean()
        best = means.loc[(P, "default"), "auc"]
        for (method, settings), row in means.iterrows():
            cells = [f"{row['evaluations']:.0f}", f"{row['auc']:.3f}", f"{row['auc'] / best - 1:+.0%}"]
            yield line(network, f"`{method}`", settings, *cells, f"{row['auc_harmonic_mean']:.3f}")


def auc_rows():
    for folder in ("full", "vgg16", "cifar10"):
        for row in pd.read_csv(ROOT / "results" / folder / "tables" / "auc.csv").itertuples():
            cells = [folder, row.backbone, f"`{row.method}`", f"{row.auc:.3f} ± {row.auc_sd:.3f}"]
            cells += [f"{row.auc_harmonic_mean:.3f}", f"{row.retention:.3f}"]
            if row.verdict == "the best baseline":
                yield line(*cells, "", "", row.verdict)
            else:
                interval = f"{row.low:+.3f} to {row.high:+.3f}"
                yield line(*cells, f"{row.gain:+.1%}", interval, row.verdict.split(":")[0])


def smallest_rows():
    for row in pd.read_csv(FULL / "smallest.csv").itertuples():
        if row.method in ("unpruned", P, f"{P}+refit", f"{P}+reconstruction+refit", "truncation", BEST_CUT, PROPOSED):
            near = "" if row.method == "unpruned" else f"{row.points:.2f}"
            cells = [row.dataset, f"`{row.method}`", near, f"{row.found} of {row.seeds}", row.backbone]
            cells += [f"{row.multiply_adds / 1e6:.2f} M", f"{row.parameters / 1e3:.0f} k", f"{row.accuracy:.3f}"]
            interval = f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
            yield line(*cells, "" if row.method == "unpruned" else interval)


@pytest.mark.parametrize(
    ("page", "rows"),
    [
        ("README.md", fixed_head_rows),
        ("README.md", main_rows),
        ("docs/results.md", collapse_rows),
        ("docs/results.md", ingredient_rows),
        ("docs/results.md", lever_rows),
        ("docs/results.md", robustness_rows),
        ("docs/results.md", auc_rows),
        ("docs/results.md", evaluation_rows),
        ("docs/results.md", signal_rows),
        ("docs/results.md", watching_rows),
        ("docs/results.md", corrupted_rows),
        ("docs/results.md", controller_rows),
        ("docs/results.md", smallest_rows),
    ],
)
def test_tables_are_those_of_the_committed_runs(page, rows):
    lines, expected = (ROOT / page).read_text().splitlines(), list(rows())
    assert expected
    first = lines.index(expected[0])
    assert lines[first : first + len(expected)] == expected
