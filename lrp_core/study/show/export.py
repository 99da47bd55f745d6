"""Hands a pruned network over: as safetensors, ONNX and torch.export, with a model card. One command: make export.

The pruning rate is chosen by a rule, on calibration images only: the largest up to which the cross-fitted harmonic mean of
the class accuracies has stayed within so many points of the unpruned network's.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from torch import nn

from lrp_core.graph.truncation import truncated
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean, predict
from lrp_core.metrics.cost import size
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.saving import load_pruned, read_recipe, save_pruned
from lrp_core.repair.ridge_head import classifier
from lrp_core.study.analysis.costs import smallest_network
from lrp_core.study.data.files import write_text
from lrp_core.study.data.pretrained import load_backbone, normalise
from lrp_core.study.paths import ROOT
from lrp_core.study.runs.pipeline import add_choice, read_params
from lrp_core.study.runs.experiment import Experiment
from lrp_core.study.runs.finished import networks_of, rebuilt
from lrp_core.utils.errors import check_choice
from lrp_core.utils.files import atomic

TOLERANCE = 1e-4  # of an exported network's logits, relative to the largest


class Deployed(nn.Module):
    """A network that takes pixels as they are: RGB, uint8, (N, 3, H, W), to logits (N, n_classes)."""

    def __init__(self, network: nn.Module, backbone: str, weights: str):
        """Put the normalisation that a backbone's weights expect in front of a network."""
        super().__init__()
        self.network, self._backbone, self._weights = network, backbone, weights

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.network(normalise(images, self._backbone, self._weights))


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
        truncation: the layer behind which the backbone was cut; "" for the whole one.

    Returns:
        The largest difference of any logit, relative to the largest logit.

    Raises:
        RuntimeError: an exported network differs from this one by more than 1e-4; nothing is left of it.
    """
    shape = [pruned.model.head.out_features, len(pruned.coupling.channels["head"])]
    recipe = {"backbone": backbone, "truncation": truncation, "head": shape}
    save_pruned(folder / "network.safetensors", pruned.model, pruned.kept(), pruned.example_shape, recipe)
    deployed = Deployed(pruned.model, backbone, weights).eval()
    with torch.no_grad():
        expected = deployed(pixels)
    worst = 0.0

    def compare(got: torch.Tensor, name: str) -> None:
        nonlocal worst
        difference = ((got - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{name} differs from the network by {difference:.1e}, more than {TOLERANCE:.0e}")
        worst = max(worst, difference)

    shapes = {"images": {0: torch.export.Dim("N", min=1)}}
    exported = torch.export.export(deployed, (pixels,), dynamic_shapes=shapes)
    with atomic(folder / "network.pt2") as temporary:
        torch.export.save(exported, temporary)
        with torch.no_grad():
            compare(torch.export.load(temporary).module()(pixels), "network.pt2")
    with atomic(folder / "network.onnx") as temporary:
        torch.onnx.export(exported, f=temporary, input_names=["images"], output_names=["logits"], external_data=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": pixels.numpy()})
        compare(torch.from_numpy(logits), "network.onnx")
    return worst


def load_exported(path: Path) -> nn.Module:
    """Read the network.safetensors of an export: images, normalised, to logits; in eval mode and frozen.

    Raises:
        ValueError: the file was not written by :func:`export_network`.
    """
    recipe = read_recipe(path)
    if recipe is None:
        raise ValueError(
            f"{path} does not say of which backbone it is; read it with lrp_core.pruning.saving.load_pruned"
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
    before = work.network(seed)
    (after,) = rebuilt(work, name, seed, [(row["truncation"], int(row["removed"]))])
    pixels = torch.from_numpy(work.pixels(test.index)).permute(0, 3, 1, 2)
    difference = export_network(after, work.backbone_name, work.weights, pixels, folder, row["truncation"])
    rows = {}
    for column, network in (("before", before), ("after", after)):
        accuracies = class_accuracies(
            predict(network.model, test.images).argmax(dim=1), test.labels, len(work.class_names)
        )
        sizes = asdict(size(network.model, test.images[:1]))
        rows[column] = {f"accuracy, {label}": f"{a:.1%}" for label, a in zip(work.class_names, accuracies, strict=True)}
        rows[column] |= {"accuracy, mean of the classes": f"{accuracies.mean():.1%}"}
        rows[column] |= {"harmonic mean of the classes": f"{harmonic_mean(accuracies):.1%}"}
        rows[column] |= {what: f"{sizes[what]:,}" for what in ("filters", "parameters", "multiply_adds")}
        rows[column] |= {"latency of one image, ms": f"{1000 * sizes['latency']:.1f}"}
    write_text(folder / "MODEL_CARD.md", _card(work, name, seed, max_accuracy_drop, row, pixels, difference, rows))


def _card(
    work: Experiment,
    name: str,
    seed: int,
    max_accuracy_drop: float,
    row: pd.Series,
    pixels: torch.Tensor,
    difference: float,
    rows: dict[str, dict[str, str]],
) -> str:
    table = pd.DataFrame(rows)
    lines = [f"| {what} | {values['before']} | {values['after']} |" for what, values in table.iterrows()]
    calibration = np.bincount(work.samples(seed, "calibration").labels)
    classes = ", ".join(f"{i}: {label}" for i, label in enumerate(work.class_names))
    side = pixels.shape[-1]
    truncation = f"; its backbone ends behind the layer `{row['truncation']}`" if row["truncation"] else ""
    return "\n".join(
        [
            f"# {work.backbone_name}, pruned for {work.dataset_name}",
            "",
            f"A frozen {work.backbone_name} (weights: {work.weights}) with a linear head, without {row['rate']:.1%} of "
            f"its filters{truncation}. Removed by `{name}`; nothing was trained but the head.",
            "",
            f"- Data: {work.dataset_name}, seed {seed}; {calibration.sum()} labelled images ({calibration.tolist()} a class) for "
            f"the head, the pruning and every choice; {len(pixels)} test images, looked at once.",
            f"- Size: the fewest multiply-adds with which the cross-fitted accuracy on the labelled images is within "
            f"{100 * max_accuracy_drop:g} points of the unpruned network's.",
            f"- Input: RGB pixels, uint8, (N, 3, {side}, {side}). Output: logits of the classes {classes}.",
            "- Files: `network.onnx` and `network.pt2` (torch.export) take pixels; `network.safetensors` is read by "
            "`lrp_core.pruning.saving.load_pruned` and takes what `lrp_core.study.data.pretrained.normalise` gives.",
            f"- Checked: the exported networks' logits differ from the network's by {difference:.0e} of the largest.",
            "",
            "| on the test images and this machine | before | after |",
            "|---|---|---|",
            *lines,
            "",
            f"Accuracies are of one seed and {len(pixels)} images; the tables of the project have more seeds, with "
            "intervals. Latency is measured and differs from run to run. The licences of the weights and of the images "
            "apply to this network too.",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Export one network; 1 if it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m lrp_core.study.show.export", description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="default: the first of params.yaml")
    parser.add_argument("--method", help="default: the proposed one")
    parser.add_argument("--seed", type=int, help="default: the first")
    parser.add_argument(
        "--points", type=float, default=2.0, help="that the cross-fitted accuracy may fall (default: 2)"
    )
    add_choice(parser)
    options = parser.parse_args(arguments)
    try:
        params = read_params(options.profile, options.data)
        base = params["base"]
        backbone = options.backbone or next(iter(base["weights"]))
        check_choice("backbone of params.yaml", backbone, base["weights"])
        work = Experiment(base["workspace"], backbone, base["weights"][backbone], base["threads"], device="cpu")
        folder = ROOT / base["results"] / backbone / "export"
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
