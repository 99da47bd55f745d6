"""What training on the same few labelled images would give: before pruning, after pruning, and instead of it.

Three trainings, each from the network that is at hand. *Fine-tuning* trains all weights with cross-entropy, from a head
that is fitted first (LP-FT: Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution, ICLR 2022). Two folds of the images choose the step size; the best of all step sizes by the test
images stands beside it, as a bound that nobody can reach. *Distillation* follows the unpruned network's logits
(:mod:`lrp_core.repair.distillation`). Batch normalisation stays as it is: images are few. Writes a row a draw, network
and training to results/benchmarks/training.csv. What data/training has is not measured again.

The draws are those of benchmarks/promise.py.

    python benchmarks/training.py --cifar10 DIR --trashnet DIR --weights DIR --seeds 3000 3001 3002 3003 3004
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from layer_by_layer import layer_by_layer
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import predict
from lrp_core.repair.distillation import distil
from lrp_core.repair.out_of_fold import draw_folds, with_last_layer
from lrp_core.repair.ridge_head import fit_heads, read_by
from lrp_core.repair.temperature import scale_head
from lrp_core.utils.devices import device_of
from promise import measured
from side_by_side import side_by_side
from tasks import FINE_TUNED, FROZEN, TRAINED, Draw, Setup, draw

PAIRS = (
    *((task, "squeezenet1_1") for task in ("trashnet", "elpv")),
    *(("cifar10", network) for network in (*TRAINED, FINE_TUNED)),
)
# Step sizes of Adam, relative to a tensor's root mean square (Shazeer and Stern, Adafactor, ICML 2018, sec. 8): heads
# on features of large scale have small weights.
RATES = (2e-4, 2e-3, 2e-2)
EPOCHS, BATCH, FOLDS = 10, 32, 2
LIMITS = (0.25,)  # of the multiply-adds


def with_head(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, blocks: np.ndarray) -> nn.Module:
    """Return a copy whose head is fitted to these images, with outputs that are logits."""
    name, fold = trace(model)[-1].name, draw_folds(labels, blocks, 4, 0)
    model = with_last_layer(model, fit_heads(read_by(model, name, images), labels, fold).weight, None)
    scale_head(model, name, images, labels, fold)
    return model


def fine_tuned(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, rate: float, progress: bool = False
) -> nn.Module:
    """Return a copy whose weights are all trained with cross-entropy; half of the images are mirrored at random."""
    model, generator = copy.deepcopy(model).requires_grad_(True), torch.Generator().manual_seed(0)
    groups = [{"params": part, "lr": rate * part.detach().square().mean().sqrt().item()} for part in model.parameters()]
    optimiser, device = torch.optim.Adam(groups), device_of(model)
    for _ in tqdm(range(EPOCHS), "training", unit="epoch", disable=not progress):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
            mirrored = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
            batch = torch.where(mirrored, images[chosen].flip(3), images[chosen])
            loss = F.cross_entropy(model(batch.to(device)), labels[chosen].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.requires_grad_(False)


def by_rate(model: nn.Module, one: Draw, frozen: bool) -> Iterator[tuple[float, float, nn.Module]]:
    """Yield step sizes, the accuracy that folds expect of each, and the network that it trains."""
    blocks = np.arange(len(one.labels)) if one.groups is None else one.groups.numpy()
    fold = draw_folds(one.labels, blocks, FOLDS, 0)

    def trained(some: torch.Tensor, rate: float) -> nn.Module:
        images, labels = one.images[some], one.labels[some]
        start = with_head(model, images, labels, blocks[some.numpy()]) if frozen else model
        return fine_tuned(start, images, labels, rate)

    for rate in RATES:
        right = [
            predict(trained(fold != k, rate), one.images[fold == k]).argmax(dim=1) == one.labels[fold == k]
            for k in range(FOLDS)
        ]
        yield rate, torch.cat(right).double().mean().item(), trained(torch.ones_like(fold, dtype=torch.bool), rate)


def pruned(one: Draw) -> Iterator[tuple[float, nn.Module]]:
    """Prune by ours, and yield sizes and networks."""
    found = one.prune(multiply_adds=0.5, folds=0)
    for limit in LIMITS:
        yield limit, found.select(multiply_adds=limit).model


def rows(one: Draw, frozen: bool) -> Iterator[dict]:
    """Yield a row for each network and training."""

    def trained(name: str, size: float, model: nn.Module) -> Iterator[tuple[dict, nn.Module]]:
        key = {"pruning": name, "multiply_adds": size}
        yield key | {"training": "none", **measured(model, one)}, model
        found = [(judged, rate, after, measured(after, one)) for rate, judged, after in by_rate(model, one, frozen)]
        _, rate, best, scores = max(found, key=lambda row: row[0])
        yield key | {"training": "fine-tuning", "rate": rate, **scores}, best
        _, rate, _, scores = max(found, key=lambda row: row[3]["test_accuracy"])
        yield key | {"training": "fine-tuning, best rate by test", "rate": rate, **scores}, best
        if size < 1:
            distil(model := copy.deepcopy(model), one.model, one.images, seed=0)
            yield key | {"training": "distillation", **measured(model, one)}, model

    whole = list(trained("unpruned", 1.0, one.model))
    yield from (row for row, _ in whole)
    for size, model in pruned(replace(one, model=whole[1][1])):
        yield {"pruning": "ours", "multiply_adds": size, "training": "fine-tuning before", **measured(model, one)}
    for size, model in pruned(one):
        yield from (row for row, _ in trained("ours", size, model))
    for size, (_, model) in zip(LIMITS, layer_by_layer(one.model, one.images, LIMITS), strict=False):
        yield from (row for row, _ in trained("layer by layer", size, model))


def measured_rows(task: str, network: str, seed: int, setup: Setup) -> Iterator[dict]:
    """Measure one draw."""
    one = draw(task, network, seed, setup)
    key = {"task": task, "network": network, "seed": seed, "overlap": one.overlap, "device": setup.computed_on}
    yield from (key | row for row in rows(one, network in FROZEN))


def parts(seeds: list[int]) -> Iterator[tuple[str, str, int]]:
    """Yield draws, seed by seed."""
    yield from ((*pair, seed) for seed in seeds for pair in PAIRS)


if __name__ == "__main__":
    side_by_side("training", __doc__, parts, measured_rows)
