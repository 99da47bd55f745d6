"""Removal of filters.

Which file answers what:

- :mod:`.dependency`: which filters are coupled, so that they can only be removed together?
- :mod:`.surgery`: how does a network become a smaller one?
- :mod:`.network`: how does a network lose filters step by step, and who compensates for them?
- :mod:`.saving`: how is a pruned network written to a file, and read again?
"""
