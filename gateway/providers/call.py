"""One attempt at one deployment: what a turn asks of an upstream, and what a lane makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gateway.providers.answers import ChunkSource
from gateway.providers.errors import UpstreamFault
from gateway.providers.exchange import Exchange

Lane = Literal["thin", "litellm"]
NO_KEY = "none"
"""Sent where a deployment has an address but no key, so that no key out of the environment goes to that address."""


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at one deployment. `timeout_s` bounds a whole answer, `stream_timeout_s` a stream from its request to
    its end, `idle_timeout_s` the wait between chunks. `params` are the caller's, checked; they are filtered again.
    """

    litellm_model: str
    messages: Sequence[Mapping[str, Any]]
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    params: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    max_tokens_param: Literal["max_tokens", "max_completion_tokens"] | str = "max_tokens"
    stream: bool = False
    timeout_s: float = 600.0
    stream_timeout_s: float = 600.0
    idle_timeout_s: float = 60.0
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    drop_params: bool = False
    """Leave out OpenAI parameters that the model's provider does not take, instead of refusing the call."""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The operator's own arguments for LiteLLM (api_version, organization, aws_..., vertex_...), never the caller's."""
    base_model: str | None = None
    """The model behind a deployment's own name; LiteLLM shapes parameters by it."""
    lane: str = "auto"
    """One of `model_list.LANES`."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """The caller's parameters beyond OpenAI's: each goes to a provider that knows it, or nowhere."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The operator's parameters for this deployment: the caller's go before them, but for those in `extra_body`."""
    allowed_params: frozenset[str] = frozenset()
    """Parameters that the operator lets callers send to this deployment although nobody knows that it takes them."""
    dropped_params: frozenset[str] = frozenset()
    """Parameters that the operator keeps from this deployment."""


class PreparedCall(Protocol):
    """A call on its lane, ready to go. Both methods send exactly one request and record it in `exchange`; whatever
    they raise, `fault` says what it means."""

    async def whole(self, exchange: Exchange) -> Any:
        """The whole answer: in the exchange, and returned as LiteLLM translated it where a lane does that."""

    async def opened(self, exchange: Exchange, deadline: float) -> ChunkSource:
        """The chunks of a stream; `deadline` in the event loop's time."""

    def is_native(self, exchange: Exchange) -> bool:
        """Whether the provider's own words are the answer."""

    def fault(self, exchange: Exchange, error: Exception) -> UpstreamFault: ...
