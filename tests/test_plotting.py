"""Figures: what is drawn of how many seeds, with its own numbers, and legends that cover nothing."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from scipy.stats import t

from lrp_core.study import show
from lrp_core.study.analysis.robustness import robustness_summary
from lrp_core.study.show import control, style


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def interval(values, overlap):
    """Return Student's 95 % interval, corrected as Nadeau and Bengio (2003) do, by its formula."""
    error = np.std(values, ddof=1) * (1 / len(values) + overlap / (1 - overlap)) ** 0.5
    half = t.ppf(0.975, len(values) - 1) * error
    return np.mean(values) - half, np.mean(values) + half


def assert_legends_cover_nothing(figure):
    figure.canvas.draw()
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend() is not None)]
    assert legends
    for legend, axis in product(legends, figure.axes):
        assert not legend.get_window_extent().overlaps(axis.get_window_extent())


# Seeds


@pytest.mark.parametrize("overlap", [0.0, 0.2])
@pytest.mark.parametrize(("n_seeds", "thin", "bands"), [(1, 0, 0), (2, 2, 0), (3, 3, 0), (4, 0, 1), (5, 0, 1)])
def test_a_line_has_an_interval_from_four_seeds_on_and_each_seed_below(n_seeds, thin, bands, overlap):
    values = pd.DataFrame(np.random.default_rng(0).random((3, n_seeds)), [0.0, 0.5, 1.0])
    axis = plt.figure().add_subplot()
    mean = style.draw_line(axis, values, overlap, color="red", ls=":", label="method")
    np.testing.assert_allclose(mean.get_ydata(), values.to_numpy().mean(axis=1))
    others = [line for line in axis.lines if line is not mean]
    assert len(others) == thin
    for line, seed in zip(others, values, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), values[seed])
        assert line.get_linewidth() < mean.get_linewidth()
    assert axis.get_legend_handles_labels()[1] == ["method"]
    drawn = [band for band in axis.collections if isinstance(band, PolyCollection)]
    assert len(drawn) == bands
    for band in drawn:
        corners = band.get_paths()[0].vertices
        for x, row in values.iterrows():
            ends = corners[corners[:, 0] == x, 1]
            assert (ends.min(), ends.max()) == pytest.approx(interval(row, overlap))


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("n_seeds", [1, 2, 3, 4, 5])
def test_a_point_has_an_interval_from_four_seeds_on_and_each_seed_below(n_seeds, horizontal):
    values, axis = np.random.default_rng(0).random(n_seeds), plt.figure().add_subplot()
    style.draw_point(axis, 7, values, (-2, 3), horizontal=horizontal, color="red", marker="D")
    *spread, mean = [line.get_xydata()[:, ::-1] if horizontal else line.get_xydata() for line in axis.lines]
    np.testing.assert_allclose(mean, [[7, values.mean()]])
    assert axis.lines[-1].get_marker() == "D"
    if n_seeds == 1:
        assert spread == []
    elif n_seeds < 4:
        np.testing.assert_array_equal(spread[0], np.column_stack([np.full(n_seeds, 7), values]))
        assert (axis.lines[0].get_linestyle(), axis.lines[0].get_marker()) == ("None", "o")
    else:
        np.testing.assert_array_equal(spread[0], [[7, -2], [7, 3]])
        assert axis.lines[0].get_linestyle() == "-"


def test_no_two_of_many_look_alike():
    looks = style.looks(range(40))
    assert len({(look["color"], look["ls"]) for look in looks.values()}) == 40
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 40


# Curves and comparisons

BACKBONES, METHODS = ["squeezenet1_1", "vgg16"], ["px-iterative-abs", "px-iterative-abs+refit", "budget-search"]


