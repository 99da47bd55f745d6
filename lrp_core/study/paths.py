"""Paths of files: relative to the repository root, wherever a notebook or a command is started."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = "data/small"  # the workspace that the notebooks name themselves
