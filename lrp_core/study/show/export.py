"""Export a pruned network as safetensors, ONNX and torch.export, with a model card. One command: make export.

Of a finished run's networks it takes the one with the fewest multiply-adds whose cross-fitted accuracy is within a
given number of points of the unpruned network's. The calibration images decide; test images only fill the card's table.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from string import Template

import numpy as np
import onnxruntime
import torch
from torch import nn

from lrp_core.graph.truncation import classifier, truncated
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean, predict
from lrp_core.metrics.cost import size
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.saving import load_pruned, read_recipe, save_pruned
from lrp_core.study.analysis.costs import smallest_network
from lrp_core.study.data.files import write_text
from lrp_core.study.data.pretrained import load_backbone, normalise
from lrp_core.study.data.workspace import Samples
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.finished import networks_of, rebuilt
from lrp_core.study.runs.pipeline import add_choice, read_params
from lrp_core.utils.errors import check_choice
from lrp_core.utils.files import atomic

NETWORK = "network.safetensors"
CARD = Path(__file__).with_name("templates") / "model_card.md"
TOLERANCE = 1e-4  # of an exported network's logits, relative to the largest


class Deployed(nn.Module):
    """A network from raw pixels, RGB, uint8, (N, 3, H, W), to logits (N, n_classes)."""

    def __init__(self, network: nn.Module, backbone: str, weights: str):
        """Put the normalisation that a backbone's weights expect in front of a network."""
        super().__init__()
        self.network, self._backbone, self._weights = network, backbone, weights

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.network(normalise(images, self._backbone, self._weights))


