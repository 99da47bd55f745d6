"""A network as a list of layers: traced, run, its batch normalisation folded, truncated."""
