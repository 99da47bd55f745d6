"""Figures by subject, the report, and the export of a pruned network."""

from lrp_core.study.show.comparisons import ablations, areas_by_method, price, robustness
from lrp_core.study.show.control import (
    budget_search,
    controller_step,
    controller_trace,
    explore,
    monitored,
    of_notebooks_before,
)
from lrp_core.study.show.curves import budgets, class_small_multiples, depth, filters_by_layer, pruning_curves
from lrp_core.study.show.data import confusion_matrix, image_grid, relevance_maps, split_map
from lrp_core.study.show.style import close, save_figure, set_theme

__all__ = [
    "ablations",
    "areas_by_method",
    "budget_search",
    "budgets",
    "class_small_multiples",
    "close",
    "confusion_matrix",
    "controller_step",
    "controller_trace",
    "depth",
    "explore",
    "filters_by_layer",
    "image_grid",
    "monitored",
    "of_notebooks_before",
    "price",
    "pruning_curves",
    "relevance_maps",
    "robustness",
    "save_figure",
    "set_theme",
    "split_map",
]
