"""Layer-wise Relevance Propagation (LRP).

Which file answers what:

- :mod:`.lrp`: how does relevance go back through a whole network, and what comes of it?
- :mod:`.rules`: how does one layer share relevance among its inputs?
- :mod:`.products`: who takes the relevance where a gate scales a signal?
- :mod:`.composites`: which rule goes to which layer?
- :mod:`.linear_map`: how do rules see a convolution or dense layer?
"""
