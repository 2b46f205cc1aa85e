"""Cost of one call by its parameters: service tiers, web searches, hosted tools."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from gateway.catalog.cost import CostBounds
from gateway.catalog.hosted_tools import NO_TOOLS, HostedCalls, HostedTools, fees_of
from gateway.catalog.models import Deployment, Model
from gateway.catalog.prices import Prices
from gateway.catalog.service_tiers import AUTO, FAST_PARAMETER, is_priced, tier_named
from gateway.catalog.tokens import IMAGE
from gateway.catalog.web_search import SIZES, SearchTerms, search_terms
from gateway.config.prices import PREMIUMS, US


def call_bounds(
    model: Model,
    prompt_tokens_bound: int,
    params: Mapping[str, Any],
    extras: Mapping[str, Any],
    *,
    n: int = 1,
    images: int = 0,
    audio: bool = False,
    tools: HostedTools = NO_TOOLS,
    tool_calls: int = 0,
) -> CostBounds:
    """The worst case of a call at any deployment: its highest tier, searches and hosted tools.

    A prompt is billed at no more than the longest one that the providers take; an image may be billed at more tokens
    than it takes up in the context.
    """
    prices = model.prices
    if model.longest_prompt_tokens is not None:
        prompt_tokens_bound = min(prompt_tokens_bound, model.longest_prompt_tokens + images * IMAGE.bound)
    if tool_calls:
        return _with_tools(model, prompt_tokens_bound, params, tools, tool_calls, images=images, audio=audio)
    if model.has_plain_prices:
        return CostBounds(prices, prompt_tokens_bound, n=n, images=images, audio=audio)
    asked = params.get("service_tier")
    tiers = {tier for each in model.deployments for tier in billable_tiers(each, asked)}
    terms = [deployment_terms(each, params, extras) for each in model.deployments]
    search = replace(
        max(terms, key=lambda each: (each.most, SIZES.index(each.size))),
        result_tokens=max(each.result_tokens for each in terms),
        citation_tokens=max(each.citation_tokens for each in terms),
        reasoning_tokens=max(each.reasoning_tokens for each in terms),
    )
    return CostBounds(prices, prompt_tokens_bound, n=n, images=images, audio=audio, service_tiers=tiers, search=search)


def _with_tools(
    model: Model,
    prompt_tokens_bound: int,
    params: Mapping[str, Any],
    tools: HostedTools,
    tool_calls: int,
    *,
    images: int,
    audio: bool,
) -> CostBounds:
    """The worst case of a call whose provider runs tools; its web searches are among them."""
    tiers = {tier for each in model.deployments for tier in billable_tiers(each, params.get("service_tier"))}
    fees = [hosted_calls(each, tools, tool_calls).fees_femtousd for each in model.deployments]
    highest = {kind: max(each.get(kind, 0) for each in fees) for kind in tools.kinds}
    longest = max(model.max_output_tokens, model.longest_answer_tokens or 0)
    hosted = HostedCalls(tool_calls, highest, longest)
    return CostBounds(model.prices, prompt_tokens_bound, images=images, audio=audio, service_tiers=tiers, hosted=hosted)


def hosted_calls(deployment: Deployment, tools: HostedTools, most: int) -> HostedCalls:
    """The hosted tools of one call at one deployment, with their fees."""
    fees = fees_of(tools, deployment.prices, deployment.tool_prices_usd, deployment.prices_of)
    return HostedCalls(most, fees)


def deployment_terms(deployment: Deployment, params: Mapping[str, Any], extras: Mapping[str, Any]) -> SearchTerms:
    """The terms of a call's web searches at one deployment."""
    return search_terms(
        deployment.litellm_model, deployment.prices, params, extras, one_billed=deployment.one_search_billed
    )


def expected_prices(model: Model, params: Mapping[str, Any]) -> Prices:
    """The prices of the service tier that a request names, else the standard ones."""
    asked = params.get("service_tier")
    return model.prices if asked is None else model.prices.of(tier_named(asked))


def billable_tiers(deployment: Deployment, asked: object) -> frozenset[str]:
    """The non-standard tiers that a call with the client's `service_tier` may be billed at.

    Anthropic's workspaces choose where a call is served; its fast mode needs a parameter that the operator allows.
    """
    priced = frozenset(deployment.prices.tier_names)
    premiums = priced & frozenset(PREMIUMS if FAST_PARAMETER in deployment.allowed_params else (US,))
    sent = _sent(deployment, asked)
    if sent is None:
        return (deployment.unasked_tiers & priced) | premiums
    return premiums | (priced.difference(PREMIUMS) if sent == AUTO else priced & {tier_named(sent)})


def sent_tier(deployment: Deployment, asked: object, dropped: Collection[str] = ()) -> str | None:
    """The tier that a call is sent with; None: the standard one, or the provider's choice.

    `dropped` are the client's parameters that were not sent to the deployment.
    """
    if "service_tier" in dropped and _is_known(deployment, asked):
        return None  # the provider does not take it; a tier without a price gave way to the operator's
    named = tier_named(_sent(deployment, asked))
    return named if named in deployment.prices.tier_names else None


def _sent(deployment: Deployment, asked: object) -> object:
    """The `service_tier` of the outgoing call: the client's if its price is known, else the operator's."""
    if "service_tier" in deployment.dropped_params:
        return None
    return asked if _is_known(deployment, asked) else deployment.request_defaults.get("service_tier")


def _is_known(deployment: Deployment, asked: object) -> bool:
    return is_priced(asked, deployment.prices.tier_names)
