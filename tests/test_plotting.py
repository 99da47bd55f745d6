"""The slider through the controller's steps shows the step that it stands at."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lrp_core.study.show import comparisons, control

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
    assert way.get_title() == "20 tried, 15 removed, 5 put off"
    (point,) = [line for line in way.lines if line.get_label() == "step 2"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.3, 0.5)
    assert [label.get_text() for label in bars.get_yticklabels()] == ["dog", "cat"]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.65, 0.4])
    plt.close(figure)


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


def test_each_of_twelve_classes_has_a_line_of_its_own():
    classes = {f"accuracy_{i}": [0.9, 0.5, i / 12] for i in range(12)}
    figure = control.controller_trace(TRACE[[name for name in TRACE if "accuracy" not in name]].assign(**classes))
    lines = figure.axes[2].lines
    assert [line.get_ydata()[2] for line in lines] == pytest.approx([i / 12 for i in range(12)])
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(i) for i in range(12)]
    plt.close(figure)


def test_robustness_is_drawn_where_seeds_agree_and_where_there_is_one():
    """Two seeds with one difference have an interval of no length, which rounding may turn round; one seed has none."""
    columns = ["backbone", "images", "method", "budget", "clean", "corrupted", "more_lost", "low", "high"]
    rows = [("b", "corrupted", "unpruned", 1.0, 0.9, 0.6, 0.0, 0.0, 0.0)]
    rows += [("b", "corrupted", "truncation", 0.1, 0.8, 0.4, 0.1, 0.1 + 1e-12, 0.1 - 1e-12)]
    rows += [("b", "corrupted", "budget-search", 0.1, 0.85, 0.5, 0.05, float("nan"), float("nan"))]
    figure = comparisons.robustness(pd.DataFrame(rows, columns=columns))
    figure.canvas.draw()
    points = {tuple(line.get_xydata()[0]) for line in figure.axes[0].lines if line.get_marker() in ("o", "*")}
    assert points == {(0.9, 0.6), (0.8, 0.4), (0.85, 0.5)}
    plt.close(figure)


def test_levers_are_drawn_of_networks_whose_layers_have_numbers_for_names():
    rows = [(1.0, "start", 28, 0.4), (0.5, "filters", 28, 0.5), (0.25, "end", 7, 0.6)]
    trace = pd.DataFrame(rows, columns=["budget", "action", "truncation", "error"])
    trace = trace.assign(offer_start=[0.4, 0.6, 0.7], offer_filters=[None, 0.5, 0.8], offer_end=0.6, offer_block=None)
    errors, depth = control.budget_search(trace).axes
    assert [label.get_text() for label in errors.get_legend().get_texts()] == ["start", "filters", "end", "block"]
    assert [label.get_text() for label in depth.get_yticklabels()] == ["28", "7"]
    skipping = control.budget_search(trace.assign(truncation=["add_2", "add_2 -add", "add_2 -add -add_1"]))
    assert [text.get_text() for text in skipping.axes[1].texts] == ["", "1", "2"]
