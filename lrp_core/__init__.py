"""Accuracy-aware pruning of convolutional networks by Layer-wise Relevance Propagation (LRP).

One module, one idea: ``data`` and ``backbones`` bring images and frozen networks, ``heads`` trains the classifier on
top, ``graph`` traces a network once for ``lrp`` (relevance per filter, by ``rules``) and ``pruning`` (removal of
filters), ``methods`` and ``controller`` decide in which order filters go, ``evaluation`` measures what is left.
"""

from lrp_core._torchvision import declare_missing_operators

declare_missing_operators()

__version__ = "0.1.0"
