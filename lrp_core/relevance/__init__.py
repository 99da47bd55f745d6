"""Layer-wise Relevance Propagation (LRP).

Which file answers what:

- :mod:`.lrp`: how is relevance propagated back through a whole network, and what is the result?
- :mod:`.rules`: how does one layer distribute relevance over its inputs?
- :mod:`.products`: which factor gets the relevance if a gate scales a signal?
- :mod:`.composites`: which layer uses which rule?
- :mod:`.linear_map`: how do rules see a convolution or dense layer?
"""