def networks(n_seeds):
    """Return rows on the grid of rates; the method that chooses has one more seed than the others."""
    rng = np.random.default_rng(0)
    runs = [(b, m, s) for b, m in product(BACKBONES, METHODS) for s in range(n_seeds + (m == "budget-search"))]
    rows = [(*run, rate, *rng.random(2)) for run in runs for rate in (0.0, 0.5, 0.95)]
    columns = ["backbone", "method", "seed", "rate_requested", "accuracy", "harmonic_mean"]
    return pd.DataFrame(rows, columns=columns).assign(dataset="elpv", multiply_adds=1e6, overlap=0.2)


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_curves_are_means_over_the_seeds_that_all_methods_share(n_seeds):
    rows = networks(n_seeds)
    figure = show.pruning_curves(rows, METHODS)
    assert len(figure.axes) == 4
    for axis, (backbone, measure) in zip(figure.axes, product(BACKBONES, ["accuracy", "harmonic_mean"]), strict=True):
        of_backbone = rows[(rows["backbone"] == backbone) & (rows["seed"] < n_seeds)]
        means = of_backbone.groupby(["method", "rate_requested"])[measure].mean()
        drawn = {line.get_label(): line.get_ydata() for line in axis.lines if not line.get_label().startswith("_")}
        assert list(drawn) == METHODS
        for method in METHODS:
            np.testing.assert_allclose(drawn[method], means[method])
        assert len(axis.lines) == len(METHODS) * (3 if n_seeds == 2 else 1)
        assert len(axis.collections) == (0 if n_seeds == 2 else len(METHODS))
        for band, method in zip(axis.collections, METHODS, strict=False):
            first = of_backbone[(of_backbone["method"] == method) & (of_backbone["rate_requested"] == 0)][measure]
            corners = band.get_paths()[0].vertices
            ends = corners[corners[:, 0] == 0, 1]
            assert (ends.min(), ends.max()) == pytest.approx(interval(first, 0.2))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == METHODS
    assert_legends_cover_nothing(figure)


def areas(n_seeds):
    rng = np.random.default_rng(1)
    rows = [("elpv", b, m, s, *rng.random(2)) for b, m, s in product(BACKBONES, METHODS, range(n_seeds))]
    rows = pd.DataFrame(rows, columns=["dataset", "backbone", "method", "seed", "accuracy", "multiply_adds"])
    rows["overlap"] = 0.2
    rows.loc[rows["method"] == "budget-search", "accuracy"] = np.nan  # what chooses is not read at a rate
    return rows


