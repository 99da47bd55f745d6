"""What people get wrong, and what they are told: the value, what was expected, what to do."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import miniature_vgg
from miniature import Miniature
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lrp_core.control import methods
from lrp_core.control.controller import Settings
from lrp_core.control.monitored import monitored_accuracies
from lrp_core.graph.tracing import trace
from lrp_core.importance.registry import criterion
from lrp_core.metrics import accuracy as evaluation
from lrp_core.metrics import curve
from lrp_core.pruning import surgery as pruning
from lrp_core.pruning.saving import load_pruned
from lrp_core.relevance import composites, lrp
from lrp_core.repair import out_of_fold, ridge_head
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.study.analysis import statistics
from lrp_core.study.data import datasets, splits
from lrp_core.study.data import pretrained as backbones
from lrp_core.study.data.files import read_tensors
from lrp_core.study.runs import pipeline
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.finished import within
from lrp_core.study.show import report
from lrp_core.utils.devices import choose_device


def photos(folder: Path, classes=("cat", "dog"), n: int = 12) -> Path:
    """A folder of class folders with n small pictures each."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (40, 40), (20 * k, i, 0)).save(folder / name / f"{i:02}.png")
    return folder


def manifest(folder: Path, rows: list[dict]) -> str:
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def broken_photos(folder: Path) -> Path:
    photos(folder)
    (folder / "cat" / "00.png").write_bytes(b"")
    (folder / "dog" / "05.png").write_bytes((folder / "dog" / "05.png").read_bytes()[:60])
    return folder


def split_of(folder: Path, **changes):
    dataset = datasets.load_dataset(str(photos(folder)), 32)
    return splits.split_dataset(dataset, **({"seed": 0, "n_calibration": 3, "n_test": 3, "block": 1} | changes))


def profile(folder: Path, changes: dict):
    """Read params.yaml with a profile of the user's."""
    params = pipeline.read_params()
    return pipeline.overlay(params, "mine", yaml.safe_load(yaml.safe_dump(changes)))


def stage(notebook: str, **changes):
    params = pipeline.read_params()
    return pipeline.stage_parameters(notebook, params | {notebook: params[notebook] | changes})


def not_traceable():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    return Branches()


IMAGES, TARGETS = torch.zeros(2, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1])

