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
