"""Does a network that keeps its accuracy keep its robustness? Ours and layer by layer on corrupted test images.

The networks and draws are those of benchmarks/real_size.py, the corruptions those of the small study
(lrp_core/study/analysis/robustness.py): noise, blur, brightness and JPEG. Nothing is chosen by them. Writes a row a
draw, method, size and kind of images to results/benchmarks/robustness.csv. What data/robustness has is not measured
again; the committed rows lack TrashNet, which takes longest.

    python benchmarks/robustness.py --cifar10 DIR --trashnet DIR --weights DIR --seeds 4000 4001 4002 4003 4004
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from few_images import networks
from lrp_core.study.analysis.robustness import CLEAN, corrupted
from promise import measured
from side_by_side import side_by_side
from tasks import FINE_TUNED, REAL_SIZE, TRAINED, Setup, draw

PAIRS = (*(("cifar10", network) for network in (*TRAINED, FINE_TUNED)), ("trashnet", "squeezenet1_1"))


def measured_rows(task: str, network: str, seed: int, setup: Setup) -> Iterator[dict]:
    """Measure one draw."""
    one = draw(task, network, seed, setup, REAL_SIZE)
    seen = {CLEAN: one.test_images}
    for kind, pixels in corrupted(one.test_pixels.permute(0, 2, 3, 1).numpy(), seed).items():
        seen[kind] = one.prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    key = {"task": task, "network": network, "seed": seed, "overlap": one.overlap, "device": setup.computed_on}
    for method, limit, model in networks(one):
        for kind, images in seen.items():
            found = measured(model, replace(one, test_images=images))
            scores = {name: found[f"test_{name}"] for name in ("accuracy", "harmonic_mean")}
            yield key | {"method": method, "budget": limit, "images": kind, **scores}


def parts(seeds: list[int]) -> Iterator[tuple[str, str, int]]:
    """Yield draws, seed by seed."""
    yield from ((*pair, seed) for seed in seeds for pair in PAIRS)


if __name__ == "__main__":
    side_by_side("robustness", __doc__, parts, measured_rows)
