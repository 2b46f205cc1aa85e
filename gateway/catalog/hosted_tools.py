"""Tools that a provider's own servers run: their fees, and what a hold covers of them.

    most = calls * the highest fee
         + (calls + 1) * prompt + calls * (calls + 1) / 2 * RESULT_TOKENS    as input
         + the answer, and as input calls * the answer

Every call of such a tool is another step of the model, which reads the prompt again with all results and what it wrote
so far.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from gateway.catalog.prices import NO_SEARCH, Prices
from gateway.config.prices import SEARCH_PRICE_KEYS, TOOL_PRICE_KEYS
from gateway.money import femtousd_from_usd

Api = Literal["responses_api", "messages_api"]
"""A provider's own dialect, by the name of the capability: OpenAI's Responses, Anthropic's Messages."""
ASSUMED_CALLS = 5
"""Calls of hosted tools that a request without a limit may make; the provider is told so."""
MOST_CALLS = 50
RESULT_TOKENS = 10_000
"""Prompt tokens that the results of one call may add."""
IMAGE_MODEL = "gpt-image-1"
"""The model of OpenAI's image tool that names none."""
IMAGE_TOKENS = 6_240
"""Output tokens of its largest image in high quality."""

WEB_SEARCH, WEB_SEARCH_PREVIEW, IMAGE = "web_search", "web_search_preview", "image_generation"
SEARCHES = frozenset({WEB_SEARCH, WEB_SEARCH_PREVIEW})
FILE_SEARCH_PRICE, SESSION_PRICE = TOOL_PRICE_KEYS
STEPS = "steps"
"""Beside the kinds of the calls heard so far: their number, with those that cost nothing."""
CONTAINER_SIZE = "1g"
"""The memory of a container at its published price; larger ones cost more."""
PROVIDER_FILES = "provider_files"
"""The capability of reaching files, stores and containers of the operator's account at the provider."""

# Published prices of November 2026 in USD a call, for what neither the file nor the price map states.
_PUBLISHED_USD: Mapping[str, Decimal] = {
    WEB_SEARCH: Decimal("0.01"), WEB_SEARCH_PREVIEW: Decimal("0.025"), "file_search": Decimal("0.0025"),
    "code_interpreter": Decimal("0.03"), "shell": Decimal("0.03"), IMAGE: Decimal("0.25"),
}  # fmt: skip
_STATED = {
    "file_search": (FILE_SEARCH_PRICE, 1000),
    "code_interpreter": (SESSION_PRICE, 1),
    "shell": (SESSION_PRICE, 1),
}
_RUN_BY_PROVIDER: Mapping[Api, frozenset[str]] = {
    "responses_api": frozenset({
        *SEARCHES, "file_search", "code_interpreter", "shell", IMAGE, "mcp", "tool_search",
    }),
    "messages_api": frozenset({WEB_SEARCH, "web_fetch", "code_execution", "mcp", "tool_search"}),
}  # fmt: skip
_RUN_BY_CLIENT: Mapping[Api, frozenset[str]] = {
    "responses_api": frozenset({"computer", "computer_use", "computer_use_preview", "local_shell", "apply_patch"}),
    "messages_api": frozenset({"bash", "text_editor", "computer", "memory"}),
}
_STATED_SEARCHES = frozenset(SEARCH_PRICE_KEYS)
_VERSION = re.compile(r"_(\d{8}|\d{4}_\d{2}_\d{2})$")


@dataclass(frozen=True, slots=True)
class HostedTools:
    """The tools of a request that need the provider's own dialect.

    `kinds` are those that its servers run. `most_calls`: the client's limit; None: it set none.
    """

    kinds: frozenset[str] = frozenset()
    most_calls: int | None = None
    image_model: str = IMAGE_MODEL

    @property
    def asked_calls(self) -> int:
        """The calls that a hold covers if the money is enough; 0 without such tools."""
        if not self.kinds:
            return 0
        return min(ASSUMED_CALLS if self.most_calls is None else self.most_calls, MOST_CALLS)


NO_TOOLS = HostedTools()


@dataclass(frozen=True, slots=True)
class HostedCalls:
    """At most `most` calls of hosted tools in one call of a model.

    `fees_femtousd`: of one call, by kind. `answer_tokens`: the longest answer, which every step may read again.
    """

    most: int
    fees_femtousd: Mapping[str, int]
    answer_tokens: int = 0

    @property
    def assumed(self) -> Mapping[str, int]:
        """The calls of a provider of which nothing was heard: one of every kind with a fee."""
        kinds = sorted(self.fees_femtousd, key=lambda kind: (-self.fees_femtousd[kind], kind))
        return {kind: 1 for kind in kinds[: self.most] if self.fees_femtousd[kind]}

    @property
    def search_femtousd(self) -> int:
        """The fee of one web search."""
        return max([fee for kind, fee in self.fees_femtousd.items() if kind in SEARCHES], default=0)

    @property
    def most_femtousd(self) -> int:
        """The highest fees of all calls."""
        return self.most * max(self.fees_femtousd.values(), default=0)

    def fee_femtousd(self, searches: int, calls: Iterable[tuple[str, int]]) -> int:
        """The fees of so many searches and calls of other tools."""
        return searches * self.search_femtousd + sum(self.fees_femtousd.get(kind, 0) * count for kind, count in calls)


def steps_tokens(prompt_tokens: int, calls: int) -> int:
    """Tokens read around so many calls: at every step the prompt and the results so far."""
    return (calls + 1) * prompt_tokens + calls * (calls + 1) // 2 * RESULT_TOKENS


def searching(api: Api) -> str:
    """The capability of searching the web by a tool of this dialect."""
    return f"{api}.{WEB_SEARCH}"


def kind_of(tool_type: object, api: Api) -> str | None:
    """A tool's kind without its version; None for one that no provider of this dialect has."""
    if not isinstance(tool_type, str):
        return None
    kind = _VERSION.sub("", tool_type)
    if api == "messages_api":
        kind = "tool_search" if kind.startswith("tool_search_tool") else "mcp" if kind == "mcp_toolset" else kind
    return kind if kind in _RUN_BY_PROVIDER[api] or kind in _RUN_BY_CLIENT[api] else None


def run_by_provider(kinds: Iterable[str], api: Api) -> frozenset[str]:
    """Those kinds that the provider's servers run, and may bill."""
    return _RUN_BY_PROVIDER[api] & frozenset(kinds)


def is_run_by_client(kind: str, api: Api) -> bool:
    """True for a tool, or an item of one, that the provider's models know and the client runs."""
    return kind.startswith(tuple(_RUN_BY_CLIENT[api]))


def fees_of(
    tools: HostedTools,
    prices: Prices,
    stated_usd: Mapping[str, Decimal],
    prices_of: Callable[[str], Prices | None],
) -> Mapping[str, int]:
    """The fee of a call by kind: the stated one, else the price map's, else the published one."""
    fees: dict[str, int] = {}
    for kind in tools.kinds:
        if kind in SEARCHES and (prices.search_femtousd != NO_SEARCH or not _STATED_SEARCHES.isdisjoint(stated_usd)):
            fees[kind] = max(prices.search_femtousd)
        elif kind in _STATED and _STATED[kind][0] in stated_usd:
            key, calls = _STATED[kind]
            fees[kind] = femtousd_from_usd(stated_usd[key] / calls)
        elif kind == IMAGE and (images := prices_of(tools.image_model)) is not None:
            fees[kind] = IMAGE_TOKENS * images.at(0).image_output_femtousd
        else:
            fees[kind] = femtousd_from_usd(_PUBLISHED_USD.get(kind, Decimal(0)))
    return fees