def points(axis):
    """Return the means that are drawn, and how many marks stand behind each."""
    large = [line for line in axis.lines if line.get_markersize() == 7 and line.get_marker() != "None"]
    small = [line for line in axis.lines if line not in large and line.get_linestyle() not in ("--",)]
    return [tuple(line.get_xydata()[0]) for line in large], small


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_a_method_that_chooses_has_its_area_over_multiply_adds_alone(n_seeds):
    rows = areas(n_seeds)
    figure = show.areas_by_method(rows, pd.Series(0.8, BACKBONES))
    order = rows.groupby("method")["multiply_adds"].mean().sort_values(ascending=False).index
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(order)
    for axis, backbone in zip(figure.axes, BACKBONES, strict=True):
        means = rows[rows["backbone"] == backbone].groupby("method")[["accuracy", "multiply_adds"]].mean()
        drawn, spread = points(axis)
        expected = [(means.loc[m, name], order.get_loc(m) + y) for m in METHODS for name, y in
                    (("accuracy", -0.15), ("multiply_adds", 0.15)) if not np.isnan(means.loc[m, name])]  # fmt: skip
        assert len(expected) == 5
        np.testing.assert_allclose(sorted(drawn), sorted(expected))
        assert len(spread) == 5
        assert {line.get_linestyle() for line in spread} == ({"None"} if n_seeds == 2 else {"-"})
        if n_seeds == 5:
            wide = rows[rows["backbone"] == backbone].pivot(index="seed", columns="method")
            each = [wide[name, method] for name in ("accuracy", "multiply_adds") for method in METHODS]
            ends = [interval(values, 0.2) for values in each if values.notna().all()]
            np.testing.assert_allclose(sorted(tuple(line.get_xdata()) for line in spread), sorted(ends))
    assert_legends_cover_nothing(figure)
    show.areas_by_method(rows.drop(columns="accuracy"), pd.Series(0.8, BACKBONES))


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_exits_are_drawn_from_input_to_output(n_seeds):
    rng = np.random.default_rng(0)
    rows = [("vgg16", s, name, 1e6 * (i + 1), *rng.random(2)) for s in range(n_seeds) for i, name in enumerate("zxy")]
    table = pd.DataFrame(rows, columns=["backbone", "seed", "exit", "multiply_adds", "cross-fitted", "test"])
    figure = show.accuracy_by_exit(table.assign(overlap=0.2))
    above, below = figure.axes
    means = table.groupby("exit", sort=False)["test"].mean()
    (test,) = [line for line in above.lines if line.get_label() == "test images"]
    np.testing.assert_allclose(test.get_xydata(), np.column_stack([[1, 2, 3], means]))
    assert [bar.get_height() for bar in below.patches] == pytest.approx([1 / 3, 2 / 3, 1])
    assert (len(above.lines), len(above.collections)) == ((6, 0) if n_seeds == 2 else (2, 2))
    for band, name in zip(above.collections, ("cross-fitted", "test"), strict=False):
        corners = band.get_paths()[0].vertices
        ends = corners[corners[:, 0] == 2, 1]
        assert (ends.min(), ends.max()) == pytest.approx(interval(table.query("exit == 'x'")[name], 0.2))
    assert_legends_cover_nothing(figure)


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_ablations_are_drawn_with_the_intervals_of_their_table(n_seeds):
    rows = areas(n_seeds)
    wide = rows.pivot(index=["backbone", "seed"], columns="method", values="multiply_adds")
    each = (wide[METHODS[1]] - wide[METHODS[0]]).unstack("seed")
    named = {"dataset": "elpv", "measure": "multiply_adds", "ablation": "refit", "value": True}
    pair = {"without": METHODS[0], "with_ablation": METHODS[1]}
    table = [named | pair | {"backbone": b, "difference": each.loc[b].mean(), "low": -2, "high": 3} for b in BACKBONES]
    figure = show.ablations(pd.DataFrame(table), rows, BACKBONES)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["refit  on px-iterative-abs"]
    for axis, backbone in zip(figure.axes, BACKBONES, strict=True):
        (mean,), (spread,) = points(axis)
        assert mean == pytest.approx((each.loc[backbone].mean(), 0))
        assert list(spread.get_xdata()) == pytest.approx([-2, 3] if n_seeds == 5 else list(each.loc[backbone]))


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_cost_is_drawn_from_the_best_baseline_and_what_evaluates_nothing_stands_left_of_0(n_seeds):
    rows = areas(n_seeds)
    wide = rows.pivot(index=["backbone", "seed"], columns="method", values="accuracy")
    each = (wide[METHODS[1]] - wide[METHODS[0]]).unstack("seed")
    columns = ["backbone", "method", "evaluations", "difference", "low", "high"]
    table = [(b, METHODS[0], 0.0, 0.0, 0.0, 0.0) for b in BACKBONES]
    table += [(b, METHODS[1], 80.0, each.loc[b].mean(), -2.0, 3.0) for b in BACKBONES]
    figure = show.cost(pd.DataFrame(table, columns=columns), rows)
    for axis, backbone in zip(figure.axes, BACKBONES, strict=True):
        drawn, spread = points(axis)
        assert drawn[0][0] < 0
        assert drawn[0][1] == 0
        assert drawn[1] == pytest.approx((80, each.loc[backbone].mean()))
        moved = [line for line in spread if set(line.get_xdata()) == {80}]
        assert list(moved[0].get_ydata()) == pytest.approx([-2, 3] if n_seeds == 5 else list(each.loc[backbone]))
    assert_legends_cover_nothing(figure)


def corrupted(n_seeds):
    rng, rows = np.random.default_rng(0), []
    for seed, (method, budget) in product(
        range(n_seeds), [("unpruned", 1.0), ("early-exit", 0.4), ("early-exit", 0.1)]
    ):
        for images in ("clean", "noise", "blur", "fgsm"):
            row = {"backbone": "vgg16", "method": method, "seed": seed, "budget": budget, "images": images}
            rows.append(row | {"accuracy": rng.random(), "harmonic_mean": 0.5, "overlap": 0.2})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("n_seeds", [1, 2, 5])
def test_robustness_is_drawn_with_its_distance_from_the_line(n_seeds):
    rows = corrupted(n_seeds)
    table = robustness_summary(rows, ["noise", "blur"])
    figure = show.robustness(table, rows)
    for axis, kind in zip(figure.axes, ("corrupted", "fgsm"), strict=True):
        drawn, spread = points(axis)
        shown = table[(table["images"] == kind) & (table["method"] != "unpruned")]
        np.testing.assert_allclose(drawn, shown[["clean", "corrupted"]])
        spread = [line for line in spread if line.get_marker() != "*"]
        assert len(spread) == (0 if n_seeds == 1 else 2)
        wide = rows.set_index(["seed", "method", "budget", "images"])["accuracy"].unstack("images")
        wide = wide.assign(corrupted=(wide["noise"] + wide["blur"]) / 2)
        gap = (wide["clean"] - wide[kind]).unstack(["method", "budget"])
        for line, row in zip(spread, shown.itertuples(), strict=False):
            more = gap["early-exit", row.budget] - gap["unpruned", 1.0]
            on_line = row.corrupted + row.more_lost
            ends = [on_line - row.high, on_line - row.low] if n_seeds == 5 else on_line - more
            np.testing.assert_allclose(line.get_ydata(), ends)
    assert_legends_cover_nothing(figure)


