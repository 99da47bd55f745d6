"""What decides which filters are pruned, and how many.

Which file answers what:

- :mod:`.methods`: which methods are there, and how are they composed?
- :mod:`.calibration`: what may a method see of a network, and do to it?
- :mod:`.controller`: how do the class accuracies steer pruning rate and order?
- :mod:`.monitored`: which accuracies are watched?
- :mod:`.contributions`: what does the joint selection read of a pruned network?
- :mod:`.budget_search`: what is kept for each of a schedule of budgets?
- :mod:`.actions`: what may be done to reach a budget?
- :mod:`.candidates`: how are the networks made and judged that actions offer?
- :mod:`.cost`: what would a network cost without some filters?
- :mod:`.cost_descent`: which filters go together, at which size?
- :mod:`.descent`: how does one method go down, and leave a network at every size?
- :mod:`.cross_validation`: what do images say that had no part in pruning?
- :mod:`.path`: what is known of every size?
- :mod:`.selection`: which size is taken for a drop of the accuracy?
- :mod:`.early_exit`: how good is a head wherever the backbone may end?
- :mod:`.block_ranking`: which residual block changes least?
- :mod:`.block_similarity`: the same by CKA, which gains nothing.
- :mod:`.unlabelled`: what do images without labels tell of accuracies? It gains nothing.
"""
