"""Money in integers of nano-USD (1e-9 USD), prices in femto-USD (1e-15 USD) per token.

A price needs finer units than a balance: a cached token of a small model costs 37.5 nano-USD. Sums of
``tokens * price`` are exact in femto-USD and are rounded up to nano-USD once, at the end (`nanousd_from_femtousd`).
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation

NANOUSD_PER_USD = 10**9
FEMTOUSD_PER_USD = 10**15
FEMTOUSD_PER_NANOUSD = 10**6

MAX_NANOUSD = 2**62
"""The largest amount of a column or header; the sum of two still fits a BIGINT."""

_PLAUSIBLE_USD = Decimal(10) ** 15


class MoneyError(ValueError):
    """An invalid amount: not a finite number, negative, or too large."""


def nanousd_from_usd(amount_usd: str | int | float | Decimal, *, rounding: str = ROUND_FLOOR) -> int:
    """Parse a decimal USD amount, rounded down unless told otherwise: no budget grows so.

    Floats are read by their shortest decimal form, so ``0.1`` is 100,000,000 nano-USD.
    Raises MoneyError for anything but a finite amount in ``[0, MAX_NANOUSD]``.
    """
    scaled = _decimal(amount_usd) * NANOUSD_PER_USD
    nanousd = int(scaled.to_integral_value(rounding))
    if not 0 <= nanousd <= MAX_NANOUSD:
        raise MoneyError(f"expected an amount from 0 to {MAX_NANOUSD // NANOUSD_PER_USD} USD, got {amount_usd!r}"[:200])
    return nanousd


def femtousd_from_usd(price_usd: str | int | float | Decimal) -> int:
    """Parse a per-unit price in USD, rounding up (a bill is never undercounted)."""
    scaled = _decimal(price_usd) * FEMTOUSD_PER_USD
    femtousd = int(scaled.to_integral_value(ROUND_CEILING))
    if not 0 <= femtousd <= 10**18:
        raise MoneyError(f"expected a price from 0 to 1000 USD per unit, got {price_usd!r}"[:200])
    return femtousd


def nanousd_from_femtousd(femtousd: int) -> int:
    """Round a sum of token costs up to whole nano-USD: the only rounding of a bill."""
    return -(-femtousd // FEMTOUSD_PER_NANOUSD)


def usd_string(nanousd: int) -> str:
    """Exact decimal USD without exponent and trailing zeros: ``1_500_000_000 -> "1.5"``."""
    sign, magnitude = ("-", -nanousd) if nanousd < 0 else ("", nanousd)
    whole, fraction = divmod(magnitude, NANOUSD_PER_USD)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def rounded_usd(nanousd: int, *, up: bool = False) -> str:
    """USD for prose: whole cents from one dollar on, two digits below; up, or towards zero.

    Clients look for status codes in an error's text; an exact amount may have one in its digits.
    """
    magnitude = abs(nanousd)
    unit = NANOUSD_PER_USD // 100 if magnitude >= NANOUSD_PER_USD else 10 ** max(len(str(magnitude)) - 2, 0)
    rounded = -(-magnitude // unit) * unit if up else magnitude // unit * unit
    return usd_string(-rounded if nanousd < 0 else rounded)


def _decimal(value: str | int | float | Decimal) -> Decimal:
    if isinstance(value, bool):
        raise MoneyError(f"expected a decimal number, got {value!r}")
    text = str(value).strip()
    if len(text) > 64:
        raise MoneyError("expected a decimal number of at most 64 characters")
    try:
        # Decimal accepts 1_000 and digits of every script; such an amount is more likely a mistake.
        number = Decimal(text if text.isascii() and "_" not in text else "")
    except InvalidOperation as error:
        raise MoneyError(f"expected a decimal number, got {text!r}") from error
    # `abs` would round to the context's exponents, and raise Overflow for 1e9999999; comparing does not.
    if not number.is_finite() or number.copy_abs() > _PLAUSIBLE_USD:
        raise MoneyError(f"expected a finite amount of a plausible size, got {text!r}")
    return number
