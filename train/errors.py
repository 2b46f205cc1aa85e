"""What a user can fix, from wherever it is found: the command line says it in one line and exits with 2."""

from __future__ import annotations


class InputError(ValueError):
    """One line: what was found, what was expected, where."""


def kind_of(value: object) -> str:
    """What a value of JSON or YAML is, in words."""
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
    """Why a file could not be read, in words: the system's, or that its content is another."""
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else "its content is not that"
