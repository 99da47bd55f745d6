"""Measures of a network.

Which file answers what:

- :mod:`.accuracy`: how accurate are its predictions, by class and in the harmonic mean?
- :mod:`.curve`: what is the area under accuracy against pruning rate (AUC)?
- :mod:`.estimate`: how accurate is it on held-out images, with which intervals?
- :mod:`.cost`: what does it cost, in filters, parameters, multiply-adds and seconds?
"""
