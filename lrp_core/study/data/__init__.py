"""Data sets and their splits, pre-trained networks, downloads, and the files that stages hand on."""
