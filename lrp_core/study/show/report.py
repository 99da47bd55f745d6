"""The end of ``make repro``: one page of what the executed notebooks show, and the AUC table in the terminal.

The page is self-contained: it can be sent by mail, read on a telephone, printed. nbconvert makes it, from the outputs
and the text of the notebooks, without their code.
"""

import argparse
import re
import sys
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
    """Tell whether an output means something on paper: no progress bars, no widgets."""
    return output.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in output.get("data", ())


def _fitting(output: dict) -> dict:
    """Return an output whose table, if it is one, fits a page: no NaN, and names that may break behind _ and +."""
    if "text/html" in output.get("data", ()):
        table = output["data"]["text/html"].replace("<td>NaN</td>", "<td></td>")
        output["data"]["text/html"] = re.sub(
            r"(?<=>)[^<>]+(?=</t[hd]>)", lambda words: re.sub(r"([_+])(?=[a-z])", r"\1<wbr>", words[0]), table
        )
    return output


def main(arguments: list[str] | None = None) -> int:
    """Write report.html of a run; print its AUC table and the names of its figures. 1 if the run is not there."""
    parser = argparse.ArgumentParser(prog="python -m lrp_core.study.show.report", description=__doc__.splitlines()[0])
    add_choice(parser)
    try:
        params = read_params(**vars(parser.parse_args(arguments)))
        results = ROOT / params["base"]["results"]
        write_text(results / "report.html", page(chapters(params)))
        table = pd.read_csv(results / "tables" / "auc.csv").drop(columns=["auc_sd", "difference"])
        compared = pd.read_csv(results / "tables" / "comparisons.csv").query("measure == 'multiply_adds'")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\nClass-averaged AUC of accuracy against pruning rate (0 to 95 %), paired with the best baseline:\n")
    print(table.to_string(index=False, float_format="%.3f", na_rep=""))
    proposed = params["05_auc_tables_figures"]["proposed"]
    print(f"\nArea of accuracy over multiply-adds (100 to 1 %): {proposed} against others:\n")
    print(compared.drop(columns=["measure", "p"]).to_string(index=False, float_format="%.3f"))
    figures = sorted(path.relative_to(ROOT) for path in (results / "figures").glob("*.png"))
    print("\nFigures:", *figures, sep="\n  ")
    print(f"\nAll of it on one page: {(results / 'report.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
