"""Estimates of each model for one turn: hold, token limit, cost quantiles.

A hold is the worst-case cost of a call whose `max_tokens` is clamped to it. To leave money for parallel turns, it
covers the client's own limit if that is small, else the likely length of the response or a share of what is left,
whichever is more (BerriAI/litellm#27509, #38647 show the effect of a 16k worst case).

If the client sets no limit and the money covers the model's longest response, nothing is clamped, and a provider that
needs no `max_tokens` gets none. A limit of the gateway's own leaves a margin in the context window, because the
provider's tokenizer may count more than ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from msgspec import Struct, structs

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.call_cost import call_bounds, expected_prices
from gateway.catalog.hosted_tools import NO_TOOLS
from gateway.catalog.models import Model
from gateway.catalog.prices import Rates
from gateway.catalog.tokens import PromptTokens
from gateway.dialects.request import ChatRequest
from gateway.money import FEMTOUSD_PER_USD, NANOUSD_PER_USD, nanousd_from_femtousd
from gateway.providers.cooldown import Breaker
from gateway.routing.guard import Eligibility
from gateway.routing.session import SessionMemory, matching_prefix
from gateway.unchecked import objects_in
from policy.mdp import COST_LEVELS, NOT_AFFORDABLE, CandidateView

LeastAnswer = Literal["any", "short", "whole"]
"""The shortest limit of an answer worth paying for: LEAST_OUTPUT_TOKENS, LEAST_LIKELY_TOKENS, nine answers in ten."""
CacheMark = Literal["", "5m", "1h"]
"""The lifetime that a client asks for with `cache_control`."""
HOUR: Literal["1h"] = "1h"
HOUR_S = 3_600.0
LEAST_OUTPUT_TOKENS = 16
"""Below this limit a response is useless, so the model counts as unaffordable."""
UNCERTAIN = "it may lack what the request needs"
"""The reason that excludes a model while another serves that certainly has it."""
LEAST_LIKELY_TOKENS = 256
MARGIN_TOKENS = 64
MARGIN_SHARE = 3
"""A foreign tokenizer may count a third more than ours, and what its template adds."""
LEAST_ROOM_SHARE = 8
"""Near the end of the window, our limit is still an eighth of what our own count leaves."""
LEVEL_90 = COST_LEVELS.index(0.9)
"""Index of the length within which nine answers of ten end."""
_LEVEL_98 = COST_LEVELS.index(0.98)
_LEVEL_50 = COST_LEVELS.index(0.5)
HOLD_SHARE = 4
"""A turn without concurrent ones may hold a quarter of what is left, however long the response."""
CONTENDED_HOLD_SHARE = 16
"""Share with concurrent turns, which have all read the same balance: four quarters would leave nothing for a fifth.
With more concurrent turns each holds half of an equal part."""


class Estimate(Struct, frozen=True):
    """One model for this turn. `clamped`: `max_tokens` is lower than requested.

    `limited`: the client, the operator or the money needs the limit. Otherwise the hold covers the model's longest
    response, and only a provider that requires a limit gets one.
    """

    option: Eligibility
    view: CandidateView
    hold_nanousd: int
    max_tokens: int
    clamped: bool
    limited: bool
    likely_nanousd: int
    """Cost with the median response: the sweeper's posting when a non-streamed call dies."""
    matching_tokens: int = 0
    """Prompt tokens that this model has seen before, of which `view.warm_tokens` are expected to be cached."""
    matching_age_s: float = 0.0
    mark: CacheMark = ""
    tool_calls: int = 0
    """Calls of tools that the provider runs, which the hold covers."""

    def level_of(self, bill_nanousd: int) -> float:
        """The lowest of COST_LEVELS whose predicted cost covers the bill; 1 when none does."""
        # A bill is rounded up to whole nano-USD, a prediction is not.
        index = bisect_left(self.view.cost_quantiles_usd, (bill_nanousd - 1) / NANOUSD_PER_USD)
        return COST_LEVELS[index] if index < len(COST_LEVELS) else 1.0


