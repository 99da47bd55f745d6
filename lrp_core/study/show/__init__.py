"""Figures (one module per subject), the report, and the export of a pruned network."""

from lrp_core.study.show.backbone import backbone_figures
from lrp_core.study.show.comparisons import ablations, areas_by_method, cost
from lrp_core.study.show.control import budget_search, controller_step, controller_trace, explore, monitored
from lrp_core.study.show.curves import budgets, class_small_multiples, filters_by_layer, pruning_curves
from lrp_core.study.show.data import image_grid, split_map
from lrp_core.study.show.heads import accuracy_by_exit, confusion_matrix
from lrp_core.study.show.relevance import relevance_maps
from lrp_core.study.show.robustness import robustness
from lrp_core.study.show.style import close, save_figure, set_theme

__all__ = [
    "ablations",
    "accuracy_by_exit",
    "areas_by_method",
    "backbone_figures",
    "budget_search",
    "budgets",
    "class_small_multiples",
    "close",
    "confusion_matrix",
    "controller_step",
    "controller_trace",
    "cost",
    "explore",
    "filters_by_layer",
    "image_grid",
    "monitored",
    "pruning_curves",
    "relevance_maps",
    "robustness",
    "save_figure",
    "set_theme",
    "split_map",
]
