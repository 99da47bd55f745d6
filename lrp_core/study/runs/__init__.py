"""Runs of methods.

Which file answers what:

- :mod:`.experiment`: what do runs start from?
- :mod:`.runner`: how are methods run, and results written?
- :mod:`.processes`: how do runs share a machine or a cluster?
- :mod:`.cache`: which finished runs are still valid?
- :mod:`.measuring`: what is measured for each network?
- :mod:`.finished`: how is a network of a finished run rebuilt?
- :mod:`.pipeline`: how do notebooks run as stages?
- :mod:`.inputs`: how does a single notebook run in a fresh clone?
"""
