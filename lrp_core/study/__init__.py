"""The artifact around the method: its data, its runs, their analysis, and what is shown of it.

It works in a clone of the repository, which :mod:`lrp_core.study.paths` knows. Commands:
``python -m lrp_core.study.runs.pipeline``, ``lrp_core.study.show.report`` and ``lrp_core.study.show.export``.
"""
