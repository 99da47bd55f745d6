"""Filters that only go together, their removal, a network that loses filters step by step, and its file."""
