"""Cost of a call: worst case, actual bill, and the token limit that enforces the worst case.

Pure functions of integers. Sums are exact in femto-USD and rounded up to nano-USD once, at the end.

    worst(t)      = max over reachable tiers of  bound * max input price + images + request + n * t * max output price
    affordable(B) = the largest t with worst(t) <= B
    bill(usage)   = the tier of the whole prompt; cached, written, audio, image and reasoning tokens at their own
                    prices; several calls behind one answer each at its own model's; plus the fees of web searches
                    and other hosted tools
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct, structs

from gateway.catalog.hosted_tools import SEARCHES, STEPS, HostedCalls, steps_tokens
from gateway.catalog.prices import Prices, Rates
from gateway.catalog.service_tiers import reported_tier
from gateway.catalog.usage import PartialUsage, ReportedUsage, Usage, UsageSource
from gateway.catalog.web_search import NO_SEARCHES, SearchTerms
from gateway.money import FEMTOUSD_PER_NANOUSD, MAX_NANOUSD, nanousd_from_femtousd

UNLIMITED_TOKENS = 10**9
"""Affordable output of a free model, at any budget."""

PricesOf = Callable[[str], Prices | None]
"""Prices of another model of the same provider; None: unknown."""

PLAUSIBLE_PROMPT_TOKENS = 2_000_000
PLAUSIBLE_OUTPUT_TOKENS = 200_000
PLAUSIBLE_SEARCHES = 100
"""A report above the hold and above one of these is an error, not a provider that overran its limit."""


class Settlement(Struct, frozen=True):
    """The amount a hold is settled at, and the reported or estimated usage behind it.

    `alarm` names a case for the operator: "implausible_usage", "overage" or "unpriced_model".
    """

    amount_nanousd: int
    usage_source: UsageSource
    usage: Usage
    alarm: str | None = None

    @property
    def output_tokens(self) -> int:
        """Output tokens of the settled usage, reasoning included."""
        return self.usage.output_tokens


class CostBounds:
    """Worst-case cost of a call as a function of its answers' length.

    The prompt has at most `prompt_tokens_bound` tokens, the call `n` answers; `audio` covers both directions. Of the
    standard tier and `service_tiers` the most expensive counts. Made once per call and queried several times:
    worst(t) and affordable(budget) are exact inverses.
    """

    __slots__ = ("_lines",)

    def __init__(
        self,
        prices: Prices,
        prompt_tokens_bound: int,
        *,
        n: int = 1,
        images: int = 0,
        audio: bool = False,
        service_tiers: Iterable[str] = (),
        search: SearchTerms = NO_SEARCHES,
        hosted: HostedCalls | None = None,
    ) -> None:
        bound, fee, reasoning = prompt_tokens_bound, 0, 0
        if search is not NO_SEARCHES:
            bound += search.result_tokens
            fee = search.fee_femtousd(prices, search.most) + search.citation_tokens * prices.citation_femtousd
            reasoning = search.reasoning_tokens
        again, longest = 0, bound
        if hosted is not None:
            again = hosted.most
            bound = steps_tokens(prompt_tokens_bound, again)
            longest = bound + again * hosted.answer_tokens
            fee += hosted.most_femtousd
        # (femto-USD of all but the answers, femto-USD per token of every answer) in each reachable tier.
        self._lines = [
            (
                fee + _fixed_femtousd(rates, bound, images, audio) + reasoning * rates.reasoning_femtousd,
                n * _output_femtousd(rates, audio) + again * _input_femtousd(rates, images, audio),
            )
            for tiered in (prices, *map(prices.of, service_tiers))
            for rates in tiered.reachable(longest)
        ]

    def worst_nanousd(self, max_output_tokens: int) -> int:
        """Highest possible cost when every answer has at most `max_output_tokens`."""
        return nanousd_from_femtousd(max([fixed + max_output_tokens * per_token for fixed, per_token in self._lines]))

    def affordable_output_tokens(self, budget_nanousd: int, beside_femtousd: int = 0) -> int:
        """Largest `max_output_tokens` whose worst case fits the budget.

        `beside_femtousd`: what each token costs besides. 0 also when not even the prompt fits; UNLIMITED_TOKENS when
        answers are free.
        """
        budget_femtousd = budget_nanousd * FEMTOUSD_PER_NANOUSD
        tokens = UNLIMITED_TOKENS
        for fixed, per_token in self._lines:
            if budget_femtousd < fixed:
                return 0
            if per_token + beside_femtousd:
                tokens = min(tokens, (budget_femtousd - fixed) // (per_token + beside_femtousd))
        return tokens


def bill_nanousd(
    prices: Prices,
    usage: Usage,
    *,
    images: int = 0,
    search: SearchTerms = NO_SEARCHES,
    prices_of: PricesOf = lambda model: None,
    hosted: HostedCalls | None = None,
) -> int:
    """The bill for `usage`, at the service tier and the price tier that it falls into.

    Of several calls behind one answer each is billed at its own model's prices; a model without known prices at
    `prices`.
    """
    if hosted is None:
        femtousd = search.fee_femtousd(prices, usage.web_searches)
    else:
        femtousd = hosted.fee_femtousd(usage.web_searches, usage.hosted_calls)
    femtousd += search.maps_fee_femtousd(prices, usage.maps_queries) + usage.citation_tokens * prices.citation_femtousd
    if not usage.parts:
        femtousd += bill_femtousd(_tier_of(prices, usage, usage).at(usage.prompt_tokens), usage, images)
    for number, part in enumerate(usage.parts):
        own = (None if part.model is None else prices_of(part.model)) or prices
        rates = _tier_of(own, usage, part.usage).at(part.usage.prompt_tokens)
        femtousd += bill_femtousd(rates, part.usage, images if number == 0 else 0)
    return nanousd_from_femtousd(femtousd)


def _tier_of(prices: Prices, usage: Usage, part: Usage) -> Prices:
    """The prices of the tier that one of a usage's calls falls into."""
    return prices.of(reported_tier(usage.service_tier, part.premiums or usage.premiums, prices.tier_names))


