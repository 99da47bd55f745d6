"""Runs of methods.

Which file answers what:

- :mod:`.experiment`: what do they start from?
- :mod:`.runner`: how are methods run, and written?
- :mod:`.processes`: how side by side?
- :mod:`.cache`: which finished run is still what it would be?
- :mod:`.measuring`: what is measured of a network?
- :mod:`.finished`: how is a network of a finished run made again?
- :mod:`.pipeline`: how do notebooks run as stages?
- :mod:`.inputs`: how does a notebook of a fresh clone run by itself?
"""
