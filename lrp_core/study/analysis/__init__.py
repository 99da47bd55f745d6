"""From measured networks to areas, comparisons, ablations, costs, monitored accuracies, robustness and statistics."""
