"""The study around the library: data, runs, their analysis, figures and tables.

It works in a clone of the repository (:mod:`lrp_core.study.paths`). Commands:
``python -m lrp_core.study.runs.pipeline``, ``lrp_core.study.show.report`` and ``lrp_core.study.show.export``.
"""
