"""Runs on a Dask cluster are those of this process."""

import pandas as pd
import pytest
from dask.distributed import Client, LocalCluster
from miniature import SETTINGS, Miniature

from lrp_core.study.runs.runner import run_all


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers, processes of this machine."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None
    ) as cluster:
        yield cluster


def test_runs_on_a_cluster_are_those_of_one_process(tmp_path, cluster, monkeypatch):
    names = ["px-static", "dynamic+reconstruction"]
    here = Miniature(tmp_path / "here")
    expected = run_all(here, names, [1, 0], SETTINGS)
    there = Miniature(tmp_path / "there")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
    got = run_all(there, names, [1, 0], SETTINGS)
    assert list(got) == list(expected)
    for key, run in expected.items():
        pd.testing.assert_frame_equal(got[key].curve, run.curve)
        pd.testing.assert_frame_equal(got[key].trace, run.trace)
        assert (got[key].orders[""] == run.orders[""]).all()
    with Client(cluster) as client:  # it was they who worked
        ran = client.run(lambda: __import__("sys").modules.get("lrp_core") is not None)
    assert any(ran.values())


def test_a_cluster_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with pytest.raises(OSError, match=r"tcp://127\.0\.0\.1:1"):
        run_all(Miniature(tmp_path), ["px-static"], [0], SETTINGS)
