"""Numbers as people read them."""

from __future__ import annotations

import pytest

from gateway.ui.format import ago, count, factor, moment, percent, points, saved_class, signed_percent, usd


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (None, "-"), (0, "$0"), (1_234_567_890_000, "$1,234.57"), (1_000_000_000, "$1.00"), (5_000_000, "$0.005"),
        (14_000_000, "$0.014"),
        (376, "$0.000000376"), (1, "$0.000000001"), (-250_000_000, "-$0.25"),
    ],
)  # fmt: skip
def test_amounts_have_cents_and_below_a_dollar_four_significant_places(nanousd: int | None, text: str) -> None:
    assert usd(nanousd) == text


def test_a_saving_of_nothing_is_neither_good_nor_bad() -> None:
    shares = (None, 0.0, -0.0001, 0.0004, 0.25, -44.227)
    assert [signed_percent(share) for share in shares] == ["-", "0.0 %", "0.0 %", "0.0 %", "+25.0 %", "-4,422.7 %"]
    assert [saved_class(share) for share in shares] == ["", "", "", "", "good", "bad"]


def test_shares_points_counts_and_times_carry_their_units() -> None:
    assert (percent(-0.4719), percent(None)) == ("-47.2 %", "-")
    assert (points(0.8465), points(None)) == ("84.7", "-")
    assert (count(12_030), count(None)) == ("12,030", "-")
    assert [factor(value) for value in (0.0, 0.14678, 46.4159, 1_467.8)] == ["0", "0.147", "46.4", "1,468"]
    assert moment(0) == "1970-01-01 00:00:00 UTC"
    assert [ago(at, 100_000_000) for at in (None, 100_000_000, 99_998_000, 99_700_000, 92_000_000, 1)] == [
        "never", "now", "2 s ago", "5 min ago", "2 h ago", "1 d ago",
    ]  # fmt: skip
