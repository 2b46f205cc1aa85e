"""Numbers with their nouns, for everything that people read."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 turn", "1,200 turns"."""
    if number == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{number:,} {plural}"
