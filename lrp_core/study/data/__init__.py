"""What the study works on.

Which file answers what:

- :mod:`.datasets`: which images can be read?
- :mod:`.splits`: which are for calibration, which for the test?
- :mod:`.pretrained`: which networks are there, and what do they expect?
- :mod:`.downloads`: where do both come from, and are they what they should be?
- :mod:`.workspace`: what do the stages hand to one another?
- :mod:`.files`: how is it written?
"""
