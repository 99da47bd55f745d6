"""Accuracy-aware pruning of convolutional networks by Layer-wise Relevance Propagation (LRP).

:func:`prune` is the one call. Behind it, a module an idea, from the bottom up: ``graph`` traces a network once for
``lrp`` (relevance of every filter, by ``rules``), which is one of the ``criteria``; ``joint`` chooses filters that
leave the logits where they are; ``coupling`` finds out which filters only go together, ``pruning`` removes them,
``reconstruction`` lets the others take over, ``network`` does both step by step; ``heads`` and ``signals`` tell how
good a network is on a few images, ``tasks`` puts it to work on them, and ``controller`` and ``methods`` decide what
goes. ``evaluation`` measures, ``saving`` keeps.

``lrp_core.study`` is the artifact around it: data, runs, tables, figures and commands. Nothing here imports it.
"""

from lrp_core._torchvision import declare_missing_operators
from lrp_core.api import Pruned, prune

declare_missing_operators()

__all__ = ["Pruned", "prune"]
__version__ = "0.1.0"
