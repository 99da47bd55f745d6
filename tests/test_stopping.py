"""Whoever of a chain of processes is killed: those below end as well, also when they are busy, and soon."""

import contextlib
import ctypes
import os
import sys
import time

import nbformat
import psutil
import pytest

from lrp_core.study.paths import ROOT

BUSY = """
import time
from joblib import delayed
from lrp_core.study.runs.processes import side_by_side

def work(path):
    with open(path, "w"):  # tells that it has begun
        while True:
            sum(range(1000))

def nothing():
    pass
"""
WORKERS = f"""{BUSY}
import sys
with side_by_side(2) as parallel:
    list(parallel(delayed(nothing)() for _ in range(4)))
with side_by_side(2) as parallel:  # the same processes again
    list(parallel(delayed(work)(f"busy{{n}}") for n in range(2)))
"""
# The real pipeline, on one notebook of a folder of its own.
PIPELINE = """
import sys
from pathlib import Path
from lrp_core.study.runs import pipeline
pipeline.ROOT, pipeline.NOTEBOOKS, pipeline.OUTPUTS = Path.cwd(), Path.cwd(), {"01_busy": ()}
sys.exit(pipeline.main(sys.argv[3:]))  # after -m lrp_core.study.runs.pipeline
"""
PARAMS = "base: {workspace: data, results: results, weights: {}}\n01_busy: {}\nprofiles: {}\n"
STAGE = "python -m lrp_core.study.runs.pipeline 01_busy"


@pytest.fixture(autouse=True)
def adopt():
    """Let orphans come to this process, where the system can: on many machines they do not come to process 1."""
    if sys.platform == "linux":
        subreaper = 36  # PR_SET_CHILD_SUBREAPER
        libc = ctypes.CDLL(None)
        libc.prctl(subreaper, 1)
        yield
        libc.prctl(subreaper, 0)
    else:
        yield


@pytest.fixture
def start(tmp_path):
    """Start a command line in the temporary folder and return it as a process; all that it left is ended at last."""
    processes, log = [], tmp_path / "log"

    def started(*words: str) -> psutil.Popen:
        environment = {name: value for name, value in os.environ.items() if name not in ("LRP_STARTED_BY", "DVC_STAGE")}
        environment |= {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}/.venv/bin:{os.environ['PATH']}"}
        with log.open("a") as output:
            process = psutil.Popen(words, cwd=tmp_path, env=environment, stdout=output, stderr=output)
        processes.append(process)
        return process

    yield started
    for process in processes:
        for each in (*below(process), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
    print(log.read_text())


def below(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True) if process.is_running() else []


def wait_until(done, what: str, seconds: float = 60.0) -> None:
    """Ask again and again; in vain after so many seconds."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def kill(process: psutil.Process) -> None:
    """Kill it and wait until all that were below it are gone."""
    left = below(process)
    assert left
    process.kill()
    try:
        wait_until(lambda: not any(map(lives, left)), "they live on", 10)
    finally:
        for each in filter(lives, left):
            each.kill()


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def chain(folder, cell: str) -> None:
    """Prepare a folder in which our Makefile finds everything that it runs: stand-ins for DVC and for one notebook."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(notebook, folder / "01_busy.ipynb")
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "chain.py").write_text(PIPELINE)
    for name in ("pyproject.toml", "requirements.lock"):
        (folder / name).touch()
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    (folder / ".venv" / ".ready").touch()
    for name, line in {
        "python": f'exec "{sys.executable}" "{folder}/chain.py" "$@"',
        "dvc": f"DVC_STAGE=01_busy sh -c '{STAGE}; exit 1'",  # a shell that stays between
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)


def test_workers_end_with_the_process_that_they_work_for(tmp_path, start):
    (tmp_path / "workers.py").write_text(WORKERS)
    process = start(sys.executable, "workers.py")
    wait_until((tmp_path / "busy1").exists, "nothing has begun")
    kill(process)


def test_all_ends_with_make(tmp_path, start):
    """Started in the background of a shell that ends: that must not end it."""
    chain(tmp_path, WORKERS)
    start("sh", "-c", f"nohup make -f {ROOT}/Makefile repro & echo $! > pid").wait()
    make = psutil.Process(int((tmp_path / "pid").read_text()))
    wait_until((tmp_path / "busy1").exists, "nothing has begun")
    kill(make)


def test_a_stage_ends_with_dvc(tmp_path, start):
    chain(tmp_path, "open('busy', 'w').close()\nwhile True: pass")
    dvc = start("dvc")
    wait_until((tmp_path / "busy").exists, "nothing has begun")
    kill(dvc)


def test_a_kernel_that_is_just_starting_ends_with_its_pipeline(tmp_path, start):
    chain(tmp_path, "pass")
    pipeline = start(*STAGE.split())
    wait_until(lambda: below(pipeline), "no kernel has been started")
    kill(pipeline)
