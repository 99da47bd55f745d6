"""Does a network that keeps its accuracy keep its robustness? Accuracy on test images that are corrupted.

Corruptions: one of each group of Hendrycks and Dietterich (Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, ICLR 2019, sec. 3), at the strongest of the five strengths that their code has for images of 32
pixels; the blur grows with the image. Attack: one step of the fast gradient sign method, which knows the network
(Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015, sec. 4). No network is chosen by them.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from io import BytesIO

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from lrp_core.importance.criterion import BATCH
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean, predict
from lrp_core.study.analysis.statistics import paired_interval
from lrp_core.study.data.pretrained import normalise
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.finished import within
from lrp_core.study.runs.processes import side_by_side
from lrp_core.utils.devices import device_of, fastest_layout

NOISE, BLUR, BRIGHTNESS, JPEG = 0.1, 1 / 32, 0.3, 40  # of the grey values, of the side, of the grey values, quality
STEP = 1  # of the attack, in grey values of 0 to 255: the smallest that there is, since 2 break nearly everything
UNPRUNED, CLEAN, ATTACK = "unpruned", "clean", "fgsm"


def noise(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to an image (H, W, 3), uint8."""
    return (image + generator.normal(scale=255 * NOISE, size=image.shape)).round().clip(0, 255).astype(np.uint8)


