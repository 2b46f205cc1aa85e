"""All providers: `Upstream.complete`, `open_stream`, `embed` and `moderate`.

The direct client (`gateway.providers.direct`) makes plain calls, LiteLLM (`gateway.providers.acompletion`) all others;
requests in a provider's own dialect are forwarded (`gateway.providers.forward`).
One call is one request: no retries, no fallbacks, no callbacks, no address or key from the environment or from the
caller's body. Every failure is an UpstreamFault with our own message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import httpx
from msgspec import structs

from gateway.catalog.usage import PartialUsage, ReportedUsage, Usage
from gateway.catalog.usage_reading import read_usage
from gateway.errors import GatewayError
from gateway.providers.acompletion import LitellmClient
from gateway.providers.answers import UpstreamStream
from gateway.providers.aws_access import AwsEnvironment
from gateway.providers.call import Call, Lane, Outgoing, PreparedCall
from gateway.providers.claude_hosts import ClaudeHosts
from gateway.providers.direct import DirectClient
from gateway.providers.embeddings import embedding_names
from gateway.providers.errors import CallRefused, FailedFault, UpstreamFault
from gateway.providers.exchange import Exchange, uninterrupted
from gateway.providers.exchange_faults import timeout_fault
from gateway.providers.forward import ForwardedCall
from gateway.providers.history import history
from gateway.providers.litellm_clients import LOOKING_UP
from gateway.providers.litellm_setup import import_litellm
from gateway.providers.moderation import ModerationCall
from gateway.providers.outgoing import OutgoingCalls
from gateway.providers.replies import Reply, embedding_reply, moderation_reply, native_reply, translated_reply
from gateway.providers.responses_route import ResponsesRoute
from gateway.providers.transport import Connections
from gateway.providers.waiting import Patience

__all__ = ["Call", "Outgoing", "Reply", "Upstream", "UpstreamStream"]

T = TypeVar("T")
_log = logging.getLogger("seqroute.providers")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What needs LiteLLM and no connection."""

    litellm: Any
    aws: AwsEnvironment
    claude: ClaudeHosts
    route: ResponsesRoute
    calls: OutgoingCalls


@dataclass(frozen=True, slots=True)
class _Clients:
    direct: DirectClient
    litellm: LitellmClient
    connections: Connections


