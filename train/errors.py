"""What a user can mend, from wherever it is found: the command line says it in one line and exits with 2."""

from __future__ import annotations


class InputError(ValueError):
    """One line: what was found, what was expected, where."""