def write_exported(model: nn.Module, images: torch.Tensor, folder: Path) -> float:
    """Write network.onnx and network.pt2 (of torch.export), and compare what they give with the network.

    Both take any number of images.

    Args:
        model: images to logits (N, K), in eval mode.
        images: two or more to compare on, as the network takes them.
        folder: where to write.

    Returns:
        The largest difference of any logit, relative to the largest logit.

    Raises:
        RuntimeError: an exported network differs from this one by more than 1e-4; nothing is left of it.
    """
    with torch.no_grad():
        expected = model(images)
    worst = 0.0

    def compare(got: torch.Tensor, name: str) -> None:
        nonlocal worst
        difference = ((got - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{name} differs from the network by {difference:.1e}, more than {TOLERANCE:.0e}")
        worst = max(worst, difference)

    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
    with atomic(folder / "network.pt2") as temporary:
        torch.export.save(exported, temporary)
        with torch.no_grad():
            compare(torch.export.load(temporary).module()(images), "network.pt2")
    with atomic(folder / "network.onnx") as temporary:
        torch.onnx.export(exported, f=temporary, input_names=["images"], output_names=["logits"], external_data=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": images.numpy()})
        compare(torch.from_numpy(logits), "network.onnx")
    return worst


def export_network(
    pruned: PrunedNetwork, backbone: str, weights: str, pixels: torch.Tensor, folder: Path, truncation: str = ""
) -> float:
    """Write network.safetensors, network.onnx and network.pt2, and compare the latter two with the network.

    Args:
        pruned: a classifier of a backbone, with one head.
        backbone: its name.
        weights: of the backbone, which tell how pixels are normalised.
        pixels: two images or more to compare on, (N, 3, H, W), uint8.
        folder: where to write.
        truncation: of the backbone (:class:`lrp_core.graph.truncation.Truncation`); "" for the whole one.

    Returns:
        As :func:`write_exported`, which says what is raised, too.
    """
    shape = [pruned.model.head.out_features, len(pruned.coupling.channels["head"])]
    recipe = {"backbone": backbone, "truncation": truncation, "head": shape}
    save_pruned(folder / NETWORK, pruned.model, pruned.kept(), pruned.example_shape, recipe)
    return write_exported(Deployed(pruned.model, backbone, weights).eval(), pixels, folder)


def load_exported(path: str | Path) -> nn.Module:
    """Read the network.safetensors of an export, in eval mode and frozen.

    It takes images (N, 3, H, W) as returned by :func:`lrp_core.study.data.pretrained.normalise`, and returns logits
    (N, n_classes), the same as those of the network that was exported, bit by bit.

    Raises:
        ValueError: the file was not written by :func:`export_network`.
    """
    recipe = read_recipe(path)
    if recipe is None:
        raise ValueError(
            f"{path} does not say of which backbone it is: read it with lrp_core.load_pruned, and a function that "
            "makes the unpruned network"
        )

    def build() -> nn.Module:
        backbone = load_backbone(recipe["backbone"], "random")
        return classifier(truncated(backbone, recipe["truncation"]), torch.zeros(recipe["head"]))

    return load_pruned(path, build)


def export(work: Experiment, name: str, seed: int, max_accuracy_drop: float, folder: Path) -> None:
    """Export a finished run's network with its model card.

    Args:
        work: the prepared workspace with a backbone.
        name: of the method.
        seed: of the run.
        max_accuracy_drop: how far the cross-fitted accuracy on the calibration images may fall, as a fraction.
        folder: where to write.

    Raises:
        FileNotFoundError: the run's files are not there.
        ValueError: there is no such run.
    """
    networks = networks_of(work, name, seed)
    row = smallest_network(networks, max_accuracy_drop)
    test = work.samples(seed, "test")
    (after,) = rebuilt(work, name, seed, [(row["truncation"], int(row["removed"]))])
    pixels = torch.from_numpy(work.pixels(test.index)).permute(0, 3, 1, 2)
    difference = export_network(after, work.backbone_name, work.weights, pixels, folder, row["truncation"])
    calibration = np.bincount(work.samples(seed, "calibration").labels)
    card = {
        "backbone": work.backbone_name,
        "weights": work.weights,
        "dataset": work.dataset_name,
        "method": name,
        "seed": seed,
        "removed": f"{row['rate']:.1%}",
        "depth": f"; the backbone is truncated to `{row['truncation']}`" if row["truncation"] else "",
        "truncation": row["truncation"],
        "head": ", ".join(map(str, read_recipe(folder / NETWORK)["head"])),
        "n_calibration": calibration.sum(),
        "per_class": ", ".join(map(str, calibration)),
        "n_test": len(pixels),
        "points": f"{100 * max_accuracy_drop:g}",
        "side": pixels.shape[-1],
        "classes": ", ".join(f"{i}: {label}" for i, label in enumerate(work.class_names)),
        "difference": f"{difference:.0e}",
        "table": _before_and_after(work, work.network(seed).model, after.model, test),
    }
    write_text(folder / "MODEL_CARD.md", Template(CARD.read_text()).substitute(card))


def _before_and_after(work: Experiment, before: nn.Module, after: nn.Module, test: Samples) -> str:
    """Return the rows of a Markdown table of what two networks reach on test images, and of what they cost."""
    columns = []
    for model in (before, after):
        predicted, cost = predict(model, test.images).argmax(dim=1), asdict(size(model, test.images[:1]))
        accuracies = class_accuracies(predicted, test.labels, len(work.class_names))
        column = {f"accuracy, {label}": f"{a:.1%}" for label, a in zip(work.class_names, accuracies, strict=True)}
        column |= {"accuracy, mean of the classes": f"{accuracies.mean():.1%}"}
        column |= {"harmonic mean of the classes": f"{harmonic_mean(accuracies):.1%}"}
        column |= {what.replace("_", "-"): f"{cost[what]:,}" for what in ("filters", "parameters", "multiply_adds")}
        columns.append(column | {"latency of one image, ms": f"{1000 * cost['latency']:.1f}"})
    return "\n".join(f"| {what} | {value} | {columns[1][what]} |" for what, value in columns[0].items())


def main(arguments: list[str] | None = None) -> int:
    """Export one network; 1 if it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m lrp_core.study.show.export", description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="default: the first of params.yaml")
    parser.add_argument("--method", help="default: the proposed one")
    parser.add_argument("--seed", type=int, help="default: the first")
    drop = "how far the cross-fitted accuracy may fall, in points (default: 2)"
    parser.add_argument("--max-accuracy-drop", type=float, default=2.0, metavar="POINTS", help=drop)
    add_choice(parser)
    options = parser.parse_args(arguments)
    try:
        params = read_params(options.profile, options.data)
        base = params["base"]
        backbone = options.backbone or next(iter(base["weights"]))
        check_choice("backbone of params.yaml", backbone, base["weights"])
        work = Experiment(base["workspace"], backbone, base["weights"][backbone], base["threads"], device="cpu")
        folder = ROOT / base["results"] / "export" / backbone
        seed = base["seeds"][0] if options.seed is None else options.seed
        name = options.method or params["05_auc_tables_figures"]["proposed"]
        export(work, name, seed, options.max_accuracy_drop / 100, folder)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((folder / "MODEL_CARD.md").read_text())
    print(f"written to {folder.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
