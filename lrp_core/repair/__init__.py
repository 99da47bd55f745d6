"""What makes up for pruned filters without training.

Which file answers what:

- :mod:`.reconstruction`: how do the channels that are kept take over?
- :mod:`.ridge_head`: how is a linear head fitted in closed form?
- :mod:`.out_of_fold`: how are images judged by heads that have not seen them?
- :mod:`.refit`: how does a pruned network get a new head?
- :mod:`.temperature`: how do its outputs become probabilities?
"""
