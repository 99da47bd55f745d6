"""The documents: their code runs as it stands there, their links lead somewhere, their numbers are those of the run."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet

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


@pytest.mark.parametrize("page", [ROOT / "docs" / f"{name}.md" for name in ("extending", "method", "own_data")])
def test_code_runs_from_top_to_bottom(page, readers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what it saves
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
    assert pruned.signal == "cross-fitted"
    assert 0 < pruned.after.parameters < pruned.before.parameters
    assert (tmp_path / "pruned.safetensors").is_file()


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
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


def test_readme_shows_the_table_of_the_committed_run():
    readme = (ROOT / "README.md").read_text()
    table = pd.read_csv(ROOT / "results" / "tables" / "auc.csv")
    for row in table.itertuples():
        (line,) = re.findall(rf"^\| {row.backbone} \| `{re.escape(row.method)}` \|.*$", readme, re.MULTILINE)
        assert f"| {row.auc:.3f} ± {row.auc_sd:.3f} | {row.auc_harmonic_mean:.3f} | {row.retention:.3f} |" in line
        if row.verdict == "the best baseline":
            assert line.endswith("| the best baseline |")
        else:
            assert f"| {row.gain:+.1%} | {row.low:+.3f} to {row.high:+.3f} | {row.verdict.split(':')[0]} |" in line


INGREDIENTS = {  # rows of the page's table: each change as (without it, with it), twice where there are two columns
    "reconstruction, on `px-iterative-abs`": [("px-iterative-abs", "px-iterative-abs+reconstruction")],
    "the controller's rate, on `px-iterative-abs`": [
        (f"px-iterative-abs{suffix}", f"dynamic-rate{suffix}") for suffix in ("", "+reconstruction")
    ],
    "the controller's order, on `px-iterative-abs`": [
        (f"px-iterative-abs{suffix}", f"dynamic-order{suffix}") for suffix in ("", "+reconstruction")
    ],
    "Taylor instead of absolute relevance": [
        (f"px-iterative-abs{suffix}", f"taylor{suffix}") for suffix in ("", "+reconstruction")
    ],
    "the training accuracy as the signal, on `dynamic`": [("dynamic", "dynamic-training")],
    "the probability as the signal, on `dynamic`": [("dynamic", "dynamic-probability")],
}


def test_results_show_what_ingredients_are_worth():
    page = (ROOT / "docs" / "results.md").read_text()
    worth = pd.read_csv(ROOT / "results" / "full" / "tables" / "ingredients.csv")
    worth = worth.set_index(["backbone", "without", "with_ingredient"])["difference"].map("{:+.3f}".format)
    worth = worth.replace({"-0.000": "0.000", "+0.000": "0.000"})
    for words, pairs in INGREDIENTS.items():
        cells = [" / ".join(worth[backbone, *pair] for backbone in ("vgg16", "efficientnet-lite0")) for pair in pairs]
        (line,) = re.findall(rf"^\| {re.escape(words)} \|(.*)\|$", page, re.MULTILINE)
        got = [re.sub(r" \(.*\)", "", cell.strip()) for cell in line.split("|")]
        assert got == [*cells, ""][:2], words


def test_results_show_what_criteria_reach():
    page = (ROOT / "docs" / "results.md").read_text()
    auc = pd.read_csv(ROOT / "results" / "full" / "tables" / "auc.csv").set_index(["backbone", "method"])["auc"]
    names = ["taylor", "singe", "px-iterative-abs", "activation", "weight", "gradient", "random"]
    for backbone in ("vgg16", "efficientnet-lite0"):
        row = " | ".join([backbone, *(f"{auc[backbone, name]:.3f}" for name in names)])
        assert f"| {row} |" in page