class TurnTerms(Struct, frozen=True):
    """Facts of a turn that are the same for every model: request, money, concurrent turns."""

    chat: ChatRequest
    memory: SessionMemory
    prompt: PromptTokens
    at_ms: int
    available_nanousd: int
    over_budget: Literal["degrade", "refuse"]
    shared_nanousd: int | None = None
    """The amount of which this turn may hold a share; None: `available_nanousd`."""
    contended: bool = False
    """True if concurrent turns hold money of the same session or tenant."""
    patient: bool = False
    """True if the turn can wait for that money, so that no model may serve with a truncated answer."""
    company: int = 1
    """Number of turns of the session that are being started, including this one."""
    mark: CacheMark = ""
    """What the client marks for its provider's cache, and pays for writing."""
    least: LeastAnswer = "any"
    growth_femtousd: int = 0
    """What a token beyond that length costs besides its price, on a later turn that must be paid too."""


def estimate(
    option: Eligibility,
    terms: TurnTerms,
    forecast: OutputForecast,
    breaker: Breaker,
    answer_tokens: Sequence[float] | None = None,
) -> Estimate:
    """Estimate cost and hold of one candidate under the current balances.

    `answer_tokens`: quantiles of the answer's length predicted from the turn, in place of the model's distribution;
    they may raise a hold, but never lower it.
    """
    model, chat, prompt_tokens = option.model, terms.chat, terms.prompt.estimate
    lengths = _lengths(model, terms, forecast, answer_tokens)
    hold, tool_calls = _hold_with_tools(model, terms, lengths)
    why_not = option.why_not or ("" if hold.fits(terms.available_nanousd) else NOT_AFFORDABLE)
    matching, age_s = matching_prefix(terms.memory, model.name, chat.digests, terms.at_ms)
    matching = min(matching, prompt_tokens)
    warm = _warm_tokens(model, terms.mark, forecast, matching, age_s)
    rates = expected_prices(model, chat.params).at(prompt_tokens)
    fresh_femtousd = _fresh_femtousd(rates, terms.mark)
    costs = _costs_usd(rates, terms, fresh_femtousd, warm, lengths.quantiles)
    failure_rate, latency_s = breaker.recent(model.deployments)
    view = CandidateView(
        name=model.action,
        input_usd_per_mtok=fresh_femtousd / 1e9,
        cached_input_usd_per_mtok=rates.cached_input_femtousd / 1e9,
        output_usd_per_mtok=rates.output_femtousd / 1e9,
        quality_prior=model.quality_prior,
        context_limit_tokens=model.max_input_tokens,
        input_tokens=prompt_tokens,
        warm_tokens=warm,
        output_tokens_mean=sum(lengths.quantiles) / len(lengths.quantiles),
        cost_quantiles_usd=costs,
        cost_max_usd=hold.nanousd / NANOUSD_PER_USD,
        served_last=terms.memory.last_model == model.name,
        failure_rate=failure_rate,
        latency_s=latency_s,
        feasible=not why_not,
        why_not=why_not,
        effort=model.effort,
    )
    return Estimate(
        option=option,
        view=view,
        hold_nanousd=hold.nanousd,
        max_tokens=hold.max_tokens,
        clamped=hold.limited and hold.max_tokens < lengths.most,
        limited=hold.limited,
        likely_nanousd=min(hold.nanousd, math.ceil(costs[_LEVEL_50] * NANOUSD_PER_USD)),
        matching_tokens=matching,
        matching_age_s=age_s,
        mark=terms.mark,
        tool_calls=tool_calls,
    )


class _Lengths(NamedTuple):
    """Lengths of an answer in tokens, all within the context window."""

    quantiles: Sequence[float]
    most: int
    """The client's limit, the operator's or the model's, whichever is least."""
    limit: int
    """`most` as far as it surely fits into the window."""
    longest: int | None
    """The longest answer without a limit; None: a limit is needed."""
    likely: int
    least: int
    """The shortest limit worth paying for."""


class _Hold(NamedTuple):
    """A hold and its limit; `limited` as in Estimate, no tokens if the model is unaffordable."""

    limited: bool
    max_tokens: int
    nanousd: int

    def fits(self, available_nanousd: int) -> bool:
        """True if the money covers it."""
        return self.max_tokens > 0 and self.nanousd <= available_nanousd


