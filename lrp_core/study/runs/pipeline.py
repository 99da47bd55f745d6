"""Runs numbered notebooks with papermill: one stage of DVC's, or all of them for own images or in place.

python -m lrp_core.study.runs.pipeline 02_head_training --backbone vgg16 --profile vgg16  # one stage
python -m lrp_core.study.runs.pipeline --data photos     # all, on the images of that folder
python -m lrp_core.study.runs.pipeline --in-place        # all, at their own defaults, where they lie
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
import yaml
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color
from papermill.inspection import inspect_notebook
from traitlets.config import Config

from lrp_core.study.paths import ROOT, SMALL
from lrp_core.study.runs.processes import end_with, starter
from lrp_core.utils.errors import check_choice
from lrp_core.utils.files import atomic

NOTEBOOKS = ROOT / "notebooks"
# What each notebook leaves in the workspace for those after it; those in the middle do so for one backbone at a time.
OUTPUTS = {
    "01_data_prep": ("dataset/images.safetensors", "dataset/splits.csv"),
    "02_head_training": ("runs/{backbone}/heads/heads.safetensors",),
    "03_baseline_lrp_pruning": ("runs/{backbone}/baseline/orders.safetensors",),
    "04_dynamic_pruning": (
        "runs/{backbone}/dynamic/orders.safetensors",
        "runs/{backbone}/budget_search/orders.safetensors",
    ),
    "05_auc_tables_figures": (),
}
ASIDE = ("06_your_own_network",)  # no stage: nothing is made of it


def defaults(notebook: str) -> dict[str, str]:
    """Return what a notebook's parameters cell says, by name, as it is written there."""
    parameters = inspect_notebook(str(NOTEBOOKS / f"{notebook}.ipynb"))
    return {name: parameter["default"] for name, parameter in parameters.items()}


