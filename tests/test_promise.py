"""What the call promises, against test results: tables of two draws, by hand."""

import pandas as pd
import pytest

from lrp_core.study.analysis.promise import DEFAULT, errors


def test_errors_are_estimates_less_what_the_test_says():
    """Both draws keep half; the first could keep less, but expects to lose 3 points there."""
    sizes = [  # seed, multiply-adds, predicted and tested accuracy, predicted drop
        (0, 1.0, 0.78, 0.80, 0.0),
        (0, 0.5, 0.77, 0.76, 1.0),  # loses 4
        (0, 0.25, 0.75, 0.70, 3.0),  # loses 10
        (1, 1.0, 0.66, 0.70, 0.0),
        (1, 0.5, 0.65, 0.71, 1.0),  # gains 1
    ]
    rows = pd.DataFrame(sizes, columns=["seed", "multiply_adds", "accuracy", "test_accuracy", "drop"])
    rows = rows.assign(task="elpv", network="vgg16", method=DEFAULT, seconds=1.0, passes=1.0)
    rows = rows.assign(harmonic_mean=rows["accuracy"], test_harmonic_mean=rows["test_accuracy"])
    for name in ("accuracy", "harmonic_mean"):
        rows = rows.assign(**{f"{name}_low": 0.0, f"{name}_high": 1.0})
    other = rows[rows["seed"] == 0].assign(method="layer-by-layer", accuracy=0.0)
    found = errors(pd.concat([rows, other]))
    assert found.loc["the unpruned network"].tolist() == pytest.approx([-3.0, 0.0])
    assert found.loc["all pruned sizes"].tolist() == pytest.approx([0.0, ((1 - 4) + (3 - 10) + (1 + 1)) / 3])
    assert found.loc["the chosen size"].tolist() == pytest.approx([-2.5, ((1 - 4) + (1 + 1)) / 2])
