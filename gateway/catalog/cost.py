"""The cost law: what a call can cost at worst, what it did cost, and the token limit that makes the first one true.

Pure functions of integers. Sums are exact in femto-USD and rounded up to nano-USD once, at the end.

    worst(t)      = max over reachable tiers of  bound * dearest input + images + request + n * t * dearest output
    affordable(B) = the largest t with worst(t) <= B
    bill(usage)   = the tier of the whole prompt; cached, written, audio and reasoning tokens at their own prices
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.catalog.prices import Prices, Rates
from gateway.catalog.usage import PartialUsage, ReportedUsage, Usage, UsageFault, UsageSource
from gateway.money import FEMTOUSD_PER_NANOUSD, MAX_NANOUSD, nanousd_from_femtousd

UNLIMITED_TOKENS = 10**9
"""What any budget affords of a free answer."""

PLAUSIBLE_PROMPT_TOKENS = 2_000_000
PLAUSIBLE_OUTPUT_TOKENS = 200_000
"""Beyond both the hold and one of these a report is a fault, not the bill of a provider that overran its limit."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to settle a hold at. `alarm` names what an operator must look at: "implausible_usage" or "overage".

    `usage` is what the amount was computed from, reported or estimated.
    """

    amount_nanousd: int
    usage_source: UsageSource
    usage: Usage
    alarm: str | None = None

    @property
    def output_tokens(self) -> int:
        return self.usage.output_tokens


class CostBounds:
    """What a call of one kind can cost at worst, as a function of its answers' length.

    `prompt_tokens_bound`: its prompt has at most that many tokens; `n` answers; `audio`: in either direction. Made once
    per call and asked several times: worst(t) and affordable(budget) are exact inverses.
    """

    __slots__ = ("_lines",)

    def __init__(
        self, prices: Prices, prompt_tokens_bound: int, *, n: int = 1, images: int = 0, audio: bool = False
    ) -> None:
        # (femto-USD of all but the answers, femto-USD per token of every answer) in each reachable tier.
        self._lines = [
            (_fixed_femtousd(rates, prompt_tokens_bound, images, audio), n * _output_femtousd(rates, audio))
            for rates in prices.reachable(prompt_tokens_bound)
        ]

    def worst_nanousd(self, max_output_tokens: int) -> int:
        """The most that it can cost when every answer has at most `max_output_tokens`."""
        return nanousd_from_femtousd(max([fixed + max_output_tokens * per_token for fixed, per_token in self._lines]))

    def affordable_output_tokens(self, budget_nanousd: int) -> int:
        """The largest `max_output_tokens` whose worst case fits `budget_nanousd`; 0 also when not even the prompt fits,
        UNLIMITED_TOKENS when answers are free."""
        budget_femtousd = budget_nanousd * FEMTOUSD_PER_NANOUSD
        tokens = UNLIMITED_TOKENS
        for fixed, per_token in self._lines:
            if budget_femtousd < fixed:
                return 0
            if per_token:
                tokens = min(tokens, (budget_femtousd - fixed) // per_token)
        return tokens


def worst_case_nanousd(
    prices: Prices,
    prompt_tokens_bound: int,
    max_output_tokens: int,
    *,
    n: int = 1,
    images: int = 0,
    audio: bool = False,
) -> int:
    """`CostBounds.worst_nanousd`, for who asks once."""
    return CostBounds(prices, prompt_tokens_bound, n=n, images=images, audio=audio).worst_nanousd(max_output_tokens)


def prompt_cost_nanousd(prices: Prices, prompt_tokens: int, *, cached_tokens: int = 0, images: int = 0) -> int:
    """What the prompt alone costs: the least that a dispatched call is charged."""
    return bill_nanousd(prices, Usage(prompt_tokens, 0, cached_tokens=min(cached_tokens, prompt_tokens)), images=images)


def bill_nanousd(prices: Prices, usage: Usage, *, images: int = 0) -> int:
    """The invoice for `usage`, at the tier that the whole prompt falls into."""
    return nanousd_from_femtousd(bill_femtousd(prices.at(usage.prompt_tokens), usage, images))


def bill_femtousd(rates: Rates, usage: Usage, images: int = 0) -> int:
    """The invoice before rounding. Every token is paid once: the special counts are parts of the totals."""
    written_1h = usage.cache_write_1h_tokens
    written = usage.cache_write_tokens - written_1h
    uncached = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
    audio_in = min(usage.audio_input_tokens, uncached)
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    audio_out = min(usage.audio_output_tokens, usage.output_tokens - reasoning)
    return (
        (uncached - audio_in) * rates.input_femtousd
        + audio_in * rates.audio_input_femtousd
        + usage.cached_tokens * rates.cached_input_femtousd
        + written * rates.cache_write_femtousd
        + written_1h * rates.cache_write_1h_femtousd
        + (usage.output_tokens - reasoning - audio_out) * rates.output_femtousd
        + reasoning * rates.reasoning_femtousd
        + audio_out * rates.audio_output_femtousd
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
) -> Settlement:
    """What a dispatched call is settled at; `prompt_tokens` and `output_tokens` are our own estimate of it.

    missing usage, or a half of it      the bill of the estimate, never above the hold; marked (missing is not zero)
    zero                                zero tokens, as the provider says
    negative, contradictory, absurd     the whole hold, with an alarm
    more than the hold                  the true bill, with an alarm: the ledger posts the excess as overage
    """
    own = Usage(prompt_tokens, output_tokens)
    if isinstance(reported, PartialUsage):
        own, reported = reported.completed(prompt_tokens, output_tokens), None
    if reported is None:
        amount = min(bill_nanousd(prices, own, images=images), held_nanousd)
        return Settlement(amount, "estimated", own)
    if isinstance(reported, UsageFault):
        return Settlement(held_nanousd, "estimated", own, "implausible_usage")
    amount = bill_nanousd(prices, reported, images=images)
    if amount <= held_nanousd:
        return Settlement(amount, "reported", reported)
    if reported.prompt_tokens > PLAUSIBLE_PROMPT_TOKENS or reported.output_tokens > PLAUSIBLE_OUTPUT_TOKENS:
        return Settlement(held_nanousd, "estimated", own, "implausible_usage")
    return Settlement(min(amount, MAX_NANOUSD), "reported", reported, "overage")


def estimated(amount_nanousd: int, *, prompt_tokens: int = 0, output_tokens: int = 0) -> Settlement:
    """A settlement without any report: a call that was cut before it could tell."""
    return Settlement(amount_nanousd, "estimated", Usage(prompt_tokens, output_tokens))


def _fixed_femtousd(rates: Rates, prompt_tokens_bound: int, images: int, audio: bool) -> int:
    """Everything but the answer, at worst."""
    per_token_femtousd = rates.dearest_input_femtousd
    if audio:
        per_token_femtousd = max(per_token_femtousd, rates.audio_input_femtousd)
    return prompt_tokens_bound * per_token_femtousd + images * rates.image_femtousd + rates.request_femtousd


def _output_femtousd(rates: Rates, audio: bool) -> int:
    dearest_femtousd = rates.dearest_output_femtousd
    return max(dearest_femtousd, rates.audio_output_femtousd) if audio else dearest_femtousd
