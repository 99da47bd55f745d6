"""Data and networks of the study.

Which file answers what:

- :mod:`.datasets`: which images can be read?
- :mod:`.splits`: which are for calibration, and which for the test?
- :mod:`.pretrained`: which networks are there, and which inputs do they expect?
- :mod:`.downloads`: where are both downloaded from, and how are they verified?
- :mod:`.workspace`: which files do the stages pass on?
- :mod:`.files`: how are they written?
"""
