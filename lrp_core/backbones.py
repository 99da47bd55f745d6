"""The study's pre-trained networks under their public name: the one door from here into the study.

They are fetched, and so belong there. No module of the core comes through this door (checked by ``make test``).
"""

from lrp_core.study.backbones import load_backbone, load_network, normalise

__all__ = ["load_backbone", "load_network", "normalise"]
