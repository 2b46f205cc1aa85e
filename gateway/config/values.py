"""Scalars of the configuration: secrets, exact numbers, durations; their form in messages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True, slots=True)
class Secret:
    """A value hidden by `str` and `repr`; only `reveal()` returns it."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        """The plain value; never log it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__


def parse_duration_s(value: object) -> float | None:
    """Seconds of a number or a text like "500ms", "30m" or "7d"; None for anything else."""
    number = as_decimal(value)
    if number is not None:
        return float(number) if number >= 0 else None
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    return None if match is None else float(match[1]) * _SECONDS[match[2]]


def as_text(value: Any) -> Any:
    """Convert back to text what YAML reads as a date (`2024-02-01`) or a number (`42`)."""
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_LARGEST = Decimal(10) ** 30
"""No setting is larger; to make an integer of 1e9999999 takes longer than anyone waits."""


def as_decimal(value: object) -> Decimal | None:
    """An exact number, also written as a text; None for anything else."""
    # YAML 1.1 reads 1e-7 (no dot) as a string, so numeric strings count as numbers.
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    text = str(value).strip()
    if len(text) > 64:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and number.copy_abs() <= _LARGEST else None


def describe_range(minimum: Decimal | float, maximum: Decimal | float | None) -> str:
    """The bounds as messages name them."""
    low = _plainly(minimum)
    return f"of at least {low}" if maximum is None else f"from {low} to {_plainly(maximum)}"


def _plainly(number: Decimal | float) -> str:
    whole = Decimal(str(number)).normalize()
    return f"{whole:f}"


def kind_of(value: object) -> str:
    """Kind of a value, in words that repeat nothing of it."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (dict, "a mapping"),
        (list, "a list"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a string"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def shown(value: object) -> str:
    """A value as messages show it: short, and without the content of lists and mappings."""
    if isinstance(value, dict | list):
        return kind_of(value)
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
