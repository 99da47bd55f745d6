"""From measured networks to tables.

Which file answers what:

- :mod:`.areas`: what is the area under a curve?
- :mod:`.comparisons`: is a method better than its plainest alternatives?
- :mod:`.ablations`: what is each part of a method worth?
- :mod:`.costs`: what does a method cost, and which is its smallest network?
- :mod:`.sizes`: how large and how fast is a network, on this machine?
- :mod:`.robustness`: what is left on corrupted images?
- :mod:`.monitoring`: does a monitored accuracy foretell the test accuracy?
- :mod:`.statistics`: is it more than chance?
"""
