"""Layer-wise Relevance Propagation (LRP): rules, composites, and one backward pass of relevance."""
