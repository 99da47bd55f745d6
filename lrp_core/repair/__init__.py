"""What makes up for pruned filters without training: reconstruction, and a ridge head fitted anew."""
