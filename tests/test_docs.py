"""The documents: their code runs as it stands there, their links lead somewhere, their tables are those of results/."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet

from lrp_core.study.paths import ROOT
from lrp_core.study.show import markdown_tables

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
    "page", [ROOT / "docs" / f"{name}.md" for name in ("extending", "method", "own_data", "several_sites")]
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
    assert pruned.after.multiply_adds <= 0.5 * pruned.before.multiply_adds
    assert readers["smaller"].path is pruned.path
    assert pruned.estimate.images == 12
    assert 0 < pruned.after.parameters < pruned.before.parameters
    assert (tmp_path / "pruned.safetensors").is_file()


def test_what_readme_prints_is_what_the_notebook_printed():
    """All but the latency, which every machine measures anew."""
    (sample,) = re.findall(r"^```text\n(.+?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    notebook = nbformat.read(ROOT / "notebooks" / "06_your_own_network.ipynb", 4)
    printed = [part.text for cell in notebook.cells for part in cell.get("outputs", []) if "text" in part]
    latency = re.compile(r"\d+% of the latency")
    assert latency.sub("", sample.strip()) in {latency.sub("", text.strip()) for text in printed}


def anchors(page):
    """Return the names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
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
    text = re.sub(r"\[([^][]+)\]\(#[^)]+\)", r"\1", (tmp_path / "api.md").read_text())  # links that lead nowhere
    text = re.sub(r":(class|data|func|meth|mod):`", "`", text)
    assert text == (ROOT / "docs" / "api.md").read_text(), "run make docs"


def test_tables_are_current():
    """``make tables`` has been run since the last change of results/ or of a table."""
    markdown_tables.main(["--check"])


def test_every_table_stands_on_a_page():
    used = {name for page in PAGES for name in re.findall(r"^<!-- table: (.+) -->$", page.read_text(), re.MULTILINE)}
    assert used == set(markdown_tables.TABLES)


OLD = "# A page\n\n<!-- table: two -->\n| old |\n<!-- end of table -->\nWhat it shows.\n"
NEW = "# A page\n\n<!-- table: two -->\n\n| a | b |\n| --- | --- |\n\n<!-- end of table -->\nWhat it shows.\n"
TWO = {"two": lambda: "| a | b |\n| --- | --- |"}


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A repository of two pages, of which README.md has a stale table."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(OLD)
    (tmp_path / "docs" / "page.md").write_text(NEW)
    monkeypatch.setattr(markdown_tables, "ROOT", tmp_path)
    monkeypatch.setattr(markdown_tables, "TABLES", TWO)
    return tmp_path


def test_a_stale_table_is_named_and_then_written(pages, capsys):
    with pytest.raises(SystemExit) as stopped:
        markdown_tables.main(["--check"])
    assert stopped.value.code not in (0, None)
    assert capsys.readouterr().out == "README.md: stale: two\n"
    assert (pages / "README.md").read_text() == OLD
    markdown_tables.main([])
    assert (pages / "README.md").read_text() == (pages / "docs" / "page.md").read_text() == NEW
    markdown_tables.main(["--check"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NEW + "<!-- table: three -->\n<!-- end of table -->\n", "unknown table 'three'"),
        (NEW + "<!-- table: two -->\n| a |\n", "'two' is not closed"),
        ("<!-- table: two -->\n" + NEW, "'two' is not closed"),
        (NEW + "last words\n<!-- end of table -->\n", "ends no table.*last words"),
    ],
)
def test_a_marker_that_is_unknown_or_unclosed_is_named_and_nothing_written(pages, text, message):
    (pages / "docs" / "page.md").write_text(text)
    with pytest.raises(SystemExit, match=f"docs/page.md: .*{message}"):
        markdown_tables.main([])
    assert (pages / "README.md").read_text() == OLD
    assert (pages / "docs" / "page.md").read_text() == text


def test_a_controllers_gain_is_of_common_seeds(tmp_path, monkeypatch):
    """AUC of constant curves is their height. The controller has the last two of three seeds, and gains 0.1 and 0.2.

    The interval is that of two seeds which each test a fifth of the images: 12.706 * (0.005 * (1/2 + 1/4)) ** 0.5.
    """
    heights = {"joint": [0.50, 0.60, 0.70], "dynamic-joint": [None, 0.70, 0.90]}
    curves = [
        {"backbone": "squeezenet1_1", "method": method, "seed": seed, "rate_requested": rate / 100}
        | {"accuracy": accuracy, "harmonic_mean": accuracy - 0.1, "overlap": 0.2}
        for method, accuracies in heights.items()
        for seed, accuracy in enumerate(accuracies)
        if accuracy is not None
        for rate in range(0, 100, 5)
    ]
    (tmp_path / "results" / "default" / "tables").mkdir(parents=True)
    pd.DataFrame(curves).to_csv(tmp_path / "results" / "default" / "tables" / "curves.csv", index=False)
    monkeypatch.setattr(markdown_tables, "ROOT", tmp_path)
    monkeypatch.setattr(markdown_tables, "BACKBONES", ["squeezenet1_1"])
    *_, ruler, row = markdown_tables.controllers().splitlines()  # no row of iterative LRP, which was not run
    assert set(ruler) == set("| -")
    name, auc, gain, harmonic_mean = row.split(" | ")[1:5]
    assert (name, auc, harmonic_mean) == ("joint selection", "0.650", "0.550")
    assert gain == "+0.150 (-0.628 to +0.928)"
