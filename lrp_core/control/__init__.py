"""What decides which filters go, and how many: the accuracy controller, the budget search, methods by name."""
