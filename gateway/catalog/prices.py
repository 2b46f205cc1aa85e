"""The price list of one model: frozen integers of femto-USD (1e-15 USD) per unit.

A missing special price falls back to the base price of its direction: an uncached, untiered model needs only
`input_femtousd` and `output_femtousd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise

MAX_FEMTOUSD = 10**18
"""1,000 USD per unit: a higher price is a typing error (`money.femtousd_from_usd` has the same limit)."""


NO_SEARCH = (0, 0, 0)
"""Search fees of a model that cannot search, or not for money."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Complete prices of one call: per token, except `image` (each) and `request` (per call).

    `reasoning` prices the output tokens spent on reasoning, `cache_write_1h` a prompt cached for an hour,
    `cached_audio` audio read from the cache, `image_input` and `image_output` the tokens of images.
    """

    input_femtousd: int
    output_femtousd: int
    cached_input_femtousd: int
    cache_write_femtousd: int
    cache_write_1h_femtousd: int
    reasoning_femtousd: int
    audio_input_femtousd: int
    audio_output_femtousd: int
    cached_audio_femtousd: int
    image_input_femtousd: int
    image_output_femtousd: int
    image_femtousd: int
    request_femtousd: int

    max_input_femtousd: int = field(init=False, repr=False, compare=False)
    """Highest price of a prompt text token: a provider may write it to its cache unasked."""
    max_output_femtousd: int = field(init=False, repr=False, compare=False)
    """Highest price of an answer token, audio excluded."""

    def __post_init__(self) -> None:
        written = max(self.cache_write_femtousd, self.cache_write_1h_femtousd)
        highest_input = max(self.input_femtousd, self.cached_input_femtousd, written)
        highest_output = max(self.output_femtousd, self.reasoning_femtousd, self.image_output_femtousd)
        object.__setattr__(self, "max_input_femtousd", highest_input)
        object.__setattr__(self, "max_output_femtousd", highest_output)


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices of the *whole* call when its prompt is longer than `above_prompt_tokens`.

    The threshold counts cached tokens too. None keeps the price of the tier below.
    """

    above_prompt_tokens: int
    input_femtousd: int | None = None
    output_femtousd: int | None = None
    cached_input_femtousd: int | None = None
    cache_write_femtousd: int | None = None
    cache_write_1h_femtousd: int | None = None
    reasoning_femtousd: int | None = None
    audio_input_femtousd: int | None = None
    audio_output_femtousd: int | None = None
    cached_audio_femtousd: int | None = None
    image_input_femtousd: int | None = None
    image_output_femtousd: int | None = None

    def __post_init__(self) -> None:
        _check_amounts(self)


