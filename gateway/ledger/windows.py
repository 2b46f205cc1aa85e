"""Budget windows ("12h", "30d", "1mo"), aligned to the UTC calendar, not to the first spend.

A boundary is a multiple of the window's length: hours and days counted from 1970-01-01T00:00Z (so every day window
turns over at a UTC midnight), months from January of year 0 (so "3mo" are the calendar quarters). Two replicas compute
the same boundary from the same clock, so a conditional update elects the one that resets.

The Postgres function of the first migration computes the same boundary; a test compares the two.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

_FORM = re.compile(r"([1-9][0-9]{0,3})(h|d|mo)")
_UNIT_MS = {"h": 3_600_000, "d": 86_400_000}


def parse_window(text: str) -> tuple[int, Literal["h", "d", "mo"]]:
    """Split "30d" into (30, "d"). Raises ValueError."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'expected a window like "12h", "30d" or "1mo", got {text[:40]!r}')
    units: dict[str, Literal["h", "d", "mo"]] = {"h": "h", "d": "d", "mo": "mo"}
    return int(match[1]), units[match[2]]


def next_reset_ms(window: str, now_ms: int) -> int:
    """The first boundary strictly after `now_ms`, in milliseconds since the epoch."""
    count, unit = parse_window(window)
    if unit == "mo":
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        month = now.year * 12 + now.month - 1
        following = (month // count + 1) * count
        boundary = datetime(following // 12, following % 12 + 1, 1, tzinfo=UTC)
        return int(boundary.timestamp()) * 1000
    length_ms = count * _UNIT_MS[unit]
    return (now_ms // length_ms + 1) * length_ms
