"""From measured networks to tables.

Which file answers what:

- :mod:`.areas`: what is the area under a curve?
- :mod:`.comparisons`: is a method better than its simplest alternatives?
- :mod:`.ablations`: what is the effect of each part of a method?
- :mod:`.costs`: what does a method cost, and which is its smallest network?
- :mod:`.sizes`: how large and how fast is a network, on this machine?
- :mod:`.robustness`: how accurate is a network on corrupted images?
- :mod:`.monitoring`: does a monitored accuracy predict the test accuracy?
- :mod:`.statistics`: is a difference more than chance?
"""
