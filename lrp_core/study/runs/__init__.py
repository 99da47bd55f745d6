"""Runs of methods: the runner, its cache, what is measured, and the pipeline of notebooks."""
