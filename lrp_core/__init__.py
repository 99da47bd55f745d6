"""Accuracy-aware pruning of convolutional networks by Layer-wise Relevance Propagation (LRP).

:func:`prune` is the one call. Behind it, a package an idea, from the bottom up:

- ``graph``: a network as a list of layers
- ``relevance``: what LRP says of every filter
- ``importance``: criteria, LRP's and others', and their joint selection
- ``pruning``: filters that only go together, and their removal
- ``repair``: what makes up for pruned filters without training
- ``control``: what decides which filters are removed, and how many
- ``metrics``: accuracy and cost

``lrp_core.study`` is the artifact around it: data, runs, tables, figures and commands.
"""

from typing import TYPE_CHECKING

from lrp_core.api import Pruned, prune
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean
from lrp_core.metrics.curve import pruning_auc
from lrp_core.pruning.saving import load_pruned
from lrp_core.pruning.surgery import remove_filters
from lrp_core.relevance.lrp import Explanation, explain, filter_relevance
from lrp_core.utils.torchvision import declare_missing_operators

if TYPE_CHECKING:
    from lrp_core.study.data.pretrained import load_backbone

declare_missing_operators()

__all__ = [
    "Explanation",
    "Pruned",
    "class_accuracies",
    "explain",
    "filter_relevance",
    "harmonic_mean",
    "load_backbone",
    "load_pruned",
    "prune",
    "pruning_auc",
    "remove_filters",
    "trace",
]
__version__ = "0.3.0"


def __getattr__(name: str) -> object:
    """Load :func:`load_backbone` when it is asked for: it brings torchvision, and the study around it."""
    if name == "load_backbone":
        from lrp_core.study.data.pretrained import load_backbone

        return load_backbone
    raise AttributeError(f"module 'lrp_core' has no attribute {name!r}")
