"""Cost of a call: worst case, actual bill, and the token limit that enforces the worst case.

Pure functions of integers. Sums are exact in femto-USD and rounded up to nano-USD once, at the end.

    worst(t)      = max over reachable tiers of  bound * max input price + images + request + n * t * max output price
    affordable(B) = the largest t with worst(t) <= B
    bill(usage)   = the tier of the whole prompt; cached, written, audio and reasoning tokens at their own prices
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.catalog.prices import Prices, Rates
from gateway.catalog.usage import PartialUsage, ReportedUsage, Usage, UsageFault, UsageSource
from gateway.money import FEMTOUSD_PER_NANOUSD, MAX_NANOUSD, nanousd_from_femtousd

UNLIMITED_TOKENS = 10**9
"""Affordable output of a free model, at any budget."""

PLAUSIBLE_PROMPT_TOKENS = 2_000_000
PLAUSIBLE_OUTPUT_TOKENS = 200_000
"""A report above the hold and above one of these is an error, not a provider that overran its limit."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The amount a hold is settled at, and the reported or estimated usage behind it.

    `alarm` names a case for the operator: "implausible_usage" or "overage".
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

    The prompt has at most `prompt_tokens_bound` tokens, the call `n` answers; `audio` covers both directions. Made
    once per call and queried several times: worst(t) and affordable(budget) are exact inverses.
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
        """Highest possible cost when every answer has at most `max_output_tokens`."""
        return nanousd_from_femtousd(max([fixed + max_output_tokens * per_token for fixed, per_token in self._lines]))

    def affordable_output_tokens(self, budget_nanousd: int) -> int:
        """Largest `max_output_tokens` whose worst case fits the budget.

        0 also when not even the prompt fits; UNLIMITED_TOKENS when answers are free.
        """
        budget_femtousd = budget_nanousd * FEMTOUSD_PER_NANOUSD
        tokens = UNLIMITED_TOKENS
        for fixed, per_token in self._lines:
            if budget_femtousd < fixed:
                return 0
            if per_token:
                tokens = min(tokens, (budget_femtousd - fixed) // per_token)
        return tokens


def bill_nanousd(prices: Prices, usage: Usage, *, images: int = 0) -> int:
    """The bill for `usage`, at the tier that the whole prompt falls into."""
    return nanousd_from_femtousd(bill_femtousd(prices.at(usage.prompt_tokens), usage, images))


def bill_femtousd(rates: Rates, usage: Usage, images: int = 0) -> int:
    """The bill before rounding; special counts are part of the totals and paid once."""
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
    """Settle a dispatched call; `prompt_tokens` and `output_tokens` are our own estimate.

    missing usage, or a half of it        the bill of the estimate, never above the hold; marked (missing is not zero)
    zero                                  zero tokens, as reported
    negative, contradictory, implausible  the whole hold, with an alarm
    more than the hold                    the actual bill, with an alarm: the ledger posts the excess as overage
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
    """A settlement from our own estimate, for a call cut off before it reported usage."""
    return Settlement(amount_nanousd, "estimated", Usage(prompt_tokens, output_tokens))


def _fixed_femtousd(rates: Rates, prompt_tokens_bound: int, images: int, audio: bool) -> int:
    """Worst-case cost of everything but the answer."""
    per_token_femtousd = rates.max_input_femtousd
    if audio:
        per_token_femtousd = max(per_token_femtousd, rates.audio_input_femtousd)
    return prompt_tokens_bound * per_token_femtousd + images * rates.image_femtousd + rates.request_femtousd


def _output_femtousd(rates: Rates, audio: bool) -> int:
    per_token_femtousd = rates.max_output_femtousd
    return max(per_token_femtousd, rates.audio_output_femtousd) if audio else per_token_femtousd
