"""Does the call keep its word? What `lrp_core.prune` says of unseen images, and what unseen images say.

Every draw (benchmarks/tasks.py) is pruned twice: as the call does by default, told whether the last layer was fitted to
the images; and with images and last layer as they are. Each size of a path stands beside test images that had no part
in anything. Sizes with images as they are stand beside the plainest alternatives, too: layer by layer with least
squares (benchmarks/layer_by_layer.py) and Neuron Merging (benchmarks/neuron_merging.py). At half and at 30 % of the
multiply-adds distillation is tried on top. Writes a row a draw, method and size to results/benchmarks/promise.csv.
Draws that are measured already, in data/promise, are not measured again. `make tables` makes the tables of
docs/results.md. The committed rows have a third method on three seeds of the frozen networks: a chosen image size
without a new head.

Other draws chose the call's settings (seeds from 1000), its rule among them, and checked its intervals (those and seeds
from 2000). These (seeds from 3000) chose two things: with those of benchmarks/real_size.py, what the call does by
default; and that a drop counts from the largest sizes of a path, if they are more accurate. Three further draws of each
pair (seeds from 5000), only as the call does by default, chose nothing.

    python benchmarks/promise.py --cifar10 DIR --trashnet DIR --weights DIR --seeds 3000 3001 3002 3003 3004 3005
"""

import time
from collections.abc import Iterator

import torch
from torch import nn

import lrp_core
from layer_by_layer import layer_by_layer
from lrp_core.metrics.accuracy import class_accuracies, predict
from lrp_core.repair.distillation import distil
from lrp_core.study.analysis.promise import DISTILLED, OURS, by_default
from neuron_merging import neuron_merging
from side_by_side import side_by_side
from tasks import ALL, Draw, Setup, draw

TRAINED_AT = (0.5, 0.3)  # of the multiply-adds: where distillation is tried


def measured(model: nn.Module, one: Draw) -> dict[str, float]:
    """Return the test accuracy, averaged over classes, and the harmonic mean of the class accuracies."""
    predicted = predict(model, one.test_images, 100).argmax(dim=1)
    by_class = class_accuracies(predicted, one.test_labels, int(one.test_labels.max()) + 1)
    return {"test_accuracy": by_class.mean().item(), "test_harmonic_mean": lrp_core.harmonic_mean(by_class)}


def predicted(pruned: lrp_core.Pruned) -> dict[str, float]:
    """Return the predicted accuracy of a network, its interval, and the predicted drop; nothing without folds."""
    if (found := pruned.estimate) is None:
        return {}
    low, high = found.accuracy_interval
    return {"accuracy": found.accuracy, "accuracy_low": low, "accuracy_high": high, "drop": found.drop}


def call(one: Draw, method: str) -> tuple[lrp_core.Pruned, Iterator[dict]]:
    """Prune by the call; return the result, and a row a size of its path."""
    told = {} if method == OURS else {"head_fitted": one.head_fitted}  # they have to be
    began = time.perf_counter()
    pruned = one.prune(method=method, multiply_adds=0.5, **told)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    predict(one.model, one.images)
    one_pass = time.perf_counter() - began

    def rows() -> Iterator[dict]:
        for row in (row for row in pruned.path if row.estimate is not None):  # a fold may end a little earlier
            found = row.estimate
            yield {
                "multiply_adds": row.multiply_adds,
                "parameters": row.parameters,
                "images": found.images,
                "accuracy": found.accuracy,
                "accuracy_low": found.accuracy_interval[0],
                "accuracy_high": found.accuracy_interval[1],
                "harmonic_mean": found.harmonic_mean,
                "harmonic_mean_low": found.harmonic_mean_interval[0],
                "harmonic_mean_high": found.harmonic_mean_interval[1],
                "drop": found.drop,
                "drop_low": found.drop_interval[0],
                "drop_high": found.drop_interval[1],
                "seconds": seconds,
                "passes": seconds / one_pass,
                **measured(one.model if row.size is None else pruned._run.down.model(row.size), one),
            } | {"method": method}

    return pruned, rows()


def distilled(one: Draw, pruned: lrp_core.Pruned) -> Iterator[dict]:
    """Yield our networks of the sizes where distillation is tried, and what it makes of them."""
    for limit in TRAINED_AT:
        smaller = pruned.select(multiply_adds=limit)
        share = smaller.after.multiply_adds / smaller.before.multiply_adds
        yield {"method": OURS, "multiply_adds": share, **measured(smaller.model, one)}
        distil(smaller.model, one.model, one.images, seed=0)
        yield {"method": DISTILLED, "multiply_adds": share, **measured(smaller.model, one)}


def alternatives(one: Draw, sizes: list[float]) -> Iterator[dict]:
    """Yield a row for each alternative and size."""
    began = time.perf_counter()
    for fraction, model in layer_by_layer(one.model, one.images, sizes):
        seconds = time.perf_counter() - began
        yield {"method": "layer-by-layer", "multiply_adds": fraction, "seconds": seconds, **measured(model, one)}
    for fraction, model in neuron_merging(one.model, one.images[:1], sizes[1:7]):
        yield {"method": "neuron-merging", "multiply_adds": fraction, **measured(model, one)}


def measured_rows(task: str, network: str, seed: int, method: str, setup: Setup) -> Iterator[dict]:
    """Measure one draw: the call with a method, and what stands beside ours on the given images."""
    one = draw(task, network, seed, setup)
    pruned, rows = call(one, method)
    others = ()
    if method == OURS:
        sizes = sorted({row.multiply_adds for row in pruned.path[1:]} | {*TRAINED_AT}, reverse=True)
        others = (*distilled(one, pruned), *alternatives(one, sizes))
    yield from ({"task": task, "network": network, "seed": seed} | row for row in (*rows, *others))


def parts(seeds: list[int]) -> Iterator[tuple[str, str, int, str]]:
    """Yield draws, seed by seed, those with images as they are first."""
    yield from ((*pair, seed, OURS) for seed in seeds for pair in ALL)
    yield from ((*pair, seed, by_default(pair[1])) for seed in seeds for pair in ALL)


if __name__ == "__main__":
    side_by_side("promise", __doc__, parts, measured_rows)
