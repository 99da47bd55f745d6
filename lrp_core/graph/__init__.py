"""A network as a list of layers.

Which file answers what:

- :mod:`.layers`: what is a layer, and which kinds are supported?
- :mod:`.tracing`: how does a model become a list of layers, and what is refused?
- :mod:`.reading`: how does a node of a traced forward become a layer?
- :mod:`.calls`: what does a call such as ``F.relu(x)`` stand for?
- :mod:`.views`, :mod:`.joins`: what do views and slices, sums and products stand for?
- :mod:`.arrangement`: how do the dimensions of a tensor in the code stand to a layer's maps?
- :mod:`.building`: how are layers added, and rearrangements where they are needed?
- :mod:`.explicit`: how does a network get a module for each layer, so that it can become smaller?
- :mod:`.execution`: how is the list run, whole or in part?
- :mod:`.batchnorm`: how is batch normalisation folded into convolutions?
- :mod:`.padding`: how does a convolution pad what it reads?
- :mod:`.signs`: where can values not be negative?
- :mod:`.outputs`: where are the logits of a network that ends in a softmax?
- :mod:`.sharing`: how is a network changed without a copy of its tensors?
- :mod:`.exits`: where may a backbone end, and what does it give and cost there?
- :mod:`.blocks`: which residual blocks can be skipped?
- :mod:`.truncation`: how is a backbone of less depth made?
- :mod:`.resizing`: how does a network read smaller images?
"""
