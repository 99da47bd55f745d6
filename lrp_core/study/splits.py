"""The split into scarce images and test images."""

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from lrp_core.study.datasets import Dataset


def split_dataset(dataset: Dataset, seed: int, n_scarce: int, n_test: int, block: int) -> pd.DataFrame:
    """Draw scarce and test images from different blocks of neighbouring images.

    Images that stand next to each other may show the same thing (cells of one solar module, frames of one film), so
    blocks of ``block`` consecutive positions go to one side as a whole, with the classes balanced over the two sides.

    Args:
        dataset: the labelled images.
        seed: draws blocks and images; another seed gives another split.
        n_scarce: scarce images in each class, exactly.
        n_test: test images in each class, at most; a class with fewer on the test side gives all it has there.
        block: consecutive positions that stay together.

    Returns:
        One row an image that was drawn, sorted by index: index (into ``dataset``), label, block, split ("scarce" or
        "test").

    Raises:
        ValueError: a class has too few images on the scarce side, or none on the test side; a count below 1.
    """
    for name, value in (("n_scarce", n_scarce), ("n_test", n_test), ("block", block)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    labels = dataset.labels.numpy()
    blocks = dataset.positions.numpy() // block
    if len(np.unique(blocks)) < 2:
        raise ValueError(f"blocks of {block} images leave fewer than two blocks to split; choose a smaller block")
    halves = StratifiedGroupKFold(n_splits=2, shuffle=True, random_state=seed)
    scarce_side, test_side = next(halves.split(labels, labels, blocks))
    rng = np.random.default_rng(seed)
    drawn = []
    for label, name in enumerate(dataset.class_names):
        scarce = scarce_side[labels[scarce_side] == label]
        test = test_side[labels[test_side] == label]
        if len(scarce) < n_scarce or len(test) == 0:
            raise ValueError(
                f"class {name!r} has {len(scarce)} images on the scarce side (needed: {n_scarce}) and {len(test)} on "
                f"the test side (needed: 1 or more) with seed {seed}; ask for fewer or label more"
            )
        for side, indices, n in (("scarce", scarce, n_scarce), ("test", test, min(n_test, len(test)))):
            chosen = rng.choice(indices, size=n, replace=False)
            drawn.append(pd.DataFrame({"index": chosen, "label": label, "block": blocks[chosen], "split": side}))
    return pd.concat(drawn).sort_values("index", ignore_index=True)
