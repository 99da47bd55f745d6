"""Measures what the relevance of every filter costs, in forward passes, beside zennit: make bench.

One run measures all three by turns, on one thread, so that the ratios hold on a noisy machine. The forward pass that
serves as the unit, and zennit, get the network with batch normalisation folded already; ours gets it as it is. The
allocator keeps what is freed, for all three: the time of page faults depends on what a process did before. Memory is
the growth of the resident memory's peak over what was held before, each in a process of its own.
"""

import lrp_core  # first: it makes torchvision, which zennit asks for, importable

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from oracle import zennit_relevance
from torch import nn
from tqdm import tqdm
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, LayerMapComposite, layer_map_base
from zennit.layer import Sum
from zennit.rules import Epsilon
from zennit.types import Convolution, Linear

from lrp_core.study.data.pretrained import load_backbone
from lrp_core.study.data.files import write_csv
from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT
from lrp_core.graph.layers import Sum as TracedSum
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import classifier
from lrp_core.relevance.lrp import filter_relevance
from lrp_core.study.paths import ROOT

NETWORKS = ("vgg16", "resnet18", "efficientnet-lite0")
IMAGES = {96: 32, 224: 16}  # by size in pixels, how many at once
OPTIONS = {"zero_params": "bias"}  # zennit's way to keep biases out of the denominators
COMPOSITES = {  # by name: what ours is given, and how zennit's is made
    "epsilon": (
        dict.fromkeys(("low", "mid", "high", "dense"), "epsilon"),
        lambda: LayerMapComposite([*layer_map_base(), (Convolution, Epsilon(**OPTIONS)), (Linear, Epsilon(**OPTIONS))]),
    ),
    "epsilon-zplus": ("epsilon-zplus", lambda: EpsilonPlus(**OPTIONS)),
    "epsilon-alpha2-beta1": ("epsilon-alpha2-beta1", lambda: EpsilonAlpha2Beta1(**OPTIONS)),
    "epsilon-gamma-box": ("epsilon-gamma-box", lambda: EpsilonGammaBox(low=-3.0, high=3.0, **OPTIONS)),
}
REPEATS = 3
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**33)}  # glibc


class Plain(nn.Module):
    """A network as the list of its folded layers, with sums as zennit knows them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.layers = fold_batchnorm(trace(model))
        self.parts = nn.ModuleDict()
        for layer in self.layers:
            module = Sum() if isinstance(layer.module, TracedSum) else layer.module
            for name, tensor in module._parameters.items():
                module._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            self.parts[layer.name.replace(".", "/")] = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = {INPUT: x}
        for layer in self.layers:
            module, inputs = self.parts[layer.name.replace(".", "/")], [values[name] for name in layer.inputs]
            values[layer.name] = module(torch.stack(inputs, dim=-1) if isinstance(module, Sum) else inputs[0])
        return values[self.layers[-1].name]


def prepare(name: str, size: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a network with random parameters and a head for 4 classes, channels last, and images of one size."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    backbone = load_backbone(name, "random")
    channels = backbone(torch.zeros(1, 3, 64, 64)).shape[1]
    model = classifier(backbone, torch.randn(4, channels)).to(memory_format=torch.channels_last)
    images = torch.randn(IMAGES[size], 3, size, size).clamp(-3, 3).contiguous(memory_format=torch.channels_last)
    return model, images, torch.arange(len(images)) % 4


def relevance(tool: str, model: nn.Module, images: torch.Tensor, targets: torch.Tensor, composite: str) -> dict:
    """Relevance of every filter, by one of the two."""
    if tool == "zennit":
        by_layer, _ = zennit_relevance(Plain(model), images, targets, COMPOSITES[composite][1]())
        return {name.removeprefix("parts.").replace("/", "."): values for name, values in by_layer.items()}
    return filter_relevance(model, images, targets, COMPOSITES[composite][0], batch_size=len(images))


def seconds(function) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak(tool: str, name: str, size: int, composite: str) -> float:
    """Growth of the peak memory of a fresh process, in MiB."""
    command = [sys.executable, __file__, "--peak", tool, name, str(size), composite]
    usual = {name: value for name, value in os.environ.items() if name not in KEEP_FREED}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=usual).stdout)


def resident(which: str) -> float:
    """Resident memory of this process in MiB: VmRSS, now, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def measure(name: str, size: int) -> list[dict]:
    """One row a composite."""
    model, images, targets = prepare(name, size)
    folded = fold_batchnorm(trace(model))
    rows = []
    for composite in COMPOSITES:
        calls = {
            "forward": torch.inference_mode()(lambda: run(folded, {INPUT: images})),
            "ours": lambda: relevance("ours", model, images, targets, composite),
            "zennit": lambda: relevance("zennit", model, images, targets, composite),
        }
        results = {tool: call() for tool, call in calls.items()}  # warm
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(REPEATS):
            for tool, call in calls.items():
                best[tool] = min(best[tool], seconds(call))
        rows.append(
            {
                "network": name,
                "pixels": size,
                "composite": composite,
                "forward_ms_an_image": 1000 * best["forward"] / len(images),
                "ours": best["ours"] / best["forward"],
                "zennit": best["zennit"] / best["forward"],
                "memory_ours_MiB": peak("ours", name, size, composite),
                "memory_zennit_MiB": peak("zennit", name, size, composite),
                "correlation": min(
                    torch.corrcoef(torch.stack([results["ours"][key].flatten(), values.flatten()]))[0, 1].item()
                    for key, values in results["zennit"].items()
                ),
            }
        )
    return rows


def main() -> None:
    """Print the table, and keep it in results/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", nargs=4, metavar=("TOOL", "NETWORK", "PIXELS", "COMPOSITE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        tool, name, size, composite = options.peak
        arguments = prepare(name, int(size))
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        relevance(tool, *arguments, composite)
        print(resident("VmHWM") - before)
        return
    if not KEEP_FREED.items() <= os.environ.items():  # glibc reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED)
    todo = [(name, size) for name in NETWORKS for size in IMAGES]
    table = pd.DataFrame([row for name, size in tqdm(todo, unit="network") for row in measure(name, size)])
    write_csv(ROOT / "results" / "benchmarks" / "relevance.csv", table)
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
