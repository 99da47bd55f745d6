"""Corrupted images against scipy, the attack against its closed form, the table by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from miniature import SETTINGS, Miniature
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from torch import nn

from lrp_core.study.analysis.robustness import (
    BLUR,
    CORRUPTIONS,
    NOISE,
    STEP,
    corrupted,
    fgsm,
    robustness,
    robustness_summary,
)
from lrp_core.study.data.pretrained import normalise
from lrp_core.study.runs.experiment import STAGES
from lrp_core.study.runs.measuring import choose
from lrp_core.study.runs.runner import run, write_runs

_NOISE = gaussian_filter(np.random.default_rng(0).normal(size=(64, 64, 3)), (2, 2, 0))
PHOTOGRAPH = (300 * _NOISE + 128).clip(0, 255).astype(np.uint8)


def corrupt(kind, image):
    return CORRUPTIONS[kind](image, np.random.default_rng(1)).astype(float)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupted_images_keep_shape_and_range_and_are_others(kind):
    image = CORRUPTIONS[kind](PHOTOGRAPH, np.random.default_rng(1))
    assert image.shape == PHOTOGRAPH.shape
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - PHOTOGRAPH).mean() > 1


def test_noise_has_the_strength_that_it_says():
    grey = np.full((200, 200, 3), 128, dtype=np.uint8)
    added = corrupt("noise", grey) - 128
    assert added.std() == pytest.approx(255 * NOISE, rel=0.02)
    assert added.mean() == pytest.approx(0, abs=0.3)
    assert np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.02)


def test_blur_is_a_gaussian_of_a_32nd_of_the_side():
    expected = gaussian_filter(PHOTOGRAPH.astype(float), (64 * BLUR, 64 * BLUR, 0), mode="nearest")
    assert np.abs(corrupt("blur", PHOTOGRAPH) - expected)[4:-4, 4:-4].mean() < 1  # Pillow's is made of boxes


def test_brightness_is_added_to_the_brightest_of_the_colours():
    assert (corrupt("brightness", np.full((4, 4, 3), 50, dtype=np.uint8)) == 50 + round(0.3 * 255)).all()
    assert (corrupt("brightness", np.full((4, 4, 3), 250, dtype=np.uint8)) == 255).all()
    orange = np.full((4, 4, 3), (100, 50, 0), dtype=np.uint8)
    assert np.abs(corrupt("brightness", orange) - np.array([176, 88, 0])).max() <= 2


def test_jpeg_rounds_cosines_as_its_standard_says():
    # ITU-T T.81, annex K: steps for the luminance at quality 50; libjpeg's at 40 are 5000 / 40 % of them.
    steps = [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
    steps = np.floor(np.array(steps) * 1.25 + 0.5)
    grey = PHOTOGRAPH[:8, :8, :1].repeat(3, axis=2)
    cosines = dctn(grey[..., 0] - 128.0, norm="ortho")
    expected = (idctn((cosines / steps).round() * steps, norm="ortho") + 128).clip(0, 255)
    assert np.abs(corrupt("JPEG", grey) - expected[..., None]).max() <= 2


def test_the_attack_on_a_linear_model_is_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, 5, 5, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 3, bias=False))
    model[1].weight = nn.Parameter(weight.flatten(1), requires_grad=False)
    pixels = torch.randint(0, 256, (90, 5, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    labels = torch.arange(90) % 3

    def prepare(pixels):
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.2

    attacked = fgsm(model, pixels, labels, prepare)
    images = prepare(pixels)
    shares = torch.einsum("nchw,kchw->nk", images, weight).softmax(dim=1)
    gradient = torch.einsum("nk,kchw->nhwc", shares - torch.eye(3)[labels], weight).numpy()
    expected = (pixels.astype(int) + STEP * np.sign(gradient)).clip(0, 255)
    assert (attacked == expected).mean() > 0.999  # a gradient of nearly 0 has no sign to rely on
    assert attacked.dtype == np.uint8


@pytest.mark.parametrize(("overlap", "variance"), [(0.0, 1 / 2), (0.2, 1 / 2 + 1 / 4)])
def test_what_is_lost_of_robustness_by_hand(overlap, variance):
    """The variance of a mean of two seeds, by that of one: more where each tests a fifth of the same images."""
    rows = []
    for seed, more in ((0, 0.0), (1, 0.1)):
        accuracies = {
            ("unpruned", 1.0): {"clean": 0.9, "noise": 0.6, "blur": 0.8, "fgsm": 0.3},
            ("old", 0.1): {"clean": 0.7, "noise": 0.3 - more, "blur": 0.7 - more, "fgsm": 0.4},
        }
        for (method, budget), by_kind in accuracies.items():
            for kind, accuracy in by_kind.items():
                row = {"backbone": "b", "method": method, "seed": seed, "budget": budget, "images": kind}
                rows.append(row | {"accuracy": accuracy, "harmonic_mean": accuracy / 2, "overlap": overlap})
    table = robustness_summary(pd.DataFrame(rows), ["noise", "blur"])
    assert table[["images", "method"]].to_numpy().tolist() == [
        ["corrupted", "unpruned"],
        ["corrupted", "old"],
        ["fgsm", "unpruned"],
        ["fgsm", "old"],
    ]
    assert (table.loc[[0, 2], ["clean_lost", "corrupted_lost", "more_lost"]] == 0).all(axis=None)
    changed, attacked = table.loc[1], table.loc[3]
    # Lost on corrupted images: 0.7 - 0.5 and 0.7 - 0.4; on clean ones: 0.2 in both seeds.
    assert changed[["clean", "corrupted", "harmonic_mean"]].tolist() == pytest.approx([0.7, 0.45, 0.225])
    assert changed[["clean_lost", "corrupted_lost", "more_lost"]].tolist() == pytest.approx([0.2, 0.25, 0.05])
    half = 12.7062 * (0.1**2 / 2 * variance) ** 0.5  # Student's t of one degree of freedom; of 0 and 0.1
    assert changed[["low", "high"]].tolist() == pytest.approx([0.05 - half, 0.05 + half], rel=1e-3)
    assert attacked[["corrupted_lost", "more_lost"]].tolist() == pytest.approx([-0.1, -0.3])
    assert table["seeds"].tolist() == [2] * 4


def test_networks_are_those_of_the_runs_and_lose_what_the_images_cost(tmp_path):
    """On clean images as accurate as when they were measured; on noise as when the noisy pixels are classified."""
    work, name = Miniature(tmp_path), "px-static+refit"
    runs = {one: run(work, one, 0, SETTINGS) for one in (name, "dynamic", "budget-search")}
    for stage, one in zip(STAGES, runs, strict=True):
        write_runs(work, stage, {(one, 0): runs[one]}, tmp_path)
    table = robustness(work, [name], [0], [0.5, 0.0]).set_index(["method", "budget", "images"])
    assert (table["overlap"] == work.overlap).all()
    assert table.index.droplevel("images").unique().tolist() == [("unpruned", 1.0), (name, 0.5)]  # none is of size 0
    table = table.sort_index()
    assert set(table.loc[("unpruned", 1.0)].index) == {"clean", *CORRUPTIONS, "fgsm"}
    curve = runs[name].curve
    chosen = choose(curve, curve["multiply_adds"] <= 0.5 * curve["multiply_adds"].max(), refitted=True)
    assert table.loc[(name, 0.5, "clean"), "accuracy"] == pytest.approx(chosen["accuracy"])
    assert table.loc[(name, 0.5, "clean"), "harmonic_mean"] == pytest.approx(chosen["harmonic_mean"])
    test, model = work.samples(0, "test"), work.network(0).model
    noisy = corrupted(work.pixels(test.index), 0)["noise"]
    predicted = model(normalise(torch.from_numpy(noisy).permute(0, 3, 1, 2), "vgg16", "hed-bsds500")).argmax(dim=1)
    by_class = [(predicted[test.labels == k] == k).double().mean().item() for k in range(3)]
    assert table.loc[("unpruned", 1.0, "noise"), "accuracy"] == pytest.approx(np.mean(by_class))
