"""One attempt at one deployment: the requested call, and its prepared form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from gateway.catalog.usage import ReportedUsage
from gateway.dialects.forwarded import ForwardedRequest
from gateway.providers.answers import ChunkSource
from gateway.providers.errors import UpstreamFault
from gateway.providers.exchange import Exchange
from gateway.providers.exchange_faults import fault_of_sent

Lane = Literal["thin", "litellm"]
NO_KEY = "none"
"""Key for a deployment with an address but no key; keeps environment keys from that address."""


class Call(Struct, frozen=True):
    """One attempt at one deployment.

    `timeout_s` bounds a complete response, `stream_timeout_s` a stream from request to end, `idle_timeout_s` the wait
    between chunks. `params` are the caller's validated parameters; they are filtered again.
    """

    litellm_model: str
    messages: Sequence[Mapping[str, Any]]
    api_base: str | None = None
    api_key: str | None = None
    params: Mapping[str, Any] = msgspec.field(default_factory=dict)
    max_tokens: int | None = None
    limited: bool = True
    """False: `max_tokens` is for a provider that cannot do without one; the others are told none."""
    max_tokens_param: Literal["max_tokens", "max_completion_tokens"] | str = "max_tokens"
    stream: bool = False
    timeout_s: float = 600.0
    stream_timeout_s: float = 600.0
    idle_timeout_s: float = 60.0
    extra_headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    drop_params: bool = False
    """Drop OpenAI parameters that the provider does not accept, instead of refusing the call."""
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    """The operator's arguments for LiteLLM (api_version, aws_..., vertex_...), never the caller's."""
    base_model: str | None = None
    """The model behind a deployment's own name; LiteLLM maps parameters by it."""
    lane: str = "auto"
    """One of `model_list.LANES`."""
    extras: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """The caller's parameters beyond OpenAI's: sent only to providers that know them."""
    defaults: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """The operator's defaults for this deployment. Callers override them, except those in `extra_body`."""
    allowed_params: frozenset[str] = frozenset()
    """Parameters that the operator allows for this deployment although LiteLLM does not list them."""
    dropped_params: frozenset[str] = frozenset()
    """Parameters that the operator blocks for this deployment."""
    service_tiers: Sequence[str] = ()
    """Service tiers with known prices; a caller's request for another is dropped."""
    search_priced: bool = False
    """Whether web searches have a known price; a caller's request for them is dropped otherwise."""
    cache_key: str | None = None
    """Sent to OpenAI as `prompt_cache_key` where the caller has none: turns of one session meet in one cache."""
    task_budget: Mapping[str, Any] | None = None
    """What the session has left, for Anthropic's `output_config.task_budget`; None: not told."""
    forwarded: ForwardedRequest | None = None
    """The request in its own dialect, sent instead of `messages` and `params`."""
    api_stated: bool = True
    """False: it is only likely that the deployment's server speaks that dialect."""
    tool_calls: int = 0
    """Calls of hosted tools that the hold covers; the provider is told so where it has a limit."""
    notes: Sequence[str] = ()
    """Lines for the system prompt of a forwarded request; `messages` have them already."""
    older_functions: bool = False
    """Whether the caller's `functions` are sent as tools, so that calls come back as its function calls."""
    is_chat: bool = True
    """False: inputs to embed or to moderate, in `params`."""

    def __repr__(self) -> str:
        return f"Call({self.litellm_model!r})"  # neither keys nor the client's words


@dataclass(frozen=True, slots=True)
class ProviderNames:
    """LiteLLM's names of a call's model and provider, with its default key and address."""

    model: str
    provider: str
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = None


@dataclass(slots=True)
class Heard:
    """The usage that a stream had reported when its client left before the first content."""

    usage: ReportedUsage = None


class Outgoing(Struct, frozen=True):
    """A call with its provider's names and its parameters in the provider's form.

    `call` has no limit if none was asked for and the provider can do without. It is sent once: the clients modify
    `arguments`.
    """

    call: Call
    names: ProviderNames
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """Names of the caller's parameters that are not sent."""
    heard: Heard = msgspec.field(default_factory=Heard)


class PreparedCall(Protocol):
    """A call prepared for one of the clients; defaults are those of our own, without a stream.

    `whole` and `opened` send exactly one request and record it in `exchange`; `fault` interprets what they raise.
    """

    async def whole(self, exchange: Exchange) -> Any:
        """Receive a complete response into the exchange; return LiteLLM's translation, if any."""

    async def opened(self, exchange: Exchange, deadline: float) -> ChunkSource:
        """Start a stream; `deadline` is in the event loop's time."""
        raise AssertionError("the answer is not streamed")

    def is_native(self, exchange: Exchange) -> bool:
        """True when the provider's body is the response, without translation."""
        return exchange.speaks_openai

    def fault(self, exchange: Exchange, error: Exception) -> UpstreamFault:
        """The fault that an exception of `whole` or `opened` means."""
        return fault_of_sent(exchange, error)
