"""What is measured of a network.

Which file answers what:

- :mod:`.accuracy`: how well does it predict, by class, on average, along a pruning curve?
- :mod:`.cost`: what does it cost, in filters, parameters, multiply-adds and seconds?
"""