def _lengths(
    model: Model, terms: TurnTerms, forecast: OutputForecast, answer_tokens: Sequence[float] | None
) -> _Lengths:
    chat, prompt_tokens = terms.chat, terms.prompt.estimate
    asked = chat.max_tokens or model.default_max_tokens
    most = min(model.max_output_tokens, asked or model.unasked_tokens or model.max_output_tokens)
    room = max(model.max_input_tokens - prompt_tokens, LEAST_OUTPUT_TOKENS)
    # Send the requested limit unchanged while it fits by our own count.
    limit = most if asked is not None and most <= room else min(most, _safe_room(room, prompt_tokens))
    bound = min(most, room)
    quantiles = forecast.quantiles(model.action, bound, model.effort)
    likely_tokens, whole_tokens = quantiles[_LEVEL_98], quantiles[LEVEL_90]
    if answer_tokens is not None:
        quantiles = tuple([min(tokens, float(bound)) for tokens in answer_tokens])
        likely_tokens, whole_tokens = max(likely_tokens, quantiles[_LEVEL_98]), max(whole_tokens, quantiles[LEVEL_90])
    least = LEAST_OUTPUT_TOKENS if terms.least == "any" else LEAST_LIKELY_TOKENS
    return _Lengths(
        quantiles=quantiles,
        most=most,
        limit=limit,
        longest=model.longest_answer_tokens if asked is None and chat.mode == "chat" else None,
        likely=min(limit, max(math.ceil(likely_tokens), LEAST_LIKELY_TOKENS)),
        least=min(limit, max(least, math.ceil(whole_tokens)) if terms.least == "whole" else least),
    )


def _hold_with_tools(model: Model, terms: TurnTerms, lengths: _Lengths) -> tuple[_Hold, int]:
    """The hold, and the calls of hosted tools that it covers: fewer than asked where the money covers no more."""
    chat = terms.chat
    asked_calls = chat.forwarded.tools.asked_calls if chat.forwarded and is_forwarded(chat, model) else 0
    for tool_calls in range(asked_calls, 0, -1):
        hold = _hold(model, terms, lengths, tool_calls)
        if tool_calls == 1 or hold.fits(terms.available_nanousd):
            return hold, tool_calls
    return _hold(model, terms, lengths, 0), 0


def _warm_tokens(model: Model, mark: CacheMark, forecast: OutputForecast, matching: int, age_s: float) -> int:
    """Tokens of the matching prefix that are expected to be cached."""
    if not matching:
        return 0
    hour_long = mark == HOUR and model.cache.ttl_s is None
    cache = replace(model.cache, ttl_s=HOUR_S) if hour_long else model.cache
    return forecast.cache.warm_tokens(model.name, matching, age_s, cache, marked=bool(mark))


def _costs_usd(
    rates: Rates, terms: TurnTerms, fresh_femtousd: int, warm_tokens: int, lengths: Sequence[float]
) -> tuple[float, ...]:
    """The cost with each length of the answer."""
    fresh_tokens = terms.prompt.estimate - warm_tokens
    cached_femtousd = warm_tokens * rates.cached_input_femtousd
    prompt_femtousd = float(fresh_tokens * fresh_femtousd + cached_femtousd + rates.request_femtousd)
    output_femtousd = float(rates.output_femtousd) * terms.chat.n
    return tuple([(prompt_femtousd + output_femtousd * tokens) / FEMTOUSD_PER_USD for tokens in lengths])


def without_uncertain(estimates: Sequence[Estimate]) -> list[Estimate]:
    """The estimates for a turn that a certain model can serve: uncertain ones are excluded."""
    return [
        e
        if e.option.certain or not e.option.capable
        else structs.replace(e, view=structs.replace(e.view, feasible=False, why_not=UNCERTAIN))
        for e in estimates
    ]


def is_forwarded(chat: ChatRequest, model: Model) -> bool:
    """True if the request goes to this model in its own dialect.

    One of Messages that needs no hosted tool may still be translated, as `gateway.providers.claude_forms` says.
    """
    forwarded = chat.forwarded
    if forwarded is None or not forwarded.needs <= model.capabilities:
        return False
    if forwarded.required or forwarded.api == "messages_api" or model.own_api_only or _needs_own_api(chat, model):
        return True
    return not forwarded.plain and all(deployment.api_stated for deployment in model.deployments)


