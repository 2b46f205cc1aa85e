"""Cost of one call by its parameters: possible service tiers, and web searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.catalog.cost import CostBounds
from gateway.catalog.models import Deployment, Model
from gateway.catalog.prices import NO_SEARCH, Prices
from gateway.catalog.service_tiers import AUTO, UNPRICED, tier_named
from gateway.catalog.web_search import SIZES, search_terms


def call_bounds(
    model: Model,
    prompt_tokens_bound: int,
    params: Mapping[str, Any],
    extras: Mapping[str, Any],
    *,
    n: int = 1,
    images: int = 0,
    audio: bool = False,
) -> CostBounds:
    """The worst case of a call at any deployment: its highest possible tier, and its searches."""
    prices = model.prices
    if not prices.service_tiers and prices.search_femtousd == NO_SEARCH:
        return CostBounds(prices, prompt_tokens_bound, n=n, images=images, audio=audio)
    asked = params.get("service_tier")
    tiers = {tier for each in model.deployments for tier in billable_tiers(each, asked)}
    terms = [search_terms(each.litellm_model, each.prices, params, extras) for each in model.deployments]
    search = max(terms, key=lambda each: (each.most, each.result_tokens, SIZES.index(each.size)))
    return CostBounds(prices, prompt_tokens_bound, n=n, images=images, audio=audio, service_tiers=tiers, search=search)


def expected_prices(model: Model, params: Mapping[str, Any]) -> Prices:
    """The prices of the service tier that a request names, else the standard ones."""
    return model.prices.of(tier_named(params.get("service_tier")))


def billable_tiers(deployment: Deployment, asked: object) -> frozenset[str]:
    """The non-standard tiers that a call with the client's `service_tier` may be billed at."""
    priced = frozenset(deployment.prices.tier_names)
    sent = _sent(deployment, asked)
    if sent is None:
        return deployment.unasked_tiers & priced
    return priced if sent == AUTO else priced & {tier_named(sent)}


def sent_tier(deployment: Deployment, asked: object) -> str | None:
    """The tier that a call is sent with; None: the standard one, or the provider's choice."""
    named = tier_named(_sent(deployment, asked))
    return named if named in deployment.prices.tier_names else None


def _sent(deployment: Deployment, asked: object) -> object:
    """The `service_tier` of the outgoing call; a client's tier without a price is dropped."""
    if asked is None:
        return deployment.request_defaults.get("service_tier")
    known = asked in UNPRICED or tier_named(asked) in deployment.prices.tier_names
    return asked if known else None
