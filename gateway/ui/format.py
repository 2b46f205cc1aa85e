"""Formatting on the pages: amounts with units, percentages, relative times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from gateway.wording import counted

_STEPS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def usd(nanousd: int | None) -> str:
    """Dollars with at most four significant places below one, and cents above; "-" when unknown."""
    if nanousd is None:
        return "-"
    amount = Decimal(nanousd) / 1_000_000_000
    if amount == 0:
        return "$0"
    places = 2 if abs(amount) >= 1 else min(9, 3 - amount.adjusted())
    text = format(abs(amount).quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP), ",f")
    text = text[: len(text) - places + 2] + text[len(text) - places + 2 :].rstrip("0")
    return ("-" if amount < 0 else "") + "$" + text


def percent(share: float | None) -> str:
    """A share from 0 to 1 as a percentage; "-" when unknown."""
    return "-" if share is None else f"{share * 100:,.1f} %"


def signed_percent(share: float | None) -> str:
    """A share as a percentage with its sign; "-" when unknown."""
    if share is None:
        return "-"
    return f"{share * 100:+,.1f} %" if _tenths_of_a_percent(share) else "0.0 %"


def saved_class(share: float | None) -> str:
    """The style of a saving: none while nothing is known, or as much as nothing was saved."""
    tenths = 0 if share is None else _tenths_of_a_percent(share)
    return "good" if tenths > 0 else "bad" if tenths < 0 else ""


def _tenths_of_a_percent(share: float) -> int:
    return round(share * 1000)


def dollars(value: float | None) -> str:
    """An estimate in dollars, as amounts are shown; "-" when unknown."""
    return usd(None if value is None else round(value * 1_000_000_000))


def points(value: float | None) -> str:
    """Quality from 0 to 1 as points from 0 to 100."""
    return "-" if value is None else f"{value * 100:.1f}"


def ago(at_ms: int | None, now_ms: int) -> str:
    """Time since `at_ms` in its largest unit."""
    if at_ms is None:
        return "never"
    for step_ms, unit in _STEPS:
        if now_ms - at_ms >= step_ms:
            return f"{(now_ms - at_ms) // step_ms} {unit} ago"
    return "now"


def moment(at_ms: int | None) -> str:
    """UTC date and time; "-" when unknown."""
    return "-" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def count(number: int | None) -> str:
    """A number with thousands separators; "-" when unknown."""
    return "-" if number is None else f"{number:,}"


def factor(value: float) -> str:
    """Three significant places without an exponent: 0.147, 46.4, 1,470."""
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def signed_points(value: float | None) -> str:
    """A difference of quality in points, with its sign; "-" when unknown or unbounded."""
    return "-" if value is None or not math.isfinite(value) else f"{value * 100:+.1f}"


def sentence(text: str) -> str:
    """A phrase with a capital at its start."""
    return text[:1].upper() + text[1:]


FILTERS: Mapping[str, Callable[..., Any]] = {
    "usd": usd, "percent": percent, "signed_percent": signed_percent,
    "saved_class": saved_class, "dollars": dollars, "points": points, "ago": ago,
    "moment": moment, "count": count, "counted": counted, "factor": factor, "signed_points": signed_points,
    "sentence": sentence,
}  # fmt: skip
