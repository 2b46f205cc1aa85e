"""The price list of one model: frozen integers of femto-USD (1e-15 USD) per unit.

Built by the catalogue from `model_info` (or LiteLLM's bundled map), read by `gateway.catalog.cost`. A missing special
price falls back to the plain one of its direction: an uncached, untiered model needs only `input_femtousd` and
`output_femtousd`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise

MAX_FEMTOUSD = 10**18
"""1,000 USD per unit: beyond it a price is a slip of the pen (`money.femtousd_from_usd` has the same limit)."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one call pays, every price known. Per token, but `image` per picture and `request` per call.

    `reasoning` is the price of output tokens spent on thinking, `cache_write_1h` of a prompt cached for an hour.
    """

    input_femtousd: int
    output_femtousd: int
    cached_input_femtousd: int
    cache_write_femtousd: int
    cache_write_1h_femtousd: int
    reasoning_femtousd: int
    audio_input_femtousd: int
    audio_output_femtousd: int
    image_femtousd: int
    request_femtousd: int

    @property
    def dearest_input_femtousd(self) -> int:
        """What a text token of the prompt costs at worst: a provider may write it to its cache unasked."""
        return max(
            self.input_femtousd, self.cached_input_femtousd, self.cache_write_femtousd, self.cache_write_1h_femtousd
        )

    @property
    def dearest_output_femtousd(self) -> int:
        """What a token of the answer costs at worst, audio aside."""
        return max(self.output_femtousd, self.reasoning_femtousd)


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Other prices for the *whole* call when the prompt has more than `above_prompt_tokens` tokens, cached included.

    None keeps the price of the tier below.
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

    def __post_init__(self) -> None:
        _check_amounts(self)


@dataclass(frozen=True, slots=True)
class Prices:
    """All prices of a model. None: the plain price of the same direction holds.

    `image_femtousd` is for providers that bill a picture as a unit of its own; where a picture is billed as prompt
    tokens (OpenAI, Anthropic, Gemini) it stays 0. `tiers` ascend by `above_prompt_tokens`.
    Raises ValueError for a negative or absurd price and for tiers out of order.
    """

    input_femtousd: int
    output_femtousd: int
    cached_input_femtousd: int | None = None
    cache_write_femtousd: int | None = None
    cache_write_1h_femtousd: int | None = None
    reasoning_femtousd: int | None = None
    audio_input_femtousd: int | None = None
    audio_output_femtousd: int | None = None
    image_femtousd: int = 0
    request_femtousd: int = 0
    tiers: tuple[PriceTier, ...] = ()
    _steps: tuple[tuple[int, Rates], ...] = field(init=False, repr=False, compare=False)
    """(prompt tokens that it begins above, rates) of every tier, the plain prices first: made once, read every turn."""

    def __post_init__(self) -> None:
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

    def at(self, prompt_tokens: int) -> Rates:
        """The rates of a call whose whole prompt (cached tokens included) has `prompt_tokens`."""
        found = self._steps[0][1]
        for above, rates in self._steps[1:]:
            if prompt_tokens <= above:
                break
            found = rates
        return found

    def reachable(self, prompt_tokens_bound: int) -> list[Rates]:
        """The rates of every tier that a prompt of at most `prompt_tokens_bound` tokens can fall into."""
        return [rates for above, rates in self._steps if prompt_tokens_bound > above]

    def _completed(self, chosen: dict[str, int | None]) -> Rates:
        input_femtousd, output_femtousd = chosen["input_femtousd"] or 0, chosen["output_femtousd"] or 0

        def price(name: str, plain: int) -> int:
            value = chosen[name]
            return plain if value is None else value

        cache_write_femtousd = price("cache_write_femtousd", input_femtousd)
        return Rates(
            input_femtousd=input_femtousd,
            output_femtousd=output_femtousd,
            cached_input_femtousd=price("cached_input_femtousd", input_femtousd),
            cache_write_femtousd=cache_write_femtousd,
            cache_write_1h_femtousd=price("cache_write_1h_femtousd", cache_write_femtousd),
            reasoning_femtousd=price("reasoning_femtousd", output_femtousd),
            audio_input_femtousd=price("audio_input_femtousd", input_femtousd),
            audio_output_femtousd=price("audio_output_femtousd", output_femtousd),
            image_femtousd=self.image_femtousd,
            request_femtousd=self.request_femtousd,
        )


_TOKEN_PRICES = tuple(entry.name for entry in fields(PriceTier) if entry.name != "above_prompt_tokens")


def _check_amounts(prices: Prices | PriceTier) -> None:
    for entry in fields(prices):
        if not entry.init or entry.name == "tiers":
            continue
        value = getattr(prices, entry.name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_FEMTOUSD:
            raise ValueError(f"{entry.name}: expected an integer from 0 to {MAX_FEMTOUSD}, got {value!r}")
