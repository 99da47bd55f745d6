"""From measured networks to areas, comparisons, costs, statistics and robustness."""
