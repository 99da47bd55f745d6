"""What the call promises, against test results: tables of two draws, by hand."""

import pandas as pd
import pytest

from lrp_core.study.analysis.promise import CHOSEN, INTERMEDIATE, OURS, choices, errors
from lrp_core.study.show import markdown_tables


@pytest.fixture
def rows():
    """Both draws keep half; the first could keep less, but expects to lose 3 points there."""
    sizes = [  # seed, multiply-adds, predicted and tested accuracy, predicted drop
        (0, 1.0, 0.78, 0.80, 0.0),
        (0, 0.5, 0.77, 0.76, 1.0),  # loses 4
        (0, 0.25, 0.75, 0.70, 3.0),  # loses 10
        (1, 1.0, 0.66, 0.70, 0.0),
        (1, 0.5, 0.65, 0.71, 1.0),  # gains 1
    ]
    found = pd.DataFrame(sizes, columns=["seed", "multiply_adds", "accuracy", "test_accuracy", "drop"])
    found = found.assign(task="elpv", network="vgg16", method=INTERMEDIATE, seconds=1.0, passes=1.0)
    found = found.assign(harmonic_mean=found["accuracy"], test_harmonic_mean=found["test_accuracy"])
    for name in ("accuracy", "harmonic_mean"):
        found = found.assign(**{f"{name}_low": 0.0, f"{name}_high": 1.0})
    return found


def test_errors_are_estimates_less_what_the_test_says(rows):
    other = rows[rows["seed"] == 0].assign(method="layer-by-layer", accuracy=0.0)
    found = errors(pd.concat([rows, other]))
    assert found.loc["the unpruned network"].tolist() == pytest.approx([-3.0, 0.0])
    assert found.loc["all pruned sizes"].tolist() == pytest.approx([0.0, ((1 - 4) + (3 - 10) + (1 + 1)) / 3])
    assert found.loc["the chosen size"].tolist() == pytest.approx([-2.5, ((1 - 4) + (1 + 1)) / 2])
    rows.loc[4, "drop"] = -3.0  # a gain of 3, and there is one of 1
    assert errors(rows).loc["pruned sizes with a predicted gain"].tolist() == pytest.approx([-6.0, -2.0])


def test_by_default_trained_networks_keep_their_head_and_frozen_ones_do_not(rows):
    chosen = rows[rows["seed"] == 0].replace({"multiply_adds": {0.5: 0.2, 0.25: 0.1}}).assign(method=CHOSEN)
    for network, left in (("vgg16", 0.5), ("resnet20", 0.2), ("squeezenet1_1-trained", 0.2)):
        everything = pd.concat([rows[rows["seed"] == 0], chosen]).assign(network=network)
        assert choices(everything)["multiply_adds"].tolist() == [left]
        assert errors(everything).loc["the chosen size"].tolist() == pytest.approx([1.0, 1 - 4])


def test_draws_that_chose_nothing_have_a_row_of_their_own(rows, tmp_path, monkeypatch):
    """Draw 0 loses 4 points and draw 1 gains one, at half; layer by layer was measured on draw 1 alone."""
    other = rows[(rows["seed"] == 1) & (rows["multiply_adds"] < 1)].assign(method="layer-by-layer", drop=None)
    fresh = rows[rows["seed"] == 0].assign(seed=5000)
    (tmp_path / "results" / "benchmarks").mkdir(parents=True)
    everything = pd.concat([rows[rows["seed"] == 1], fresh, other])
    everything.to_csv(tmp_path / "results" / "benchmarks" / "promise.csv", index=False)
    monkeypatch.setattr(markdown_tables, "ROOT", tmp_path)
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in markdown_tables.promise().splitlines()[2:]]
    known, left = ["0.50", "+1.0", "-1.0", "0 of 1", "0 of 1", "1 of 1"], "0.50 (0.50 to 0.50)"
    assert table[:2] == [["ELPV, VGG16", left, *known], ["all", left, *known]]
    assert table[3] == ["other draws", left, "", "+1.0", "+4.0", "1 of 1", "0 of 1", "1 of 1"]
    assert len(markdown_tables.promise_errors().splitlines()) == 6


def test_the_default_stands_beside_images_as_given_of_the_same_draws(rows, tmp_path, monkeypatch):
    """Draw 0 alone has both. By default 0.2 of the multiply-adds are left, and 6 points are lost."""
    default = rows[rows["seed"] == 0].replace({"multiply_adds": {0.5: 0.2, 0.25: 0.1}})
    default.loc[default["multiply_adds"] == 0.2, ["test_accuracy", "accuracy_low"]] = 0.74, 0.75  # does not hold
    everything = pd.concat([rows.assign(method=OURS), default, default.assign(method=CHOSEN)])
    assert len(choices(everything, OURS)) == 2
    assert choices(everything)["multiply_adds"].tolist() == [0.2]
    (tmp_path / "results" / "benchmarks").mkdir(parents=True)
    everything.to_csv(tmp_path / "results" / "benchmarks" / "promise.csv", index=False)
    monkeypatch.setattr(markdown_tables, "ROOT", tmp_path)
    table = markdown_tables.promise_images().splitlines()
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:]] == [
        ["ELPV, VGG16", "ours, images as given", "0.50", "+4.0", "1 of 1", "0 of 1", "1 of 1"],
        ["ELPV, VGG16", "ours", "0.20", "+6.0", "1 of 1", "1 of 1", "0 of 1"],
        ["all frozen", "ours, images as given", "0.50", "+4.0", "1 of 1", "0 of 1", "1 of 1"],
        ["all frozen", "ours", "0.20", "+6.0", "1 of 1", "1 of 1", "0 of 1"],
    ]
