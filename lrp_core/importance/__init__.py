"""How important each filter is for each image: one file per kind of criterion.

Which file answers what:

- :mod:`.criterion`: what is a criterion?
- :mod:`.registry`: which criteria are there?
- :mod:`.relevance`: LRP.
- :mod:`.contribution`: the contribution of a filter to the logits.
- :mod:`.joint`: which filters should be pruned together?
- :mod:`.by_class`: how are scores summed over the images of a class?
- :mod:`.activation`: activation, gradient, Taylor.
- :mod:`.magnitude`: weights.
- :mod:`.random_scores`: random scores.
- :mod:`.integrated_gradients`: SInGE, which gains nothing.
- :mod:`.convex_masking`: kernelised convex masking, which gains nothing.
"""
