"""Estimates of each model for one turn: hold, token limit, cost quantiles.

A hold is the worst-case cost of a call whose `max_tokens` is clamped to it. To leave money for parallel turns, it
covers the client's own limit if that is small, else the likely length of the response or a share of what is left,
whichever is more (BerriAI/litellm#27509, #38647 show the effect of a 16k worst case).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.catalog import cost
from gateway.catalog.answer_length import OutputForecast
from gateway.dialects.request import ChatRequest
from gateway.money import FEMTOUSD_PER_USD, NANOUSD_PER_USD
from gateway.providers.cooldown import Breaker
from gateway.routing.guard import Eligibility
from gateway.routing.session import SessionMemory, warm_tokens
from policy.mdp import COST_LEVELS, CandidateView

LEAST_OUTPUT_TOKENS = 16
"""Below this limit a response is useless, so the model counts as unaffordable."""
LEAST_LIKELY_TOKENS = 256
_LIKELY = COST_LEVELS.index(0.98)
HOLD_SHARE = 4
"""A turn without concurrent ones may hold a quarter of what is left, however long the response."""
CONTENDED_HOLD_SHARE = 16
"""Share with concurrent turns, which have all read the same balance: four quarters would leave nothing for a fifth.
With more concurrent turns each holds half of an equal part."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One model for this turn. `clamped`: `max_tokens` is lower than requested."""

    option: Eligibility
    view: CandidateView
    hold_nanousd: int
    max_tokens: int
    clamped: bool
    prompt_nanousd: int
    """Cost of the prompt alone: the least charge of an aborted call."""
    likely_nanousd: int
    """Cost with the median response: the sweeper's posting when a non-streamed call dies."""


def estimate(
    option: Eligibility,
    chat: ChatRequest,
    memory: SessionMemory,
    forecast: OutputForecast,
    breaker: Breaker,
    *,
    prompt_tokens: int,
    prompt_tokens_bound: int,
    available_nanousd: int,
    over_budget: Literal["degrade", "refuse"],
    at_ms: int,
    contended: bool = False,
    patient: bool = False,
    company: int = 1,
) -> Estimate:
    """Estimate cost and hold of one candidate under the current balances.

    `contended`: concurrent turns hold money of the same session or tenant. `patient`: this turn can wait for that
    money, so models that could not answer at their likely length are excluded. `company`: the number of turns of the
    session that are being started, including this one.
    """
    model = option.model
    room = max(model.max_input_tokens - prompt_tokens, LEAST_OUTPUT_TOKENS)
    limit = min(model.max_output_tokens, chat.max_tokens or model.max_output_tokens, room)
    quantiles = forecast.quantiles(model.name, limit)
    likely = min(limit, max(math.ceil(quantiles[_LIKELY]), LEAST_LIKELY_TOKENS))
    max_tokens, hold = _hold(
        option, chat, limit, likely, prompt_tokens_bound, available_nanousd, over_budget, contended, patient,
        company,
    )  # fmt: skip
    warm = min(warm_tokens(memory, model.name, chat.messages, at_ms), prompt_tokens)
    prompt_femto, output_femto = _linear_cost(option, prompt_tokens, warm)
    why_not = option.why_not or ("" if hold <= available_nanousd and max_tokens else "not affordable")
    output_femto *= chat.n
    costs = tuple([(prompt_femto + output_femto * tokens) / FEMTOUSD_PER_USD for tokens in quantiles])
    rates = model.prices.at(prompt_tokens)
    view = CandidateView(
        name=model.name,
        input_usd_per_mtok=rates.input_femtousd / 1e9,
        cached_input_usd_per_mtok=rates.cached_input_femtousd / 1e9,
        output_usd_per_mtok=rates.output_femtousd / 1e9,
        quality_prior=model.quality_prior,
        context_limit_tokens=model.max_input_tokens,
        input_tokens=prompt_tokens,
        warm_tokens=warm,
        output_tokens_mean=sum(quantiles) / len(quantiles),
        cost_quantiles_usd=costs,
        cost_max_usd=hold / NANOUSD_PER_USD,
        served_last=memory.last_model == model.name,
        failure_rate=breaker.failure_rate(model.deployments),
        latency_s=breaker.latency_s(model.deployments),
        feasible=not why_not,
        why_not=why_not,
    )
    median = costs[COST_LEVELS.index(0.5)]
    return Estimate(
        option=option,
        view=view,
        hold_nanousd=hold,
        max_tokens=max_tokens,
        clamped=max_tokens < min(chat.max_tokens or model.max_output_tokens, model.max_output_tokens),
        prompt_nanousd=min(hold, math.ceil(prompt_femto / FEMTOUSD_PER_USD * NANOUSD_PER_USD)),
        likely_nanousd=min(hold, math.ceil(median * NANOUSD_PER_USD)),
    )


def available(balances: Sequence[int]) -> int:
    """The amount that a turn can spend: the least of the balances, never below zero."""
    return max(0, min(balances))


def _hold(
    option: Eligibility,
    chat: ChatRequest,
    limit: int,
    likely: int,
    prompt_tokens_bound: int,
    available_nanousd: int,
    over_budget: Literal["degrade", "refuse"],
    contended: bool,
    patient: bool,
    company: int,
) -> tuple[int, int]:
    """(max_tokens, hold); the hold exceeds the available amount when the model is unaffordable."""
    bounds = cost.CostBounds(
        option.model.prices, prompt_tokens_bound, n=chat.n, images=chat.images, audio="audio" in chat.capabilities
    )
    worst = bounds.worst_nanousd

    def affordable(nanousd: int) -> int:
        return min(limit, bounds.affordable_output_tokens(nanousd))

    wanted, needed = worst(limit), worst(likely)
    share = max(CONTENDED_HOLD_SHARE, 2 * company) if contended or company > 1 else HOLD_SHARE
    target = min(wanted, max(needed, available_nanousd // share))
    if target <= available_nanousd:
        tokens = limit if target == wanted else affordable(target)
        return tokens, worst(tokens)
    least = min(limit, LEAST_OUTPUT_TOKENS)
    if contended:  # what is held comes back: a stump of an answer is for money that is spent
        least = likely if patient else min(likely, LEAST_LIKELY_TOKENS)
    tokens = affordable(available_nanousd)
    if contended:
        # Parallel turns share the rest of a session: each takes half of what is left.
        tokens = max(affordable(available_nanousd // 2), min(tokens, least))
    if over_budget == "refuse" or tokens < least:
        return 0, worst(least if over_budget == "degrade" else likely)
    return tokens, worst(tokens)


def _linear_cost(option: Eligibility, prompt_tokens: int, warm: int) -> tuple[float, float]:
    """(femto-USD of the prompt with its cached part at the cached price, femto-USD per output token)."""
    rates = option.model.prices.at(prompt_tokens)
    prompt = (prompt_tokens - warm) * rates.input_femtousd + warm * rates.cached_input_femtousd + rates.request_femtousd
    return float(prompt), float(rates.output_femtousd)
