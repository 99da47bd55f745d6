"""The page as a browser shows it: on a screen, on a telephone, on paper."""

import base64
import re
import shutil

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lrp_core.study.show import report

webdriver = pytest.importorskip("selenium.webdriver")
needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromedriver"
)
FOLDED_TABLE = pd.DataFrame(  # as wide as the AUC table of the default run, with a verdict and what has no number
    {f"a_long_name_of_column_{i}": ["efficientnet-lite0", None] for i in range(2)}
    | {"method": ["dynamic+reconstruction", "px-iterative-abs"]}
    | {f"auc_harmonic_mean_{i}": [0.123, float("nan")] for i in range(7)}
    | {"verdict": ["undecided: the interval contains 0", "the best baseline"]}
).to_html()
WIDE_TABLE = "<table><tr>" + "".join(f"<th>a long name of column {i}</th>" for i in range(20)) + "</tr></table>"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """A report of two notebooks with a figure, a wide table, a progress bar, a widget."""
    folder = tmp_path_factory.mktemp("report")
    figure, axes = plt.subplots(figsize=(12, 3))
    axes.plot([0, 1])
    figure.savefig(folder / "figure.png")
    plt.close(figure)
    png = base64.b64encode((folder / "figure.png").read_bytes()).decode()
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "interactive(children=())"}
    cells = [
        new_markdown_cell("# 5. Results\n\nWhat came out."),
        new_code_cell("secret_code()", outputs=[new_output("display_data", {"image/png": png})]),
        new_markdown_cell("**Figure.** A rising `line`."),
        new_code_cell("", outputs=[new_output("execute_result", {"text/html": WIDE_TABLE, "text/plain": "a"})]),
        new_code_cell("", outputs=[new_output("execute_result", {"text/html": FOLDED_TABLE, "text/plain": "a"})]),
        new_code_cell("", outputs=[new_output("stream", name="stderr", text="100%|####|")]),
        new_code_cell("", outputs=[new_output("display_data", widget)]),
        new_code_cell("", outputs=[new_output("display_data", {"text/markdown": "**The claim** stands."})]),
    ]
    chapters = [(folder / "05.ipynb", None), (folder / "04-vgg16.ipynb", "vgg16")]
    for path, _ in chapters:
        nbformat.write(new_notebook(cells=cells), path)
    page = folder / "report.html"
    page.write_text(report.page(chapters))
    return page


def test_page_has_what_was_shown_and_no_more(html):
    content = html.read_text()
    for words in (
        "What came out.",
        "<strong>The claim</strong> stands.",
        "a long name of column 19",
        'alt="A rising line."',
    ):
        assert content.count(words) == 2
    for words in ("secret_code", "100%|", "interactive(children", "http://", "https://", "<script", "NaN"):
        assert words not in content


def test_contents_are_titles(html):
    """Not file names; a notebook that ran for a backbone has it behind its title, there and where it begins."""
    content = html.read_text()
    contents = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a></li>', content)
    assert contents == [("05", "5. Results"), ("04-vgg16", "5. Results (vgg16)")]
    headings = re.findall(r"<h1\b[^>]*>([^<]+)<", content)
    assert headings == [report.TITLE, *(title for _, title in contents)]
    for name, _ in contents:
        assert f'<a id="{name}"></a>' in content
        assert f">{name}<" not in content


LONG = "early-exit+px-iterative-abs+reconstruction+refit"  # the longest name of a method that is in any table


def auc_rows():
    """Return two rows of an AUC table: a method that is better, and the best baseline, which has no difference."""
    better = {"gain": 0.2533, "difference": 0.1234, "low": 0.1, "high": -0.05, "verdict": "undecided: the interval ..."}
    rows = [{"method": LONG, "auc": 0.61, "seeds": 10.0} | better]
    rows += [{"method": "px-iterative-abs", "auc": 0.4867, "seeds": 10.0, "verdict": "the best baseline"}]
    known = {"backbone": "efficientnet-lite0", "auc_sd": 0.01, "auc_harmonic_mean": 0.4, "retention": 0.9}
    return pd.DataFrame(rows).assign(**known)