def blur(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Blur an image (H, W, 3), uint8, by a Gaussian."""
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(BLUR * max(image.shape))))


def brightness(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Raise the value (of hue, saturation, value) of an image (H, W, 3), uint8."""
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    value = value.point(lambda grey: min(255, round(grey + 255 * BRIGHTNESS)))
    return np.array(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


def jpeg(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Compress an image (H, W, 3), uint8."""
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG)
    return np.array(Image.open(file))


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "brightness": brightness,
    "JPEG": jpeg,
}


def corrupted(pixels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return images (N, H, W, 3), uint8, with each of the :data:`CORRUPTIONS`."""
    generator = np.random.default_rng(seed)
    return {kind: np.stack([corrupt(image, generator) for image in pixels]) for kind, corrupt in CORRUPTIONS.items()}


def fgsm(
    model: nn.Module, pixels: np.ndarray, labels: torch.Tensor, prepare: Callable[[np.ndarray], torch.Tensor]
) -> np.ndarray:
    """Move every grey value by :data:`STEP` in the direction that raises the cross-entropy.

    Args:
        model: images to logits (N, K).
        pixels: (N, H, W, 3), uint8.
        labels: (N,), in 0..K-1.
        prepare: from pixels to what the model reads, (N, 3, H, W); rising in each of them.

    Returns:
        The attacked images, as ``pixels``.
    """
    signs = []
    for images, targets in zip(prepare(pixels).split(BATCH), labels.split(BATCH), strict=True):
        images = images.to(device_of(model)).requires_grad_(True)
        loss = F.cross_entropy(model(images), targets.to(images.device), reduction="sum")
        signs.append(torch.autograd.grad(loss, images)[0].sign().cpu())
    direction = torch.cat(signs).permute(0, 2, 3, 1).numpy().astype(int)
    return (pixels + STEP * direction).clip(0, 255).astype(np.uint8)


def robustness(
    experiment: Experiment, names: Sequence[str], seeds: Sequence[int], budgets: Iterable[float]
) -> pd.DataFrame:
    """Measure networks of finished runs on clean, corrupted and attacked test images.

    Args:
        experiment: where the runs were made.
        names: of the methods.
        seeds: of the runs.
        budgets: of multiply-adds, as fractions of the unpruned network's.

    Returns:
        One row per seed, network and kind of images: backbone, method ("unpruned" for the whole network), seed, budget,
        images ("clean", a name of :data:`CORRUPTIONS`, or "fgsm"), accuracy (class-averaged), harmonic_mean, overlap
        (share of the images that a seed tests). A method without a network that small has no row.
    """
    with side_by_side(experiment.jobs) as parallel:
        parts = parallel(
            delayed(_of_seed)(experiment.at(n), names, seed, list(budgets)) for n, seed in enumerate(seeds)
        )
        progress = tqdm(parts, f"corrupting {experiment.backbone_name}", total=len(seeds), unit="seed")
        return pd.DataFrame([row for rows in progress for row in rows])


def _of_seed(experiment: Experiment, names: Sequence[str], seed: int, budgets: list[float]) -> list[dict]:
    torch.set_num_threads(experiment.threads)
    test = experiment.samples(seed, "test")
    pixels = experiment.pixels(test.index)
    seen = {CLEAN: pixels} | corrupted(pixels, seed)

    def prepare(pixels: np.ndarray) -> torch.Tensor:
        images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), experiment.backbone_name, experiment.weights)
        return images.to(memory_format=fastest_layout(experiment.device))

    rows, networks = [], [(UNPRUNED, 1.0, experiment.network(seed).model)]
    for name in names:
        networks += [(name, budget, network.model) for budget, network in within(experiment, name, seed, budgets)]
    for name, budget, model in networks:
        for kind, images in (seen | {ATTACK: fgsm(model, pixels, test.labels, prepare)}).items():
            predicted = predict(model, prepare(images)).argmax(dim=1)
            accuracies = class_accuracies(predicted, test.labels, len(experiment.class_names)).numpy()
            row = {"backbone": experiment.backbone_name, "method": name, "seed": seed, "budget": budget}
            row |= {"images": kind, "accuracy": accuracies.mean(), "harmonic_mean": harmonic_mean(accuracies)}
            rows.append(row | {"overlap": experiment.overlap})
    return rows


def robustness_summary(rows: pd.DataFrame, corruptions: Collection[str]) -> pd.DataFrame:
    """Tell whether networks lose more on corrupted images than on clean ones.

    Every loss is against the unpruned network on the same images of the same seeds.

    Args:
        rows: as returned by :func:`robustness`, of one or more backbones and one data set.
        corruptions: kinds of images that are averaged; each of the others stands for itself.

    Returns:
        One row per backbone, kind of images ("corrupted" for the average), method and budget, the unpruned network
        first: backbone, images, method, budget, clean and corrupted (class-averaged accuracies on clean images and on
        those of this kind, means over seeds), harmonic_mean (on those of this kind), clean_lost and corrupted_lost
        (against the unpruned network), more_lost (corrupted_lost less clean_lost: the robustness that is lost besides
        the accuracy), low, high (its 95 % interval; none of one seed), seeds (in which there is a network that small).
        A network at chance has nothing to lose, whatever the images.
    """
    kinds = rows["images"].where(~rows["images"].isin(corruptions), "corrupted")
    network = ["backbone", "method", "budget", "seed"]
    means = rows.assign(images=kinds).groupby([*network, "images"], sort=False)[["accuracy", "harmonic_mean"]].mean()
    wide, overlap = means.unstack("images", sort=False), rows["overlap"].iloc[0]
    found = []
    for kind in [name for name in dict.fromkeys(kinds) if name != CLEAN]:
        table = pd.DataFrame({"clean": wide["accuracy", CLEAN], "corrupted": wide["accuracy", kind]})
        table["harmonic_mean"] = wide["harmonic_mean", kind]
        whole = table.xs(UNPRUNED, level="method").droplevel("budget")
        table = table.join(whole[["clean", "corrupted"]].add_prefix("whole_"), on=["backbone", "seed"])
        for images in ("clean", "corrupted"):
            table[f"{images}_lost"] = table[f"whole_{images}"] - table[images]
        for (backbone, method, budget), some in table.groupby(network[:3], sort=False):
            more = some["corrupted_lost"] - some["clean_lost"]
            low, high, _ = paired_interval(more, overlap) if len(more) > 1 else (np.nan, np.nan, np.nan)
            row = {"backbone": backbone, "images": kind, "method": method, "budget": budget}
            row |= some[["clean", "corrupted", "harmonic_mean", "clean_lost", "corrupted_lost"]].mean().to_dict()
            found.append(row | {"more_lost": more.mean(), "low": low, "high": high, "seeds": len(more)})
    return pd.DataFrame(found)
