"""Parallel work in processes that do not outlive the process that they work for."""

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
from joblib import Parallel, parallel_config


def end_with(pid: int) -> None:
    """End this process soon after another one ends: a check runs twice a second, even while this process is busy.

    A killed process cannot notify its children, and a busy child does not ask. Works on Linux and macOS.

    Args:
        pid: of the other process.
    """

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            other = psutil.Process(pid)
            while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end_with", daemon=True).start()


def starter() -> int | None:
    """Return the make or DVC process that started this one; None if a person started it.

    Our Makefile names its make to what it runs. DVC tells only that it is there: it is above, perhaps behind a shell.
    """
    if make := os.environ.get("LRP_STARTED_BY"):
        return int(make)
    if "DVC_STAGE" in os.environ:
        for parent in psutil.Process().parents():
            if "dvc" in [Path(word).name for word in parent.as_dict(["cmdline"])["cmdline"] or ()]:
                return parent.pid
    return None


@contextlib.contextmanager
def side_by_side(jobs: int) -> Iterator[Parallel]:
    """Yield what runs things side by side: processes on this machine, or a Dask cluster that the environment names.

    Args:
        jobs: how many, on this machine.
    """
    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ImportError("DASK_SCHEDULER_ADDRESS is set: pip install --editable '.[cluster]'") from error
        with Client(address, set_as_default=True), parallel_config("dask"):
            yield Parallel(return_as="generator")
    else:
        with warnings.catch_warnings(), parallel_config("loky", initializer=end_with, initargs=(os.getpid(),)):
            # A process that holds much memory after a run is replaced by a fresh one, which is as it should be.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
            yield Parallel(jobs, return_as="generator")