class Upstream:
    """All providers of this process. `start` imports LiteLLM, `close` closes all connections.

    `on_call` is called with the lane of every call.
    """

    def __init__(
        self,
        *,
        max_connections: int = 512,
        max_connections_per_host: int = 256,
        connect_timeout_s: float = 10.0,
        on_call: Callable[[Lane], None] = lambda lane: None,
    ) -> None:
        self.on_call = on_call
        self._connections = (max_connections, max_connections_per_host, connect_timeout_s)
        self._loaded: _Loaded | None = None
        self._direct: DirectClient | None = None
        self._clients: _Clients | None = None

    async def start(self) -> None:
        """Import LiteLLM (takes seconds) and open the connection pools."""
        loaded = self._loaded
        if loaded is None:
            loaded = await asyncio.to_thread(self._load)
        direct = self._direct
        if direct is None:
            direct = self._direct = await asyncio.to_thread(DirectClient, loaded.litellm, loaded.route)
        connections = Connections.open(*self._connections)
        client = LitellmClient(loaded.litellm, self._connections[2], loaded.aws, loaded.route, connections)
        self._clients = _Clients(direct, client, connections)
        await client.warm_up()

    def _load(self) -> _Loaded:
        litellm, aws, route = import_litellm(), AwsEnvironment(), ResponsesRoute()
        claude = ClaudeHosts(litellm, aws)
        self._loaded = _Loaded(litellm, aws, claude, route, OutgoingCalls(litellm, claude, route))
        return self._loaded

    def lost_defaults(self, call: Call) -> tuple[str, ...]:
        """Names of the operator's defaults in a call that its provider is not sent.

        Needs LiteLLM, which it imports, and no `start`: nothing is asked over the network. Raises CallRefused for a
        deployment all of whose calls would be.
        """
        return (self._loaded or self._load()).calls.lost_defaults(call)

    async def close(self) -> None:
        """Close all connections; `start` may be called again."""
        clients, self._clients = self._clients, None
        if clients is not None:
            await clients.litellm.close()
            await clients.connections.close()

    def outgoing(self, call: Call) -> Outgoing:
        """The call as it will be sent. Raises CallRefused, and InvalidRequest for its content."""
        return _unsent(call, lambda: self._started[0].calls.of(call))

    async def complete(self, outgoing: Outgoing) -> Reply:
        """A complete response. Raises UpstreamFault, and InvalidRequest for forbidden content."""
        call = outgoing.call
        if call.stream:
            outgoing = structs.replace(outgoing, call=structs.replace(call, stream=False))
        if call.forwarded is not None:
            forwarding = _unsent(call, lambda: self._forwarding(outgoing))
            exchange, _ = await self._received(call, forwarding)
            return forwarding.reply(exchange)
        prepared = _unsent(call, lambda: self._prepared(outgoing))
        exchange, response, fault = await self._tried(call, prepared)
        # An answer in OpenAI's dialect that LiteLLM failed to translate can be read as it is.
        if exchange.whole and exchange.speaks_openai and (fault is not None or prepared.is_native(exchange)):
            reply = await native_reply(exchange)
        elif fault is not None:
            raise fault
        else:
            reply = translated_reply(exchange, response)
        if _asks_for_schema_alone(call):
            reply = reply.with_schema_answer()
        return reply.with_function_calls() if call.older_functions else reply

    async def embed(self, outgoing: Outgoing) -> Reply:
        """The vectors of the inputs in `call.params`. Raises like `complete`."""
        call = outgoing.call
        exchange, response = await self._received(call, _unsent(call, lambda: self._embedding(outgoing)))
        return embedding_reply(exchange, response, len(call.params["input"]))

    async def moderate(self, outgoing: Outgoing) -> Reply:
        """The verdicts on the inputs in `call.params`. Raises like `complete`."""
        call = outgoing.call
        exchange, _ = await self._received(call, _unsent(call, lambda: self._moderation(outgoing)))
        return moderation_reply(exchange)

    async def _received(self, call: Call, prepared: PreparedCall) -> tuple[Exchange, Any]:
        """A complete response: its exchange, and LiteLLM's translation, if any."""
        exchange, response, fault = await self._tried(call, prepared)
        if fault is not None:
            raise fault
        return exchange, response

    async def _tried(self, call: Call, prepared: PreparedCall) -> tuple[Exchange, Any, UpstreamFault | None]:
        """As `_received`, with the fault of a failed call.

        Raised where it has no context: LiteLLM's exceptions repeat the provider's message.
        """
        exchange = self._exchange(call)
        response, fault = None, None
        try:
            with Patience(asyncio.get_running_loop().time() + call.timeout_s) as limit:
                response = await prepared.whole(exchange)
        except TimeoutError:
            fault = timeout_fault(exchange, limit.expired())
        except Exception as error:  # noqa: BLE001 - LiteLLM raises any exception of its providers' code
            fault = prepared.fault(exchange, error)
        finally:
            if not exchange.whole:
                await uninterrupted(exchange.close())
        return exchange, response, fault

    async def open_stream(self, outgoing: Outgoing) -> UpstreamStream:
        """A stream whose first chunk has arrived. Raises like `complete`."""
        call = outgoing.call if outgoing.call.stream else structs.replace(outgoing.call, stream=True)
        prepared = _unsent(call, lambda: self._prepared(structs.replace(outgoing, call=call)))
        exchange = self._exchange(call)
        exchange.streaming = True
        deadline = asyncio.get_running_loop().time() + call.stream_timeout_s
        stream: UpstreamStream | None = None
        fault: UpstreamFault | None = None
        started = False
        try:
            with Patience(deadline) as limit:
                source = await prepared.opened(exchange, deadline)
                stream = UpstreamStream(
                    source, exchange, older_functions=call.older_functions, schema_alone=_asks_for_schema_alone(call)
                )
                await stream.read_ahead()
            started = True
        except TimeoutError:
            fault = timeout_fault(exchange, limit.expired()).billed(_begun_usage(exchange, stream))
        except UpstreamFault as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - as in `_tried`
            fault = prepared.fault(exchange, error)
        finally:
            if not started:
                outgoing.heard.usage = _begun_usage(exchange, stream)
                await uninterrupted(exchange.close() if stream is None else stream.aclose())
        if fault is not None:
            raise fault
        assert stream is not None
        return stream

    @property
    def _started(self) -> tuple[_Loaded, _Clients]:
        if self._loaded is None or self._clients is None:
            raise RuntimeError("Upstream.start() was not awaited")
        return self._loaded, self._clients

    def _prepared(self, outgoing: Outgoing) -> PreparedCall:
        """The prepared call. Raises CallRefused, and InvalidRequest for its content."""
        call, found = outgoing.call, outgoing.names
        if call.forwarded is not None:
            return self._forwarding(outgoing)
        loaded, clients = self._started
        target = loaded.calls.target(call, found)
        translated = not target.in_body
        if call.lane != "litellm":
            messages = history(call.messages, found.provider, target.kind, translated=translated)
            made = clients.direct.prepare(call, found, dict(outgoing.arguments), messages, clients.connections)
            if made is not None:
                self.on_call("thin")
                return made
            if call.lane == "thin":
                raise CallRefused("the configuration requires the direct client, which cannot make this call")
        self.on_call("litellm")
        messages = history(call.messages, found.provider, target.kind, translated=translated)
        return clients.litellm.prepare(call, found, outgoing.arguments, messages)

    def _forwarding(self, outgoing: Outgoing) -> ForwardedCall:
        loaded, clients = self._started
        prepared = ForwardedCall(outgoing.call, outgoing.names, clients.connections, loaded.claude, outgoing.arguments)
        self.on_call("thin")
        return prepared

    def _embedding(self, outgoing: Outgoing) -> PreparedCall:
        loaded, clients = self._started
        self.on_call("litellm")
        call, found = outgoing.call, outgoing.names
        names = embedding_names(found, in_body=loaded.calls.target(call, found).in_body)
        return clients.litellm.embedding(call, names)

    def _moderation(self, outgoing: Outgoing) -> PreparedCall:
        prepared = ModerationCall(outgoing.call, outgoing.names, self._started[1].connections)
        self.on_call("thin")
        return prepared

    def _exchange(self, call: Call) -> Exchange:
        """The record of a call that has not started."""
        return Exchange(
            organization=call.options.get("organization"),
            expected_host=_host(call.api_base) if call.api_base else b"",
            lookups=call.litellm_model.partition("/")[0] in LOOKING_UP,
            thread_timeout_s=call.timeout_s,
            one_choice=call.is_chat and call.params.get("n") in (None, 1),
        )


@lru_cache(maxsize=1024)
def _host(api_base: str) -> bytes:
    """The host of an address as HTTP names it; reading an address takes longer than a look-up."""
    return httpx.URL(api_base).netloc


def _begun_usage(exchange: Exchange, stream: UpstreamStream | None) -> ReportedUsage:
    """What a stream reported before its first content: its output is not counted yet."""
    if stream is None:
        usage = read_usage(None if exchange.reports is None else exchange.reports.report)
    else:
        usage = stream.usage
    return PartialUsage(usage, usage.prompt_tokens > 0, has_output=False) if isinstance(usage, Usage) else usage


def _asks_for_schema_alone(call: Call) -> bool:
    return "response_format" in call.params and "tools" not in call.params


def _unsent(call: Call, work: Callable[[], T]) -> T:
    """Run preparation code, whose failures happen before sending and cost nothing."""
    try:
        return work()
    except (UpstreamFault, GatewayError):
        raise
    except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its providers' code raises
        _log.error("a call for %s could not be made: %s", call.litellm_model[:120], type(error).__name__)
        fault = FailedFault("the call could not be made in the gateway", dispatched=False, retryable=False)
    raise fault
