"""Removal of filters.

Which file answers what:

- :mod:`.dependency`: which filters are coupled, so that they can only be removed together?
- :mod:`.surgery`: how does a network become a smaller one?
- :mod:`.network`: how are filters removed step by step, and compensated for?
- :mod:`.saving`: how is a pruned network saved and loaded?
"""