def _needs_own_api(chat: ChatRequest, model: Model) -> bool:
    """True for functions and reasoning, where chat completions have one of them at a time."""
    if not all(deployment.functions_in_own_api for deployment in model.deployments):
        return False
    asked = chat.params.get("reasoning_effort") or model.effort
    efforts = [asked or deployment.request_defaults.get("reasoning_effort") for deployment in model.deployments]
    reasons = all(
        effort != "none" and (effort or deployment.api_stated)
        for effort, deployment in zip(efforts, model.deployments, strict=True)
    )
    return reasons and any(tool["type"] == "function" for tool in chat.params.get("tools") or ())


def _safe_room(room: int, prompt_tokens: int) -> int:
    """The gateway's own limit when, by our count, the prompt leaves `room` tokens."""
    margin = prompt_tokens // MARGIN_SHARE + MARGIN_TOKENS
    return max(room - margin, room // LEAST_ROOM_SHARE, LEAST_OUTPUT_TOKENS)


def _hold(model: Model, terms: TurnTerms, lengths: _Lengths, tool_calls: int) -> _Hold:
    """The hold of a turn; it exceeds the available amount when the model is unaffordable."""
    _, _, limit, longest, likely, least = lengths
    chat, available_nanousd, contended = terms.chat, terms.available_nanousd, terms.contended
    bounds = call_bounds(
        model, terms.prompt.bound, chat.params, chat.extras, n=chat.n, images=chat.images,
        audio=chat.has_sound, tools=chat.forwarded.tools if chat.forwarded else NO_TOOLS,
        tool_calls=tool_calls,
    )  # fmt: skip
    worst = bounds.worst_nanousd
    if growth := terms.growth_femtousd:
        beside_nanousd = nanousd_from_femtousd(least * growth)
        with_growth = bounds.affordable_output_tokens(available_nanousd + beside_nanousd, growth)
        limit, likely = min(limit, max(least, with_growth)), min(likely, max(least, with_growth))
        longest = longest if longest is not None and longest <= with_growth else None

    def affordable(nanousd: int) -> int:
        return min(limit, bounds.affordable_output_tokens(nanousd))

    needed = worst(likely)
    share = max(CONTENDED_HOLD_SHARE, 2 * terms.company) if contended or terms.company > 1 else HOLD_SHARE
    shared_nanousd = available_nanousd if terms.shared_nanousd is None else terms.shared_nanousd
    most = max(needed, shared_nanousd // share)
    if longest is not None and (unlimited := worst(longest)) <= min(most, available_nanousd):
        return _Hold(False, limit, unlimited)
    wanted = worst(limit)
    target = min(wanted, most)
    if target <= available_nanousd:
        tokens = limit if target == wanted else affordable(target)
        return _Hold(True, tokens, worst(tokens))
    if contended:  # held money returns, so accept a very short answer only when the money is spent
        least = likely if terms.patient else max(least, min(likely, LEAST_LIKELY_TOKENS))
    tokens = affordable(available_nanousd)
    if contended:
        # Parallel turns share the rest of a session: each takes half of what is left.
        tokens = max(affordable(available_nanousd // 2), min(tokens, least))
    if terms.over_budget == "refuse" or tokens < least:
        return _Hold(True, 0, worst(least if terms.over_budget == "degrade" else likely))
    return _Hold(True, tokens, worst(tokens))


def cache_mark(chat: ChatRequest) -> CacheMark:
    """The longest `cache_control` among the messages; "" if the client marks nothing."""
    found: CacheMark = ""
    for message in chat.messages:
        parts = objects_in(message.get("content"))
        for mark in (part["cache_control"] for part in (message, *parts) if "cache_control" in part):
            if isinstance(mark, dict) and mark.get("ttl") == HOUR:
                return HOUR
            found = "5m"
    return found


def _fresh_femtousd(rates: Rates, mark: CacheMark) -> int:
    """Price of a prompt token that is not cached; what a client marks is written, at the price of writing."""
    if not mark:
        return rates.input_femtousd
    return rates.cache_write_1h_femtousd if mark == HOUR else rates.cache_write_femtousd
