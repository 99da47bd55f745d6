"""When the machine fails, or somebody means harm: data and results stay whole."""

import hashlib
import os
import subprocess
import sys
import zipfile

import nbformat
import pytest
import torch
from safetensors.torch import load_file

from lrp_core.study.data import files
from lrp_core.study.data.downloads import Wheel
from lrp_core.study.paths import ROOT, SMALL
from lrp_core.study.runs import inputs, pipeline
from lrp_core.utils.files import atomic

FULL = """
import resource, signal, sys, torch
from pathlib import Path
import numpy, pandas
from lrp_core.study.data.files import write_csv, write_tensors
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.saving import save_pruned
from torch import nn

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file can grow further, as on a full disk
folder, kind = Path(sys.argv[1]), sys.argv[2]
network = PrunedNetwork(nn.Sequential(nn.Conv2d(3, 64, 9), nn.ReLU(), nn.Conv2d(64, 2, 1)), torch.zeros(1, 3, 16, 16))
if kind == "tensors":
    write_tensors(folder / "kept.safetensors", {"a": torch.zeros(5000)})
elif kind == "table":
    write_csv(folder / "kept.csv", pandas.DataFrame(numpy.random.rand(500, 5)))
else:
    save_pruned(folder / "kept.safetensors", network.model, network.kept(), network.example_shape)
"""


@pytest.mark.parametrize("kind", ["tensors", "table", "network"])
def test_a_full_disk_leaves_the_old_file(tmp_path, kind):
    """The system refuses the write in its middle; what was there before is there still, and no more than that."""
    path = tmp_path / ("kept.csv" if kind == "table" else "kept.safetensors")
    path.write_bytes(b"what was there")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), kind], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="results"):
        files.write_text(tmp_path / "results" / "table.csv", "a,b\n")
    assert (tmp_path / "results").read_text() == "a file where a folder should be"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        files.write_text(tmp_path / "table.csv", "a,b\n")
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def interrupted():
        with atomic(tmp_path / "table.csv") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_in_one_workspace(tmp_path, monkeypatch, capsys):
    """The second says so and leaves; when the first has ended, it may."""
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    monkeypatch.setattr(pipeline, "read_params", lambda *args: {"base": {"workspace": "data/x", "results": "results"}})
    monkeypatch.setattr(pipeline, "stage_parameters", lambda *args: {})
    ran = []
    monkeypatch.setattr(pipeline, "execute", lambda *args: ran.append(args))
    hold = (
        "import sys, time; from pathlib import Path; from lrp_core.study.runs import pipeline; "
        "pipeline.ROOT = Path(sys.argv[1])\nwith pipeline.alone_in('data/x'): print('in', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "in\n"
    assert pipeline.main(["01_data_prep"]) == 1
    assert "another run is at work in data/x: wait for it to end, or stop it" in capsys.readouterr().err
    assert ran == []
    first.kill()  # a lock that outlives its holder would shut everybody out
    first.wait()
    first.stdout.close()
    assert pipeline.main(["01_data_prep"]) == 0
    assert len(ran) == 1


def write_notebook(path, source):
    cells = [nbformat.v4.new_code_cell(text) for text in ("backbone = ''", source)]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("broken = True\nassert not broken", "02_x (vgg16), cell 3: AssertionError: assert not broken"),
        ("raise ValueError('no images')", "02_x (vgg16), cell 3: ValueError: no images"),
        ("import os\nos.kill(os.getpid(), 9)", "02_x (vgg16): its process was ended from outside"),
    ],
)
def test_a_failed_cell_says_what_to_do(tmp_path, monkeypatch, source, said):
    """Where, why, where more is to be read, how to go on; the copy goes when it is of use no more."""
    monkeypatch.setattr(pipeline, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    output, failed = tmp_path / "out" / "02_x.ipynb", tmp_path / "out" / "02_x-failed.ipynb"

    def run(source: str) -> None:
        write_notebook(tmp_path / "02_x.ipynb", source)
        pipeline.execute("02_x", output, {"backbone": "vgg16"})

    with pytest.raises(RuntimeError) as error:
        run(source)
    first, second, third = str(error.value).splitlines()
    assert first.startswith(said)
    assert second == f"The notebook as far as it came, with the full traceback: {failed}"
    assert third.startswith("When the cause is removed, the same command goes on from there")
    assert list(output.parent.iterdir()) == [failed]
    assert source in [cell.source for cell in nbformat.read(failed, as_version=4).cells]
    run("pass")
    assert list(output.parent.iterdir()) == [output]


def test_a_failed_notebook_before_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(pipeline, "OUTPUTS", {"01_x": ("images",), "02_x": ()})
    for module in (pipeline, inputs):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    write_notebook(tmp_path / "01_x.ipynb", "assert not True")
    with pytest.raises(RuntimeError, match=r"^01_x, cell 2: AssertionError: assert not True\n.*01_x-failed\.ipynb\n"):
        inputs.ensure_inputs("02_x", SMALL)
    assert (tmp_path / SMALL / "notebooks" / "01_x-failed.ipynb").is_file()


def test_a_wheel_with_paths_outside_its_folder(tmp_path, monkeypatch):
    """Members are read by name, in memory: nothing is unpacked."""
    source, cache = tmp_path / "source.whl", tmp_path / "deep" / "cache"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("../../evil.txt", "evil")
        archive.writestr("/evil.txt", "evil")
        archive.writestr("package/data.txt", "content")
    wheel = Wheel("package", "1.0", "package-1.0-py3-none-any.whl", hashlib.sha256(source.read_bytes()).hexdigest())
    monkeypatch.setattr(
        Wheel, "_download", lambda self, folder: (folder / self.filename).write_bytes(source.read_bytes())
    )
    monkeypatch.setattr(Wheel.fetch, "__defaults__", (cache,))
    assert wheel.read("package/data.txt").read() == b"content"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [source.name, wheel.filename]


def test_half_a_file_of_tensors_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"a": torch.arange(100)})
    assert torch.equal(load_file(path)["a"], torch.arange(100))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        files.read_tensors(path)
