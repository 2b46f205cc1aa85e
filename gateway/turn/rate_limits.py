"""Rate limits of a turn: its own of tenant and key, else those of the configuration."""

from __future__ import annotations

from gateway.config.settings import GeneralSettings
from gateway.ledger.rates import AccountLimits, TurnLimits, tokens_to_count
from gateway.routing.estimates import Estimate
from gateway.turn.context import TurnContext
from gateway.turn.demand import answer_tokens


def turn_limits(context: TurnContext, estimate: Estimate, general: GeneralSettings) -> TurnLimits | None:
    """Limits and tokens that the turn is counted with; None: it has no limits.

    The gateway's own turns have no limits, and what is served without the ledger is limited by its cap.
    """
    caller = context.caller
    if caller.is_own or context.outage is not None:
        return None
    tenant = caller.tenant_quota.within(general.tenant_limits)
    key = caller.key_quota.within(general.key_limits)
    if not tenant and not key:
        return None
    accounts = []
    if tenant:
        accounts.append(AccountLimits("tenant", caller.tenant_id, tenant))
    if key:
        accounts.append(AccountLimits("key", caller.key_id, key))
    return TurnLimits(
        tuple(accounts),
        caller.key_id,
        tokens_to_count(context.prompt.estimate, answer_tokens(context, estimate), [each.quota for each in accounts]),
    )
