"""Rows of networks whose areas are known by hand: curves that are straight lines."""

import pandas as pd

from lrp_core.study.analysis.areas import area_table, budget_table

BASELINES = ["px-static", "px-iterative"]


def straight_lines(**ends: float) -> pd.DataFrame:
    """Return networks of two backbones, two seeds and some methods; each is unpruned or has lost 95 % of its filters.

    Unpruned the accuracy is 0.8 ("small") or 0.9 ("large"); at the end it is what ``ends`` has of the method ("_" for
    "-"), and 0.02 more for the second seed. So areas over filters are the means of two numbers.
    """
    rows = []
    for backbone, whole in (("small", 0.8), ("large", 0.9)):
        for method, end in ends.items():
            for seed in (0, 1):
                for rate, accuracy in ((0.0, whole), (0.95, end + 0.02 * seed)):
                    rows.append(
                        {"dataset": "d", "backbone": backbone, "method": method.replace("_", "-"), "seed": seed}
                        | {"rate": rate, "rate_requested": rate, "crossfitted": accuracy, "squared_error": 1 - accuracy}
                        | {"multiply_adds": 1000 if rate == 0 else 100, "parameters": 50 if rate == 0 else 10}
                        | {"accuracy": accuracy, "harmonic_mean": accuracy / 2}
                        | {"accuracy_a": accuracy + 0.1, "accuracy_b": accuracy - 0.1, "overlap": 0.0}
                    )
    return pd.DataFrame(rows)


def areas_of(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the areas of each run."""
    return area_table(networks, budget_table(networks))