def test_budgets_are_drawn_with_the_unpruned_networks():
    columns = ["dataset", "backbone", "method", "seed", "budget", "multiply_adds", "accuracy"]
    runs = [(b, m, s) for b in BACKBONES for m in METHODS[:2] for s in (0, 1)]
    rows = [("elpv", *run, fall, 1e6 * fall, 0.5 + 0.1 * run[2]) for run in runs for fall in (1.0, 0.1)]
    whole = [("elpv", b, "x", s, 1.0, 2e6, 0.7) for b in BACKBONES for s in (0, 1)]
    tables = (pd.DataFrame(part, columns=columns) for part in (rows, whole))
    figure = show.budgets(*tables, METHODS)
    (axis,) = figure.axes
    assert [line.get_ydata().tolist() for line in axis.lines if len(line.get_ydata()) > 1] == [[0.55, 0.55]] * 4
    assert [line.get_xydata().tolist() for line in axis.lines if len(line.get_ydata()) == 1] == [[[2e6, 0.7]]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *METHODS[:2], "squeezenet1_1 (point: unpruned)", "vgg16 (point: unpruned)",
    ]  # fmt: skip
    assert_legends_cover_nothing(figure)


# The controller and the budget search

TRACE = pd.DataFrame(
    {
        "step": [0, 1, 2],
        "rate": [0.1, 0.1, 0.3],
        "after": [0.8, 0.8, 0.5],
        "bound": [0.76, 0.76, 0.4],
        "requested": [10, 9, 20],
        "removed": [10, 0, 15],
        "deferred": [0, 9, 5],
        "accuracy_cat": [0.9, 0.9, 0.4],
        "accuracy_dog": [0.7, 0.7, 0.65],
    }
)


def test_a_step_is_drawn_with_its_own_numbers():
    figure = control.controller_step(TRACE, 2)
    way, bars = figure.axes
    assert way.get_title() == "20 requested, 15 removed, 5 deferred"
    (point,) = [line for line in way.lines if line.get_label() == "step 2"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.3, 0.5)
    assert [label.get_text() for label in bars.get_yticklabels()] == ["dog", "cat"]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.65, 0.4])
    assert_legends_cover_nothing(figure)


def test_the_slider_draws_the_step_that_it_stands_at(monkeypatch):
    shown, draw = [], control.controller_step
    monkeypatch.setattr(control, "controller_step", lambda trace, step: shown.append(step) or draw(trace, step))
    slider, picture = control.explore(TRACE).children
    assert (slider.min, slider.max, slider.value) == (0, 2, 0)
    first = bytes(picture.value)
    slider.value = 1
    assert shown == [0, 1]
    assert bytes(picture.value) != first
    assert first.startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_steps_are_told_apart_by_what_was_deferred():
    figure = control.controller_trace(TRACE)
    offsets = {part.get_label(): part.get_offsets().tolist() for part in figure.axes[0].collections}
    assert offsets == {"batch accepted": [[0, 0.1]], "all deferred": [[1, 0.1]], "part deferred": [[2, 0.3]]}
    assert_legends_cover_nothing(figure)


def test_each_of_twelve_classes_has_a_line_of_its_own():
    classes = {f"accuracy_{i}": [0.9, 0.5, i / 12] for i in range(12)}
    figure = control.controller_trace(TRACE[[name for name in TRACE if "accuracy" not in name]].assign(**classes))
    lines = figure.axes[2].lines
    assert [line.get_ydata()[2] for line in lines] == pytest.approx([i / 12 for i in range(12)])
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == [str(i) for i in range(12)]
    assert_legends_cover_nothing(figure)


def budget_steps():
    rows = [(1.0, "start", 28, 0.4), (0.5, "filters", 28, 0.5), (0.25, "exit", 7, 0.6)]
    steps = pd.DataFrame(rows, columns=["budget", "action", "truncation", "error"])
    candidates = {"start": [0.4, 0.6, 0.7], "filters": [None, 0.5, 0.8], "exit": 0.6, "block": None}
    return steps.assign(**{f"candidate_{action}": errors for action, errors in candidates.items()})