@dataclass(frozen=True, slots=True)
class Prices:
    """All prices of a model; None falls back to the base price of the same direction.

    `image_femtousd` is for providers that bill an image as a unit; where an image is billed as prompt
    tokens (OpenAI, Anthropic, Gemini) it stays 0. `tiers` ascend by `above_prompt_tokens`. `search_femtousd` is
    the fee of one web search with a low, medium and high context size, `maps_femtousd` of one query of Google
    Maps, `citation_femtousd` of a token read on a cited page. `service_tiers` are the complete prices
    of other tiers, by their name in gateway.catalog.service_tiers.
    Raises ValueError for a negative or implausible price and for tiers out of order.
    """

    input_femtousd: int
    output_femtousd: int
    cached_input_femtousd: int | None = None
    cache_write_femtousd: int | None = None
    cache_write_1h_femtousd: int | None = None
    reasoning_femtousd: int | None = None
    audio_input_femtousd: int | None = None
    audio_output_femtousd: int | None = None
    cached_audio_femtousd: int | None = None
    image_input_femtousd: int | None = None
    image_output_femtousd: int | None = None
    image_femtousd: int = 0
    request_femtousd: int = 0
    search_femtousd: tuple[int, int, int] = NO_SEARCH
    maps_femtousd: int = 0
    citation_femtousd: int = 0
    tiers: tuple[PriceTier, ...] = ()
    service_tiers: tuple[tuple[str, Prices], ...] = ()
    _steps: tuple[tuple[int, Rates], ...] = field(init=False, repr=False, compare=False)
    """(exclusive lower bound in prompt tokens, rates) of every tier, base prices first."""
    tier_names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The service tiers with prices of their own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tier_names", tuple(name for name, _ in self.service_tiers))
        _check_amounts(self)
        thresholds = [tier.above_prompt_tokens for tier in self.tiers]
        if any(later <= earlier for earlier, later in pairwise(thresholds)):
            raise ValueError(f"expected price tiers in ascending order of above_prompt_tokens, got {thresholds}")
        chosen: dict[str, int | None] = {name: getattr(self, name) for name in _TOKEN_PRICES}
        steps = [(-1, self._completed(chosen))]
        for tier in self.tiers:
            chosen |= {name: price for name in _TOKEN_PRICES if (price := getattr(tier, name)) is not None}
            steps.append((tier.above_prompt_tokens, self._completed(chosen)))
        object.__setattr__(self, "_steps", tuple(steps))

    @property
    def highest_threshold_tokens(self) -> int:
        """The highest threshold of all price tiers, in any service tier; 0 without any."""
        listed = (self, *(prices for _, prices in self.service_tiers))
        return max((tier.above_prompt_tokens for prices in listed for tier in prices.tiers), default=0)

    def of(self, service_tier: str | None) -> Prices:
        """The prices of a service tier; these prices when it has none of its own."""
        if service_tier not in self.tier_names:
            return self
        return next(prices for name, prices in self.service_tiers if name == service_tier)

    def at(self, prompt_tokens: int) -> Rates:
        """The rates of a call whose whole prompt (cached tokens included) has `prompt_tokens`."""
        found = self._steps[0][1]
        for above, rates in self._steps[1:]:
            if prompt_tokens <= above:
                break
            found = rates
        return found

    def reachable(self, prompt_tokens_bound: int) -> list[Rates]:
        """Rates of every tier that a prompt of at most `prompt_tokens_bound` tokens can reach."""
        return [rates for above, rates in self._steps if prompt_tokens_bound > above]

    def _completed(self, chosen: Mapping[str, int | None]) -> Rates:
        made = {name: price for name, price in chosen.items() if price is not None}
        for name, base in _BASES.items():
            made.setdefault(name, made[base])
        return Rates(**made, image_femtousd=self.image_femtousd, request_femtousd=self.request_femtousd)


_TOKEN_PRICES = tuple(entry.name for entry in fields(PriceTier) if entry.name != "above_prompt_tokens")


_BASES: Mapping[str, str] = {
    "cached_input_femtousd": "input_femtousd", "cache_write_femtousd": "input_femtousd",
    "cache_write_1h_femtousd": "cache_write_femtousd", "reasoning_femtousd": "output_femtousd",
    "audio_input_femtousd": "input_femtousd", "audio_output_femtousd": "output_femtousd",
    "cached_audio_femtousd": "cached_input_femtousd", "image_input_femtousd": "input_femtousd",
    "image_output_femtousd": "output_femtousd",
}  # fmt: skip
"""The price in whose place a special one stands, each behind its own."""


def _check_amounts(prices: Prices | PriceTier) -> None:
    for entry in fields(prices):
        if not entry.init or entry.name in ("tiers", "service_tiers"):
            continue
        value = getattr(prices, entry.name)
        for amount in value if isinstance(value, tuple) else (value,):
            if amount is None:
                continue
            if not isinstance(amount, int) or isinstance(amount, bool) or not 0 <= amount <= MAX_FEMTOUSD:
                raise ValueError(f"{entry.name}: expected an integer from 0 to {MAX_FEMTOUSD}, got {amount!r}")
