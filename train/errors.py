"""Errors that a user can fix: the command line prints them in one line and exits with 2."""

from __future__ import annotations


class InputError(ValueError):
    """An invalid input; the one-line message says what was found and expected, and where."""


def kind_of(value: object) -> str:
    """Name of a JSON or YAML value's type for messages."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        (dict, "an object"),
        (list, "a list"),
        (type(None), "nothing"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "another value")


def reason_of(error: Exception) -> str:
    """Reason for messages why a file could not be read: the system's, or invalid content."""
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else "its content is not that"