# In the words of a user: what was done, how, which error, which words.
TABLE = [
    # images
    (
        "a folder that is not there",
        lambda t: datasets.load_dataset(str(t / "no"), 48),
        ValueError,
        "no' is no folder of cl",
    ),
    (
        "a data set misspelt",
        lambda t: datasets.load_dataset("elvp", 48),
        ValueError,
        "'elvp' is no folder .* known data set",
    ),
    (
        "an empty folder",
        lambda t: datasets.load_dataset(str(t), 48),
        ValueError,
        "each of two classes or more, found 0",
    ),
    (
        "one class",
        lambda t: datasets.load_dataset(str(photos(t, ["cat"])), 48),
        ValueError,
        "two classes or more, found 1",
    ),
    (
        "images too small",
        lambda t: datasets.load_dataset("elpv", 16),
        ValueError,
        "image size 16 is too small: .* 32 pixels",
    ),
    (
        "broken files",
        lambda t: datasets.load_dataset(str(broken_photos(t)), 32),
        ValueError,
        r"2 of 24 images cannot be read; replace or remove them:\n.*cat/00\.png.*\n.*dog/05\.png",
    ),
    (
        "a list without labels",
        lambda t: datasets.load_dataset(manifest(t, [{"image": "a.png", "class": "x"}]), 32),
        ValueError,
        r"list\.csv has no column label; it has: image, class",
    ),
    (
        "a list with a gap",
        lambda t: datasets.load_dataset(manifest(t, [{"image": "a", "label": "x"}, {"image": "", "label": "y"}]), 32),
        ValueError,
        "no image or no label in line 3",
    ),
    (
        "a list that names an image twice",
        lambda t: datasets.load_dataset(manifest(t, [{"image": "a", "label": "x"}, {"image": "a", "label": "y"}]), 32),
        ValueError,
        "lists images twice: a",
    ),
    (
        "a list of images that are elsewhere",
        lambda t: datasets.load_dataset(manifest(t, [{"image": "a", "label": "x"}, {"image": "b", "label": "y"}]), 32),
        ValueError,
        r"2 of 2 images cannot be read; [\s\S]*No such file",
    ),
    (
        "positions that are no numbers",
        lambda t: datasets.load_dataset(manifest(t, [{"image": c, "label": c, "position": c} for c in ("a", "b")]), 32),
        ValueError,
        "whole numbers of 0 or more in its column position",
    ),
    (
        "more images asked for than there are",
        lambda t: split_of(t, n_calibration=9),
        ValueError,
        r"too few images for 9 calibration .*'cat': 6 and 6; 'dog': 6 and 6",
    ),
    ("blocks too long", lambda t: split_of(t, block=50), ValueError, "blocks of 50 images leave fewer than two blocks"),
    ("no block at all", lambda t: split_of(t, block=0), ValueError, "block must be 1 or more, got 0"),
    ("no test image", lambda t: split_of(t, n_test=0), ValueError, "n_test must be 1 or more, got 0"),
    # backbones and their weights
    (
        "a backbone misspelt",
        lambda t: backbones.load_backbone("vgg61", "random"),
        ValueError,
        "unknown backbone 'vgg61'; ch",
    ),
    (
        "weights misspelt",
        lambda t: backbones.load_backbone("vgg16", "coco"),
        ValueError,
        "'vgg16' 'coco'; choose one of: h",
    ),
    (
        "a module that is not there",
        lambda t: backbones.load_backbone("no.net", "random"),
        ValueError,
        "backbone 'no.net' .No mo",
    ),
    (
        "a function that makes no network",
        lambda t: backbones.load_backbone("collections.OrderedDict", "random"),
        ValueError,
        "must return a torch.nn.Module, it returned OrderedDict",
    ),
    (
        "a state_dict that is not there",
        lambda t: backbones.load_backbone("torch.nn.ReLU", str(t / "no.pt")),
        ValueError,
        r"no weights .*no\.pt for the backbone 'torch\.nn\.ReLU'; give a file with its state_dict, or random",
    ),
    (
        "a state_dict that is no file of torch's",
        lambda t: backbones.load_backbone("torch.nn.ReLU", str(written(t / "w.pt", b"hello"))),
        ValueError,
        r"w\.pt holds no state_dict of the backbone",
    ),
    (
        "a backbone with a classifier behind it",
        lambda t: ridge_head.pooled_features(miniature_vgg(), IMAGES),
        ValueError,
        r"a backbone gives feature maps \(N, C, H, W\), this one gave \(1, 4\) for one image",
    ),
    (
        "floating-point pixels",
        lambda t: backbones.normalise(IMAGES, "vgg16", "random"),
        ValueError,
        "expected uint8 images",
    ),
    (
        "a device that is not there",
        lambda t: choose_device("cuda:99"),
        ValueError,
        "cannot compute on device 'cuda:99' .* use",
    ),
    (
        "more folds than blocks",
        lambda t: out_of_fold.draw_folds(torch.arange(12) % 2, np.arange(12) // 4, 5, 0),
        ValueError,
        "the 12 calibration images are from 3 blocks, too few for 5 folds: choose a smaller block",
    ),
    # params.yaml and the command line
    (
        "a profile misspelt",
        lambda t: pipeline.read_params("ful"),
        ValueError,
        "unknown profile of params.yaml 'ful'; choose one",
    ),
    (
        "a profile of a section that is not there",
        lambda t: profile(t, {"06": {}}),
        ValueError,
        "changes what is not there: 06",
    ),
    (
        "a parameter misspelt",
        lambda t: stage("01_data_prep", blok=3),
        ValueError,
        r"not in the notebook's .* \['blok'\]",
    ),
    (
        "a backbone that params.yaml has no weights for",
        lambda t: pipeline.stage_parameters("02_head_training", pipeline.read_params(), "alexnet"),
        ValueError,
        "unknown backbone of params.yaml 'alexnet'; choose one of: efficientnet-lite0",
    ),
    (
        "a method misspelt",
        lambda t: methods.method("dynamc"),
        ValueError,
        "unknown method 'dynamc'; choose one of: activ",
    ),
    ("a batch of nothing", lambda t: Settings(batch=0), ValueError, r"batch must lie in \(0, 1\], got 0"),
    ("a batch in per cent", lambda t: Settings(batch=5), ValueError, r"batch must lie in \(0, 1\], got 5"),
    (
        "levels that rise",
        lambda t: Settings(levels=(0.5, 0.9)),
        ValueError,
        r"levels must descend .*, got \(0\.5, 0\.9\)",
    ),
    ("least above a batch", lambda t: Settings(least=2), ValueError, r"least must lie in \[0, 1\], got 2"),
    ("a floor of 0", lambda t: Settings(accuracy_floor=0), ValueError, r"accuracy_floor must lie in \(0, 1\), got 0"),
    # what the stages hand on
    (
        "stages left out",
        lambda t: Experiment(str(t), "vgg16", "random"),
        FileNotFoundError,
        r"images\.safetensors is missing: run the stages before this one",
    ),
    (
        "a seed that was not drawn",
        lambda t: Miniature(t).samples(9, "test"),
        ValueError,
        r"seed 9 .* has the seeds \[0, 1\]",
    ),
    (
        "a run that was not made",
        lambda t: next(within(Miniature(t), "dynamic", 0, [0.5])),
        FileNotFoundError,
        r"baseline.networks\.csv.* is missing: run the stages",
    ),
    (
        "a report without a run",
        lambda t: report.page([(t / "05.ipynb", None)]),
        FileNotFoundError,
        "05.ipynb is missing: run make repro",
    ),
    (
        "a file of tensors that is not there",
        lambda t: read_tensors(t / "x"),
        FileNotFoundError,
        "x is missing: run the stages",
    ),
    (
        "some other file for a pruned network",
        lambda t: load_pruned(written(t / "n.safetensors", b"hello"), miniature_vgg),
        ValueError,
        r"n\.safetensors holds no pruned network; expected a file written by save_pruned",
    ),
    (
        "tensors that are no pruned network",
        lambda t: (
            save_file({"a": torch.ones(1)}, t / "n.safetensors") or load_pruned(t / "n.safetensors", miniature_vgg)
        ),
        ValueError,
        "holds no pruned network",
    ),
    # in one's own code
    (
        "a network that cannot be traced",
        lambda t: trace(not_traceable()),
        ValueError,
        r"cannot trace Branches\.forward",
    ),
    (
        "a layer that is not supported",
        lambda t: trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softshrink())),
        ValueError,
        r"layer '1' .*Softshrink",
    ),
    (
        "a composite misspelt",
        lambda t: lrp.explain(miniature_vgg(), IMAGES, TARGETS, "zplus"),
        ValueError,
        "'zplus'; choose one",
    ),
    (
        "a rule misspelt",
        lambda t: composites.composite({"low": "eps", "mid": "zplus", "high": "zplus"}),
        ValueError,
        "for low 'eps'",
    ),
    (
        "too few targets",
        lambda t: lrp.explain(miniature_vgg(), IMAGES, TARGETS[:1]),
        ValueError,
        "2 images with 1 targets",
    ),
    (
        "targets that are no classes",
        lambda t: lrp.explain(miniature_vgg(), IMAGES, TARGETS.float()),
        ValueError,
        r"targets must be classes, integers \(N,\); got torch.float32 \(2,\)",
    ),
    (
        "a class that is not there",
        lambda t: lrp.explain(miniature_vgg(), IMAGES, TARGETS + 9),
        ValueError,
        r"lie in 0\.\.3, got 9\.\.10",
    ),
    (
        "a criterion misspelt",
        lambda t: criterion("tailor", 4, 0),
        ValueError,
        "unknown criterion 'tailor'; choose one of: ",
    ),
    (
        "filters of a layer that is not there",
        lambda t: pruning.remove_filters(miniature_vgg(), {"conv9": [0]}, IMAGES[:1]),
        ValueError,
        "'conv9' is no convolution of this network; it has: conv1, conv2, conv3",
    ),
    (
        "a filter that is not there",
        lambda t: pruning.remove_filters(miniature_vgg(), {"conv1": [6]}, IMAGES[:1]),
        ValueError,
        r"layer 'conv1' has filters 0\.\.5, not 6",
    ),
    (
        "all filters of a layer",
        lambda t: pruning.remove_filters(miniature_vgg(), {"conv1": range(6)}, IMAGES[:1]),
        ValueError,
        "layer 'conv1' would lose all of its 6 filters; leave at least one",
    ),
    ("a ridge of 0", lambda t: Reconstruction(miniature_vgg(), IMAGES, 0), ValueError, "a strength above 0, got 0"),
    (
        "a monitored accuracy misspelt",
        lambda t: monitored_accuracies(torch.zeros(2, 6), TARGETS, TARGETS, 2, "test"),
        ValueError,
        "unknown monitored accuracy 'test'; choose one of: cross-fitted, probability, training",
    ),
    (
        "a curve that ends early",
        lambda t: curve.pruning_auc([0, 0.5], [1, 1]),
        ValueError,
        r"from 0 to 0\.95 or beyond",
    ),
    (
        "one seed for an interval",
        lambda t: statistics.paired_interval([0.1], 0.0),
        ValueError,
        "two or more paired differences, got 1",
    ),
    ("an accuracy below 0", lambda t: evaluation.harmonic_mean([0.5, -0.1]), ValueError, "non-negative values, got"),
]


@pytest.mark.parametrize(("act", "error", "message"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_bad_input_is_told(tmp_path, act, error, message):
    with pytest.raises(error, match=message):
        act(tmp_path)
    assert not list(tmp_path.rglob(".*"))  # nothing half-written is left


def test_the_table_is_long_enough():
    assert len(TABLE) == len({row[0] for row in TABLE}) >= 40