def compared_rows():
    """Return two tasks of a table of comparisons, with a measure that is not printed."""
    numbers = {"area": 0.69, "other_area": 0.44, "difference": 0.25, "low": 0.21, "high": 0.28, "seeds": 10, "p": 1e-9}
    row = {"backbone": "vgg16", "measure": "multiply_adds", "other": LONG, "verdict": "undecided"} | numbers
    rows = [row | {"dataset": name, "p_holm": p} for name, p in (("elpv", 1e-8), ("cifar10", 0.25))]
    return pd.DataFrame([*rows, row | {"dataset": "elpv", "p_holm": 1.0, "measure": "accuracy", "area": 0.123}])


def test_the_auc_table_fits_a_terminal():
    text = report.auc_text(auc_rows())
    assert max(map(len, text.splitlines())) <= 120
    backbone, head, first, baseline = text.splitlines()
    assert backbone == "efficientnet-lite0"
    assert head.split() == ["AUC", "harmonic", "gain", "diff.", "95", "%", "interval", "seeds", "verdict"]
    numbers = ["0.610", "0.400", "+25%", "+0.123", "+0.100", "to", "-0.050", "10"]
    assert first.split() == [LONG, *numbers, "undecided"]
    assert baseline.split() == ["px-iterative-abs", "0.487", "0.400", "10", "baseline"]
    for column, cell in (("AUC", "0.610"), ("seeds", "10"), ("verdict", "undecided")):
        assert head.index(column) + len(column) == first.rindex(cell) + len(cell)


def test_the_report_of_a_profile_lies_with_its_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "page", lambda chapters: f"<p>{len(chapters)} chapters</p>")
    tables = tmp_path / "results/quick/tables"
    tables.mkdir(parents=True)
    auc_rows().to_csv(tables / "auc.csv", index=False)
    assert report.main(["--profile", "quick"]) == 1
    assert "comparisons.csv" in capsys.readouterr().err
    compared_rows().to_csv(tables / "comparisons.csv", index=False)
    (tmp_path / "results/quick/figures").mkdir()
    (tmp_path / "results/quick/figures/auc.png").touch()
    assert report.main(["--profile", "quick"]) == 0
    assert (tmp_path / "results/quick/report.html").read_text().endswith(" chapters</p>")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    for words in (
        "vgg16 on elpv: 0.690, against",
        "vgg16 on cifar10: 0.690, against",
        "< .001",
        "0.250",
        "results/quick/figures/auc.png",
        "All of it on one page: results/quick/report.html",
    ):
        assert words in printed
    for words in ("0.123, against", "NaN", "nan", "multiply_adds"):
        assert words not in printed


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(html, browser, width):
    """No error, every figure seen, nothing wider than the screen: wide tables and figures scroll by themselves."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get(html.as_uri())
    assert browser.get_log("browser") == []
    assert browser.title == report.TITLE
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.complete && i.naturalWidth > 0, i.parentNode.clientWidth])"
    )
    assert len(pictures) == 2
    for loaded, shown in pictures:
        assert loaded
        assert 0 < shown <= width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@needs_browser
def test_tables_as_wide_as_ours_fit_a_screen(html, browser):
    """At 1280 px nothing of them is cut off, and nothing has to be scrolled."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get(html.as_uri())
    widths = browser.execute_script(
        "return [...document.querySelectorAll('table.dataframe')].map(t => [t.offsetWidth, t.parentNode.clientWidth])"
    )
    assert len(widths) == 2
    for table, box in widths:
        assert 0 < table <= box


@needs_browser
def test_page_on_paper(html, browser):
    browser.get(html.as_uri())
    printed = base64.b64decode(browser.print_page())
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Image") >= 1
