"""How an account is shown, by the API and by the command line."""

from __future__ import annotations

from typing import Any

from gateway.ledger.types import Balance
from gateway.money import usd_string


def money_fields(name: str, nanousd: int | None) -> dict[str, Any]:
    """Money twice, as the contract wants it: `<name>_nano_usd` and `<name>_usd`."""
    from_nano = None if nanousd is None else usd_string(nanousd)
    return {f"{name}_nano_usd": nanousd, f"{name}_usd": from_nano}


def balance_fields(balance: Balance) -> dict[str, Any]:
    """An account as every view shows it: what it was given, what of it is gone, held and left."""
    return {
        **money_fields("budget", balance.granted_nanousd),
        **money_fields("spent", balance.spent_nanousd),
        **money_fields("reserved", balance.reserved_nanousd),
        **money_fields("remaining", balance.available_nanousd),
    }
