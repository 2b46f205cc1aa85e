"""Money is integers; parsing rounds in the direction that never lets a budget grow or a bill shrink."""

from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.money import (
    MAX_NANOUSD,
    MoneyError,
    femtousd_from_usd,
    nanousd_from_femtousd,
    nanousd_from_usd,
    rounded_usd,
    usd_string,
)


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("0", 0), ("1", 10**9), ("0.1", 10**8), (0.1, 10**8), ("5e-3", 5_000_000), ("0.0000000019", 1),
        (2, 2 * 10**9), ("-0", 0), ("1e-9999999", 0), ("0e9999999", 0),
    ],
)  # fmt: skip
def test_a_decimal_amount_becomes_nanousd_rounded_down(text: str | float, nanousd: int) -> None:
    assert nanousd_from_usd(text) == nanousd


@pytest.mark.parametrize(("text", "nanousd"), [("1e-10", 1), ("0.0000000011", 2), ("1e-9", 1), ("0", 0), (0.1, 10**8)])
def test_an_amount_that_was_spent_is_rounded_up(text: str | float, nanousd: int) -> None:
    assert nanousd_from_usd(text, rounding=ROUND_CEILING) == nanousd


@pytest.mark.parametrize(
    "bad",
    [
        "", "a lot", "-1", "NaN", "sNaN", "Infinity", "1e400", "1e1000000", "-1e9999999", "1e99999999999999999999",
        "9" * 65, True, "4700000000", "1_000", "0,5", "$1",
    ],
)  # fmt: skip
def test_what_is_no_amount_is_refused(bad: str | bool) -> None:
    with pytest.raises(MoneyError):
        nanousd_from_usd(bad)


def test_a_price_finer_than_a_nano_keeps_its_fraction_until_the_sum() -> None:
    cached = femtousd_from_usd(3.75e-8)
    assert cached == 37_500_000
    assert nanousd_from_femtousd(3 * cached) == 113  # 112.5, rounded up once
    assert nanousd_from_femtousd(0) == 0


@given(st.integers(0, MAX_NANOUSD))
def test_the_string_of_an_amount_reads_back_as_the_same_amount(nanousd: int) -> None:
    assert nanousd_from_usd(usd_string(nanousd)) == nanousd
    assert Decimal(usd_string(-nanousd)) == -Decimal(nanousd) / 10**9


@pytest.mark.parametrize(
    ("nanousd", "down", "up"),
    [
        (0, "0", "0"), (7, "0.000000007", "0.000000007"), (500_123, "0.0005", "0.00051"), (429_000_000, "0.42", "0.43"),
        (-250_010_000, "-0.25", "-0.26"), (12_975_031_000, "12.97", "12.98"), (999_999_999, "0.99", "1"),
    ],
)  # fmt: skip
def test_prose_has_an_amount_without_digits_that_look_like_a_status(nanousd: int, down: str, up: str) -> None:
    assert (rounded_usd(nanousd), rounded_usd(nanousd, up=True)) == (down, up)
