"""What is measured of a network.

Which file answers what:

- :mod:`.accuracy`: what does it predict, and how well, by class and in the harmonic mean?
- :mod:`.curve`: what is the area under accuracy against pruning rate (AUC)?
- :mod:`.estimate`: what do held-out images say of it, and how surely?
- :mod:`.cost`: what does it cost, in filters, parameters, multiply-adds and seconds?
"""
