"""The choice of which filters are pruned, and how many.

Which file answers what:

- :mod:`.methods`: which methods are there, and how are they composed?
- :mod:`.calibration`: what may a method read and change?
- :mod:`.controller`: how do the class accuracies steer pruning rate and order?
- :mod:`.monitored`: which accuracies can be monitored?
- :mod:`.contributions`: what does joint selection need from a pruned network?
- :mod:`.budget_search`: which network is best at each of a schedule of budgets?
- :mod:`.actions`: which actions can reach a budget?
- :mod:`.candidates`: how are the candidates of the actions made and evaluated?
- :mod:`.cost`: what would a network cost without some filters?
- :mod:`.cost_descent`: which filters are removed together, at which size?
- :mod:`.descent`: how does a method give a network at every size?
- :mod:`.cross_validation`: how accurate is a network on images that were not used for pruning?
- :mod:`.path`: what is known about every size?
- :mod:`.selection`: which size is taken for an allowed drop of the accuracy?
- :mod:`.image_size`: how small may the images be?
- :mod:`.early_exit`: how accurate is a head at each exit of the backbone?
- :mod:`.one_standard_error`: which network is the smallest that is as good as the best?
- :mod:`.block_ranking`: which residual block changes its input least?
- :mod:`.block_similarity`: the same by CKA, which gains nothing.
- :mod:`.unlabelled`: how can unlabelled images estimate accuracies? It gains nothing.
"""