def test_a_budget_search_is_drawn_of_networks_whose_layers_have_numbers_for_names():
    trace = budget_steps()
    figure = control.budget_search(trace, ["2", "7", "12", "28"])
    errors, depth = figure.axes
    assert [label.get_text() for label in errors.get_legend().get_texts()] == ["start", "filters", "exit", "block"]
    assert [label.get_text() for label in depth.get_yticklabels()] == ["28", "7"]
    assert_legends_cover_nothing(figure)
    skipping = control.budget_search(trace.assign(truncation=["add_2", "add_2 -add", "add_2 -add -add_1"]), ["add_2"])
    assert [text.get_text() for text in skipping.axes[1].texts] == ["", "1", "2"]


def test_exits_are_drawn_by_depth_whatever_their_order_in_the_search():
    trace = budget_steps().assign(truncation=["cat_2", "", "cat_7"])
    depth = control.budget_search(trace, ["cat", "cat_2", "cat_7"]).axes[1]
    from_the_top = sorted(zip(depth.get_yticks(), depth.get_yticklabels(), strict=True), key=lambda tick: tick[0])
    assert depth.get_ylim()[0] > depth.get_ylim()[1]  # the first on top
    assert [label.get_text() for _, label in from_the_top] == ["whole backbone", "cat_7", "cat_2"]
    assert depth.lines[0].get_ydata().tolist() == [2, 0, 1]


def test_the_figures_of_a_backbone_are_drawn_from_the_tables_of_its_folder(tmp_path):
    tables = {
        "heads/confusion": pd.DataFrame({"true": ["cat", "dog"], "cat": [3, 1], "dog": [1, 3]}),
        "heads/depth": pd.DataFrame({"exit": [7, 28, 7, 28]}),
        "dynamic/monitored": pd.DataFrame(
            [(s, r, m, 0.5 + 0.1 * s, 0.4) for s in (0, 1) for r in (0.0, 0.5) for m in ("cross-fitted", "training")],
            columns=["seed", "rate", "monitored", "value", "test"],
        ),
        "dynamic/trace": pd.concat([TRACE.assign(method=m, seed=s) for m in ("dynamic", "other") for s in (0, 1)]),
        "budget_search/trace": pd.concat([budget_steps().assign(method="budget-search", seed=s) for s in (0, 1)]),
    }
    for name, table in tables.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    figures = show.backbone_figures(tmp_path, seed=1)
    assert list(figures) == ["confusion", "monitored", "controller_trace", "budget_search"]
    assert [text.get_text() for text in figures["confusion"].axes[0].texts] == ["75%", "25%", "25%", "75%"]
    along, against = figures["monitored"].axes
    assert [line.get_label() for line in along.lines] == ["test images", "cross-fitted", "training"]
    assert [line.get_ydata().tolist() for line in along.lines] == [[0.4, 0.4], [0.55, 0.55], [0.55, 0.55]]
    assert len(against.lines[0].get_xdata()) == 4
    assert_legends_cover_nothing(figures["monitored"])
    assert len(figures["controller_trace"].axes[0].lines[0].get_xdata()) == 3  # one run
    (tmp_path / "dynamic/trace.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"dynamic/trace\.csv"):
        show.backbone_figures(tmp_path, seed=1)


def test_classes_have_a_panel_for_each_method_and_seed():
    rows = networks(2).query("backbone == 'vgg16'").assign(accuracy_cat=0.5, accuracy_dog=0.0)
    figure = show.class_small_multiples(rows[rows["seed"] < 2], METHODS[:2])
    assert len(figure.axes) == 4
    assert [axis.get_title() for axis in figure.axes[:2]] == ["seed 0", "seed 1"]
    for axis in figure.axes:
        assert [line.get_ydata().tolist() for line in axis.lines] == [[0.5] * 3, [0.0] * 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog"]
    assert_legends_cover_nothing(figure)


def test_a_figure_gives_the_same_bytes_again(tmp_path):
    contents = []
    for name in ("first", "second"):
        show.save_figure(control.controller_step(TRACE, 1), tmp_path / name)
        contents.append([(tmp_path / f"{name}{suffix}").read_bytes() for suffix in (".png", ".pdf")])
    assert contents[0] == contents[1]
