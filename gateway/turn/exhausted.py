"""The errors of a turn that no money is left for."""

from __future__ import annotations

from gateway.accounts.fields import spend_control_fields
from gateway.accounts.spent import spent_account
from gateway.errors import GatewayError, LedgerUnavailable, RateLimited, RequestBudgetExceeded
from gateway.money import rounded_usd, usd_string
from gateway.routing import guard
from gateway.turn.context import TurnContext
from gateway.turn.funds import Shortage


def exhausted(context: TurnContext, shortage: Shortage) -> GatewayError:
    """The error for a turn without money: 402 with the remedy if it is spent.

    429 if concurrent turns only hold it, or an affordable model is busy: a retry helps.
    """
    funds, least_nanousd = shortage.funds, shortage.least_nanousd
    if shortage.busy_s and not shortage.held:
        return guard.at_limits(shortage.busy_s, "the money left could pay")
    if context.outage is not None:
        return LedgerUnavailable(
            "the ledger is unavailable, and the outage cap is used up", headers={"Retry-After": "5"}
        )
    details = {
        "session_id": context.session_id,
        "remaining_nano_usd": funds.remainder_nanousd,
        "remaining_usd": usd_string(funds.remainder_nanousd),
        "needed_nano_usd": least_nanousd,
        "needed_usd": usd_string(least_nanousd),
    }
    spent = None if funds.account == "request" else spent_account(funds.account, context.session_id)
    payer = "request" if spent is None else spent.name
    found = (
        f"the {payer}'s budget has {rounded_usd(funds.remainder_nanousd)} USD left; the cheapest capable model "
        f"needs {rounded_usd(least_nanousd, up=True)} USD for this turn"
    )
    if shortage.held:
        held = rounded_usd(funds.unspent_nanousd - funds.left_nanousd)
        return RateLimited(
            f"{found}; other turns hold {held} USD until they are billed; try again",
            headers={"Retry-After": "1"},
            details=details,
        )
    if spent is None:
        return RequestBudgetExceeded(
            f"{found}; raise X-Route-Max-USD", headers={"x-should-retry": "false"}, details=details
        )
    # What is kept for the last answer is still left.
    details |= spend_control_fields(not context.kept_nanousd or context.session_left_nanousd <= 0)
    if context.closing and context.memory.closed:
        found = f"the last answer of this session was served in wrap-up; {found}"
    return spent.error(f"{found}; {spent.remedy}", headers={"x-should-retry": "false"}, details=details)
