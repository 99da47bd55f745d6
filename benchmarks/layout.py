"""What the layout of the images in memory costs on a CPU: a call with contiguous images, and with channels_last ones.

ELPV at 224 px (20 images per class, a development seed), one thread, no folds, to a quarter of the multiply-adds; the
two layouts take turns. Writes a row a network, layout and turn to results/benchmarks/layout.csv: seconds of the
processor, and the test accuracy. It takes 5 to 15 minutes.

    python benchmarks/layout.py
"""

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from lrp_core.study.data.files import write_csv
from lrp_core.study.paths import ROOT
from promise import measured
from tasks import IMAGENET, REAL_SIZE, Setup, draw

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TURNS = 2


def main() -> None:
    """Time the calls, and write the rows."""
    torch.set_num_threads(1)
    setup, rows = Setup(Path(), Path(), Path(), torch.device("cpu")), []
    draws = {network: draw("elpv", network, 900, setup, REAL_SIZE) for network in IMAGENET}
    todo = [(network, turn, layout) for network in draws for turn in range(TURNS) for layout in LAYOUTS]
    for network, turn, layout in tqdm(todo, "calls", unit="call"):
        one = draws[network]
        one = replace(one, images=one.images.to(memory_format=LAYOUTS[layout]))
        began = time.process_time()
        pruned = one.prune(multiply_adds=0.25, folds=0)
        seconds = time.process_time() - began
        key = {"network": network, "turn": turn, "layout": layout}
        rows.append(key | {"seconds": round(seconds, 1), **measured(pruned.model, one)})
    write_csv(ROOT / "results" / "benchmarks" / "layout.csv", pd.DataFrame(rows))


if __name__ == "__main__":
    main()
