"""Service tiers: prices of the same model for faster, slower or deferred processing.

Tiers have the names of LiteLLM's price keys (`input_cost_per_token_priority`). A provider bills the tier in which it
served the call and reports it, which may not be the requested one: a priority call can be served as a standard one.
Anthropic's premiums are tiers too: inference in the US, which a workspace may have as its default, and fast mode.
"""

from __future__ import annotations

from collections.abc import Collection

from gateway.config.prices import FAST, FAST_US, TIERS, US

FAST_PARAMETER = "speed"
AUTO = "auto"
"""The provider chooses, by the settings of the operator's account there."""
STANDARD = "default"
UNPRICED = (AUTO, STANDARD)
"""Values of `service_tier` that need no prices of their own."""

_OTHER_NAMES = {"fast": "priority", "batch": "batches", "on_demand_priority": "priority", "on_demand_flex": "flex"}


def tier_named(value: object) -> str | None:
    """The tier that a request or a response names; None for the standard tier and unknown ones."""
    if not isinstance(value, str):
        return None
    name = value.lower()
    name = _OTHER_NAMES.get(name, name)
    return name if name in TIERS else None


def reported_tier(service_tier: object, premiums: Collection[str], priced: Collection[str]) -> str | None:
    """The tier with prices that a report of usage falls into; None: the standard one."""
    both = (FAST_US,) if US in premiums and FAST in premiums else ()
    return next((name for name in (*both, *premiums, tier_named(service_tier)) if name in priced), None)


def is_priced(value: object, tiers: Collection[str]) -> bool:
    """True for a `service_tier` with a known price; `tiers` have prices of their own."""
    return value in UNPRICED or tier_named(value) in tiers