def bill_femtousd(rates: Rates, usage: Usage, images: int = 0) -> int:
    """The bill before rounding; special counts are part of the totals and paid once."""
    written_1h = usage.cache_write_1h_tokens
    written = usage.cache_write_tokens - written_1h
    uncached = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
    cached_audio = min(usage.cached_audio_tokens, usage.cached_tokens)
    audio_in = min(max(usage.audio_input_tokens - cached_audio, 0), uncached)
    image_in = min(usage.image_input_tokens, uncached - audio_in)
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    audio_out = min(usage.audio_output_tokens, usage.output_tokens - reasoning)
    image_out = min(usage.image_output_tokens, usage.output_tokens - reasoning - audio_out)
    return (
        (uncached - audio_in - image_in) * rates.input_femtousd
        + audio_in * rates.audio_input_femtousd
        + image_in * rates.image_input_femtousd
        + (usage.cached_tokens - cached_audio) * rates.cached_input_femtousd
        + cached_audio * rates.cached_audio_femtousd
        + written * rates.cache_write_femtousd
        + written_1h * rates.cache_write_1h_femtousd
        + (usage.output_tokens - reasoning - audio_out - image_out) * rates.output_femtousd
        + reasoning * rates.reasoning_femtousd
        + audio_out * rates.audio_output_femtousd
        + image_out * rates.image_output_femtousd
        + images * rates.image_femtousd
        + rates.request_femtousd
    )


