"""Wording of everything that people read: numbers with their nouns, hints at misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 turn", "1,200 turns"."""
    if number == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{number:,} {plural}"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question that names the known word nearest to this one; empty without a near one."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    return f'did you mean "{near[0]}"?' if near else ""
