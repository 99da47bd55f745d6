"""Accuracy-aware pruning of convolutional networks by Layer-wise Relevance Propagation (LRP).

Most users need only :func:`prune`. The packages behind it, from the bottom up:

- ``graph``: a network as a list of layers
- ``relevance``: the relevance of every filter by LRP
- ``importance``: LRP and other criteria, and joint selection of filters
- ``pruning``: which filters can only be removed together, and their removal
- ``repair``: compensation for pruned filters without training
- ``control``: which filters are removed, and how many
- ``metrics``: accuracy and cost

``lrp_core.study`` is the study around the library: data, runs, tables, figures and commands.
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
__version__ = "0.7.2"


def __getattr__(name: str) -> object:
    """Import :func:`load_backbone` only on access, because it imports torchvision and the study."""
    if name == "load_backbone":
        from lrp_core.study.data.pretrained import load_backbone

        return load_backbone
    raise AttributeError(f"module 'lrp_core' has no attribute {name!r}")
