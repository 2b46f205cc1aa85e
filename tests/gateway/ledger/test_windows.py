"""Budget windows end where the calendar says, by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.ledger.windows import next_reset_ms, parse_window


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("window", "now_ms", "expected_ms"),
    [
        ("1mo", ms(2026, 4, 18, 13, 7), ms(2026, 5, 1)),
        ("1mo", ms(2026, 12, 31, 23, 59), ms(2027, 1, 1)),
        ("1mo", ms(2026, 5, 1), ms(2026, 6, 1)),  # a boundary belongs to the window it opens
        ("1mo", ms(2028, 2, 29), ms(2028, 3, 1)),
        ("3mo", ms(2026, 4, 18), ms(2026, 7, 1)),
        ("12mo", ms(2026, 4, 18), ms(2027, 1, 1)),
        ("1d", ms(2026, 4, 18, 13, 7), ms(2026, 4, 19)),
        ("7d", ms(1970, 1, 7), ms(1970, 1, 8)),
        ("7d", ms(1970, 1, 8), ms(1970, 1, 15)),
        ("12h", ms(2026, 4, 18, 11, 59), ms(2026, 4, 18, 12)),
        ("12h", ms(2026, 4, 18, 12), ms(2026, 4, 19)),
    ],
)
def test_the_next_boundary(window: str, now_ms: int, expected_ms: int) -> None:
    assert next_reset_ms(window, now_ms) == expected_ms


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5d", "30 d", "1m", "1y", "99999d", "30days", "٣d"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a window"):
        parse_window(text)
