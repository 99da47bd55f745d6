"""How much each filter matters to each image: a file a kind of criterion.

Which file answers what:

- :mod:`.criterion`: what is a criterion?
- :mod:`.registry`: which criteria are there?
- :mod:`.relevance`: LRP.
- :mod:`.contribution`: what a filter adds to the logits.
- :mod:`.joint`: which filters are to be pruned together?
- :mod:`.by_class`: how are scores summed over the images of a class?
- :mod:`.activation`: activation, gradient, Taylor.
- :mod:`.magnitude`: weights.
- :mod:`.random_scores`: chance.
- :mod:`.integrated_gradients`: SInGE, which gains nothing.
- :mod:`.convex_masking`: kernelised convex masking, which gains nothing.
"""
