"""Compensation for pruned filters.

Which file answers what:

- :mod:`.reconstruction`: how are layers fitted to their original outputs?
- :mod:`.ridge_head`: how is a linear head fitted in closed form?
- :mod:`.out_of_fold`: how are images evaluated by heads that have not seen them?
- :mod:`.refit`: how does a pruned network get a new head?
- :mod:`.distillation`: how does a pruned network learn from the unpruned one?
- :mod:`.temperature`: how do its outputs become probabilities?
"""