def settlement(
    prices: Prices,
    reported: ReportedUsage,
    *,
    held_nanousd: int,
    prompt_tokens: int,
    output_tokens: int,
    images: int = 0,
    sent_tier: str | None = None,
    search: SearchTerms = NO_SEARCHES,
    prices_of: PricesOf = lambda model: None,
    hosted: HostedCalls | None = None,
) -> Settlement:
    """Settle a dispatched call; `prompt_tokens` and `output_tokens` are our own estimate.

    missing usage, or a half of it        the bill of the estimate, never above the hold; marked (missing is not zero);
                                          hosted tools: the calls heard so far, else one of every kind with a fee
    a count that cannot be                as a missing one, with an alarm
    more than the hold                    the actual bill, with an alarm: the ledger posts the excess as overage
    calls of a model without prices       at this model's prices, with an alarm

    The reported service tier counts; without a report, `sent_tier`.
    """

    def bill(usage: Usage) -> int:
        return bill_nanousd(prices, usage, images=images, search=search, prices_of=prices_of, hosted=hosted)

    def estimate(alarm: str | None) -> Settlement:
        own = Usage(prompt_tokens, output_tokens, service_tier=sent_tier, web_searches=search.unreported)
        if isinstance(reported, PartialUsage) and _plausible(reported.known):
            own = _dispatched(reported.completed(prompt_tokens, output_tokens), sent_tier, search.unreported)
        if hosted is not None:
            own = _with_calls(own, hosted)
        return Settlement(min(bill(own), held_nanousd), "estimated", own, alarm)

    if not isinstance(reported, Usage):
        faulty = reported is not None and (bool(reported.fault) or not _plausible(reported.known))
        return estimate("implausible_usage" if faulty else None)
    billed = _dispatched(reported, sent_tier, search.least)
    amount = bill(billed)
    if amount <= held_nanousd:
        known = all(part.model is None or prices_of(part.model) for part in billed.parts)
        return Settlement(amount, "reported", billed, None if known else "unpriced_model")
    if not _plausible(billed):
        return estimate("implausible_usage")
    return Settlement(min(amount, MAX_NANOUSD), "reported", billed, "overage")


def needs_own_count(reported: ReportedUsage) -> bool:
    """True unless a report alone decides the bill: our own count of the output may be needed."""
    return not isinstance(reported, Usage) or not _plausible(reported)


def _plausible(usage: Usage) -> bool:
    """True for counts that a provider that overran its limit could really bill."""
    calls = usage.web_searches + usage.maps_queries + sum(count for _, count in usage.hosted_calls)
    return calls <= PLAUSIBLE_SEARCHES and all(
        each.citation_tokens <= PLAUSIBLE_PROMPT_TOKENS
        and each.prompt_tokens <= PLAUSIBLE_PROMPT_TOKENS
        and each.output_tokens <= PLAUSIBLE_OUTPUT_TOKENS
        for each in (usage, *(part.usage for part in usage.parts))
    )


def _dispatched(usage: Usage, sent_tier: str | None, least_searches: int) -> Usage:
    """The usage with what is known of the call where the provider reports nothing."""
    if (usage.service_tier or not sent_tier) and usage.web_searches >= least_searches:
        return usage
    return structs.replace(
        usage,
        service_tier=usage.service_tier or sent_tier,
        web_searches=max(usage.web_searches, least_searches),
    )


def _with_calls(usage: Usage, hosted: HostedCalls) -> Usage:
    """An unreported usage with the calls of hosted tools that were heard, and the steps that they took."""
    heard = dict(usage.heard_calls)
    steps = heard.pop(STEPS, 0)
    counts = {**heard, **{kind: max(count, heard.get(kind, 0)) for kind, count in usage.hosted_calls}}
    if not (steps or counts or usage.web_searches):
        counts = dict(hosted.assumed)
    searches = max(usage.web_searches, sum(counts.pop(kind, 0) for kind in SEARCHES))
    steps = max(steps, searches + sum(counts.values()))
    return structs.replace(
        usage,
        prompt_tokens=steps_tokens(usage.prompt_tokens, steps),
        web_searches=searches,
        hosted_calls=tuple(counts.items()),
    )


def estimated(amount_nanousd: int) -> Settlement:
    """A settlement from our own estimate, for a call cut off before it reported usage."""
    return Settlement(amount_nanousd, "estimated", Usage(0, 0))


def _fixed_femtousd(rates: Rates, prompt_tokens_bound: int, images: int, audio: bool) -> int:
    """Worst-case cost of everything but the answer."""
    per_token_femtousd = _input_femtousd(rates, images, audio)
    return prompt_tokens_bound * per_token_femtousd + images * rates.image_femtousd + rates.request_femtousd


def _input_femtousd(rates: Rates, images: int, audio: bool) -> int:
    per_token_femtousd = rates.max_input_femtousd
    if audio:
        per_token_femtousd = max(per_token_femtousd, rates.audio_input_femtousd, rates.cached_audio_femtousd)
    if images:
        per_token_femtousd = max(per_token_femtousd, rates.image_input_femtousd)
    return per_token_femtousd


def _output_femtousd(rates: Rates, audio: bool) -> int:
    per_token_femtousd = rates.max_output_femtousd
    return max(per_token_femtousd, rates.audio_output_femtousd) if audio else per_token_femtousd