def read_params(profile: str | None = None, data: str | None = None) -> dict[str, dict]:
    """Return the content of params.yaml, with changes.

    Args:
        profile: of params.yaml: its changes apply, its workspace is data/PROFILE and its results results/PROFILE.
        data: stands in for the data set; workspace and results are folders of its own, data/own and results/own.

    Raises:
        ValueError: no such profile, or one that changes a section which is not there.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    if profile is not None:
        check_choice("profile of params.yaml", profile, params["profiles"])
        params = overlay(params, profile, {"base": _folders(profile)})
        params = overlay(params, profile, params["profiles"][profile])
    if data is not None:
        name = "-".join(filter(None, (profile, Path(data).stem)))
        alone = {"beside": []}  # the committed results are of other images
        changes = {"base": _folders(f"own/{name}"), "01_data_prep": {"dataset": data}, "05_auc_tables_figures": alone}
        params = overlay(params, name, changes)
    return params


def _folders(name: str) -> dict[str, str]:
    return {"workspace": f"data/{name}", "results": f"results/{name}"}


def overlay(params: dict[str, dict], profile: str, changes: dict[str, dict]) -> dict[str, dict]:
    """Return parameters with a profile's changes, section by section.

    Raises:
        ValueError: a section that is not there.
    """
    if unknown := [section for section in changes if section not in params]:
        raise ValueError(f"profile {profile!r} of params.yaml changes what is not there: {', '.join(unknown)}")
    return params | {section: params[section] | (values or {}) for section, values in changes.items()}


def backbones_of(notebook: str, params: dict[str, dict]) -> list[str | None]:
    """Return the backbones that a notebook runs for, one at a time; None if it runs once."""
    return list(params["base"]["weights"]) if "backbone" in defaults(notebook) else [None]


def stage_parameters(notebook: str, params: dict[str, dict], backbone: str | None = None) -> dict:
    """Return what params.yaml says of a notebook: its own section, and what it uses of ``base``.

    Args:
        notebook: name without suffix.
        params: the content of params.yaml.
        backbone: for a notebook that works on one: its weights are chosen, its results go to a folder of that name.

    Raises:
        ValueError: the section and the notebook's parameters cell do not name the same parameters; an unknown backbone.
    """
    declared, base = set(defaults(notebook)), params["base"]
    if backbone is not None:
        weights = base["weights"][check_choice("backbone of params.yaml", backbone, base["weights"])]
        base = base | {"backbone": backbone, "weights": weights, "results": f"{base['results']}/runs/{backbone}"}
    if notebook not in params:
        raise ValueError(f"params.yaml has no section {notebook!r}; it has: {', '.join(params)}")
    section = params[notebook] or {}
    unknown = sorted(set(section) - declared)
    missing = sorted(declared - set(section) - set(base))
    if unknown or missing:
        raise ValueError(
            f"params.yaml and {notebook}.ipynb disagree: not in the notebook's parameters cell: {unknown or 'none'}; "
            f"not in the section {notebook!r} or in base: {missing or 'none'}"
        )
    return {name: value for name, value in base.items() if name in declared} | section


def executed(notebook: str, params: dict[str, dict], backbone: str | None = None) -> Path:
    """Return where the executed copy of a notebook lies."""
    name = "-".join(filter(None, (notebook, backbone)))
    return ROOT / params["base"]["results"] / "notebooks" / f"{name}.ipynb"


def execute(notebook: str, output: Path, parameters: dict) -> None:
    """Run a notebook and write the executed copy, whole or not at all; its progress bars go to the terminal.

    The copy of a notebook that failed lies beside, as NAME-failed.ipynb, until it succeeds.

    Raises:
        RuntimeError: a cell failed; the message says which, where its traceback is and how to go on.
    """
    failed = output.with_name(f"{output.stem}-failed.ipynb")
    # A kernel looks after its parent, but one that is orphaned while it starts would live for ever: it asks once more.
    orphan = f"__import__('os').getppid() == {os.getpid()} or __import__('os')._exit(1);"
    with atomic(output) as temporary, tempfile.TemporaryDirectory() as sockets:
        # The kernel talks through sockets of this user's, not through open ports.
        connection = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        try:
            papermill.execute_notebook(
                str(NOTEBOOKS / f"{notebook}.ipynb"),
                str(temporary),
                parameters,
                cwd=str(ROOT),
                progress_bar=False,
                config=connection,
                extra_arguments=[f"--IPKernelApp.exec_lines={orphan}"],
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
        except (PapermillExecutionError, DeadKernelError) as error:
            temporary.replace(failed)
            failed.chmod(0o644)
            raise RuntimeError(failure(notebook, parameters.get("backbone"), error, failed)) from None
    failed.unlink(missing_ok=True)


def failure(notebook: str, backbone: str | None, error: Exception, copy: Path) -> str:
    """Return what to tell of a notebook that failed: where, why, where more is to be read, and how to go on."""
    where = f"{notebook} ({backbone})" if backbone else notebook
    what = "its process was ended from outside: often there is not enough memory (fewer jobs at a time take less)"
    if isinstance(error, PapermillExecutionError):
        # An assertion without words is told by its line, the last that the traceback points to.
        lines = re.findall(r"^-+> *\d+ +(.*)", strip_color("\n".join(error.traceback)), re.MULTILINE)
        where = f"{where}, cell {error.exec_count}"
        what = f"{error.ename}: {error.evalue or ''.join(lines[-1:])}"
    return (
        f"{where}: {what}\n"
        f"The notebook as far as it came, with the full traceback: {copy}\n"
        "When the cause is removed, the same command goes on from there: what is finished is kept."
    )


def execute_in_place(notebook: str) -> None:
    """Run a notebook at its defaults and keep its outputs in the file, without times and progress bars."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    copy = ROOT / SMALL / "notebooks" / path.name
    execute(notebook, copy, {})
    with atomic(path) as temporary:
        content = nbformat.read(copy, as_version=4)
        content.metadata.pop("papermill", None)
        for cell in content.cells:
            cell.metadata = {"tags": tags} if (tags := [tag for tag in cell.metadata.get("tags", ())]) else {}
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(content, temporary)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Let a command line choose what :func:`read_params` takes."""
    parser.add_argument("--profile", help="of params.yaml")
    parser.add_argument("--data", help="instead of the data set of params.yaml: a folder of class folders, a CSV file")


@contextlib.contextmanager
def alone_in(workspace: str) -> Iterator[None]:
    """Keep other runs out of a workspace: two at once would take each other's files for their own.

    Raises:
        RuntimeError: another run is in it.
    """
    (ROOT / workspace).mkdir(parents=True, exist_ok=True)
    lock = FileLock(ROOT / workspace / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"another run is at work in {workspace}: wait for it to end, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def claim(workspace: str, data: str) -> None:
    """Note from which images of the user's a workspace is made.

    Raises:
        RuntimeError: it is made from others, of the same name.
    """
    folder, source = ROOT / workspace, str((ROOT / Path(data).expanduser()).resolve())
    note, has_images = folder / "source.txt", (folder / "dataset" / "images.safetensors").is_file()
    if has_images and note.is_file() and (other := note.read_text()) != source:
        raise RuntimeError(f"{workspace} is of {other}, not of {source}: rename one of the two, or delete {workspace}")
    with atomic(note) as temporary:
        temporary.write_text(source)


def main(arguments: list[str] | None = None) -> int:
    """Run one stage, or all notebooks for a profile or in place; 1 if a notebook failed."""
    parser = argparse.ArgumentParser(prog="python -m lrp_core.study.runs.pipeline", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("notebook", nargs="?", choices=OUTPUTS, help="the stage to run; if none, all are")
    what.add_argument("--in-place", action="store_true", help="run all notebooks at their small defaults")
    parser.add_argument("--backbone", help="of params.yaml, for a notebook that works on one")
    add_choice(parser)
    options = parser.parse_args(arguments)
    if (above := starter()) is not None:
        end_with(above)
    try:
        if options.in_place:
            for notebook in (*OUTPUTS, *ASIDE):
                print(f"running {notebook}", file=sys.stderr)
                execute_in_place(notebook)
            return 0
        params = read_params(options.profile, options.data)
        stages = [(options.notebook, options.backbone)]
        if options.notebook is None:
            stages = [(notebook, backbone) for notebook in OUTPUTS for backbone in backbones_of(notebook, params)]
        with alone_in(params["base"]["workspace"]):
            if options.data is not None:
                claim(params["base"]["workspace"], options.data)
            for notebook, backbone in stages:
                parameters = stage_parameters(notebook, params, backbone)
                print(f"running {notebook} {backbone or ''}", file=sys.stderr)
                execute(notebook, executed(notebook, params, backbone), parameters)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
