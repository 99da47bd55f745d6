"""Helpers for several packages.

Which file answers what:

- :mod:`.devices`: on which device does a network compute?
- :mod:`.draws`: how are random numbers drawn for an image?
- :mod:`.errors`: how is an invalid choice reported?
- :mod:`.files`: how are files written without leaving partial ones?
- :mod:`.sites`: how are sums over images computed if the images are at several sites?
- :mod:`.torchvision`: how can torchvision be imported next to a CPU build of torch?
"""
