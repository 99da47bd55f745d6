"""Devices, errors, files, and sums over several sites."""
