"""The accuracy-vs-pruning-rate curve on the test images, of any order of removal."""

import numpy as np
import pandas as pd
import torch

from lrp_core.evaluation import class_accuracies, filters_at, harmonic_mean, multiply_adds, n_parameters, predict
from lrp_core.network import PrunedNetwork

GRID = tuple(round(0.05 * i, 2) for i in range(20))  # 0 to 0.95 by 0.05


def prune_to(network: PrunedNetwork, order: np.ndarray, rate: float) -> PrunedNetwork:
    """Take the first filters of ``order`` out of an unpruned network, up to ``rate``, and return it.

    Raises:
        ValueError: the rate is outside 0..1, or ``order`` ends before it.
    """
    size = filters_at(rate, network.n_filters)
    if not 0 <= rate < 1 or size > len(order):
        reach = len(order) / network.n_filters
        raise ValueError(f"impossible pruning rate {rate}: this order of removal covers 0 to {reach:.3f}")
    network.remove(order[:size])
    return network


def test_curve(
    network: PrunedNetwork, order: np.ndarray, images: torch.Tensor, labels: torch.Tensor, class_names: tuple[str, ...]
) -> pd.DataFrame:
    """Measure the pruned networks of the grid 0, 0.05, ..., 0.95 on test images.

    Args:
        network: the unpruned classifier, images to logits (N, n_classes).
        order: filter numbers, first to go first, at least 95 % of all.
        images: (N, 3, H, W), normalised.
        labels: (N,).
        class_names: one name a class.

    Returns:
        One row a rate: rate_requested, rate (achieved), accuracy (class-averaged), harmonic_mean, accuracy_<class>,
        parameters, multiply_adds (of one image), kept_<layer>.
    """
    rows, example, n_classes = [], images[:1], len(class_names)
    gone = 0
    for rate in GRID:
        size = filters_at(rate, network.n_filters)
        network.remove(order[gone:size])
        gone = size
        accuracies = class_accuracies(predict(network.model, images).argmax(dim=1), labels, n_classes)
        rows.append(
            {
                "rate_requested": rate,
                "rate": gone / network.n_filters,
                "accuracy": accuracies.mean().item(),
                "harmonic_mean": harmonic_mean(accuracies),
                **{f"accuracy_{name}": value for name, value in zip(class_names, accuracies.tolist(), strict=True)},
                "parameters": n_parameters(network.model),
                "multiply_adds": multiply_adds(network.model, example),
                **{f"kept_{name}": len(kept) for name, kept in network.kept().items()},
            }
        )
    return pd.DataFrame(rows)
