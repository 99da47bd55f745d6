"""The end of ``make repro``: one page with the results of the executed notebooks, and the AUC table in the terminal.

The page is self-contained: it can be mailed, read on a phone, or printed. nbconvert makes it from the outputs and the
text of the notebooks, without their code.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

from lrp_core.study.data.files import write_text
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.pipeline import OUTPUTS, add_choice, backbones_of, executed, read_params

TEMPLATES = Path(__file__).with_name("templates")
TITLE = "Accuracy-aware LRP pruning of CNNs in data-scarce transfer learning"


def chapters(params: dict[str, dict]) -> list[tuple[Path, str | None]]:
    """Return a run's executed notebooks, each with the backbone that it ran for; the last one, the results, first."""
    *before, last = OUTPUTS
    return [
        (executed(notebook, params, backbone), backbone)
        for notebook in (last, *before)
        for backbone in backbones_of(notebook, params)
    ]


def page(chapters: list[tuple[Path, str | None]]) -> str:
    """Return executed notebooks as one HTML page.

    Args:
        chapters: executed notebooks, each with the backbone that stands behind its title, or None.

    Raises:
        FileNotFoundError: a notebook is not there.
    """
    cells, contents = [], []
    for path, backbone in chapters:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run make repro first, with the same choice")
        notebook = nbformat.read(path, as_version=4)
        for cell, after in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
            if cell.cell_type == "code":
                cell.outputs = [_fitting(output) for output in cell.outputs if _belongs(output)]
                if after is not None and after.source.startswith("**Figure.**"):
                    cell.metadata["alt"] = after.source.removeprefix("**Figure.**").strip().replace("`", "")
        opening = notebook.cells[0]
        title = re.match(r"# (.+)", opening.source)[1] + (f" ({backbone})" if backbone else "")
        opening.source = re.sub(r"# .+", lambda _, title=title: f"# {title}", opening.source, count=1)
        cells += [new_markdown_cell(f'<a id="{path.stem}"></a>'), *notebook.cells]
        contents.append(f"- [{title}](#{path.stem})")
    cells.insert(0, new_markdown_cell("\n".join([f"# {TITLE}", "", *contents])))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"  # a notebook that was run for two backbones has its own twice
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    html, _ = exporter.from_notebook_node(new_notebook(cells=cells, metadata={"title": TITLE}))
    return html


def _belongs(output: dict) -> bool:
    """Return whether an output is useful on paper: no progress bars, no widgets."""
    return output.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in output.get("data", ())


def _fitting(output: dict) -> dict:
    """Return an output whose table, if it is one, fits a page: no NaN, and names that may break behind _ and +."""
    if "text/html" in output.get("data", ()):
        table = output["data"]["text/html"].replace("<td>NaN</td>", "<td></td>")
        output["data"]["text/html"] = re.sub(
            r"(?<=>)[^<>]+(?=</t[hd]>)", lambda words: re.sub(r"([_+])(?=[a-z])", r"\1<wbr>", words[0]), table
        )
    return output


def auc_text(auc: pd.DataFrame) -> str:
    """Return the AUC table for a terminal of 120 columns: one part per backbone, one line per method.

    Args:
        auc: as returned by :func:`lrp_core.study.analysis.comparisons.auc_table`.
    """
    parts = []
    for backbone, rows in auc.groupby("backbone", sort=False):
        columns = {
            "AUC": rows["auc"].map("{:.3f}".format),
            "harmonic": rows["auc_harmonic_mean"].map("{:.3f}".format),
            "gain": [f"{gain:+.0%}" if pd.notna(gain) else "" for gain in rows["gain"]],
            **_difference(rows),
        }
        parts.append(f"{backbone}\n{_aligned(rows['method'], columns)}")
    return "\n\n".join(parts)


def comparisons_text(compared: pd.DataFrame) -> str:
    """Return the comparisons of one method with others for a terminal of 120 columns: one part per task and backbone.

    Args:
        compared: as returned by :func:`lrp_core.study.analysis.comparisons.comparison_table`, of one measure.
    """
    parts = []
    for (dataset, backbone), rows in compared.groupby(["dataset", "backbone"], sort=False):
        columns = {"area": rows["other_area"].map("{:.3f}".format), **_difference(rows)}
        columns |= {"Holm's p": [f"{p:.3f}" if p >= 0.001 else "< .001" for p in rows["p_holm"]]}
        title = f"{backbone} on {dataset}: {rows['area'].iloc[0]:.3f}, against"
        parts.append(f"{title}\n{_aligned(rows['other'], columns)}")
    return "\n\n".join(parts)


def _difference(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Return the columns of a difference: itself, its interval, the seeds, and the verdict's first word."""
    texts = {"diff.": [], "95 % interval": [], "seeds": [], "verdict": []}
    for row in rows.itertuples():
        known = pd.notna(row.difference)  # of all but the best baseline itself
        texts["diff."].append(f"{row.difference:+.3f}" if known else "")
        texts["95 % interval"].append(f"{row.low:+.3f} to {row.high:+.3f}" if known else "")
        texts["seeds"].append(f"{row.seeds:.0f}" if pd.notna(row.seeds) else "")
        texts["verdict"].append(row.verdict.split(":")[0].removeprefix("the best "))
    return texts


def _aligned(names: Iterable[str], columns: dict[str, Iterable[str]]) -> str:
    """Return lines of text: names to the left, columns to the right, each as wide as its widest cell."""
    cells = [["", *names], *([head, *column] for head, column in columns.items())]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in zip(*cells, strict=True)
    ]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Write report.html of a run; print its AUC table and the names of its figures. 1 if the run is not there."""
    parser = argparse.ArgumentParser(prog="python -m lrp_core.study.show.report", description=__doc__.splitlines()[0])
    add_choice(parser)
    try:
        params = read_params(**vars(parser.parse_args(arguments)))
        results = ROOT / params["base"]["results"]
        write_text(results / "report.html", page(chapters(params)))
        auc = pd.read_csv(results / "tables" / "auc.csv")
        compared = pd.read_csv(results / "tables" / "comparisons.csv").query("measure == 'multiply_adds'")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        "\nClass-averaged AUC over the share of filters removed, 0 to 95 %, and that of the harmonic mean of the class"
    )
    print("accuracies; gain and difference are over the best baseline, paired by seed:\n")
    print(auc_text(auc))
    proposed = params["05_auc_tables_figures"]["proposed"]
    print(f"\nArea of accuracy over multiply-adds, 100 to 1 %: {proposed} and what it has more than others, by seed:\n")
    print(comparisons_text(compared))
    figures = sorted(path.relative_to(ROOT) for path in (results / "figures").glob("*.png"))
    print("\nFigures:", *figures, sep="\n  ")
    print(f"\nAll of it on one page: {(results / 'report.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
