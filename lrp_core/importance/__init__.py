"""How much each filter matters to each image: one file a kind of criterion, and their joint selection."""
