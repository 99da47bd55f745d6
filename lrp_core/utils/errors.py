"""Checks that turn bad input into one clear message."""

from collections.abc import Collection


def check_choice(what: str, value: str, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ValueError: names the value, what it stands for and the possible values.
    """
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose one of: {', '.join(sorted(choices))}")
    return value
