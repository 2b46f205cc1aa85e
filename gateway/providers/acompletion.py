"""Calls through `litellm.acompletion`, for every provider that LiteLLM supports.

LiteLLM builds the request for each provider; `gateway.providers.exchange` records the response. Neither the environment
of this process nor the caller's body can choose an address or a key.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import httpx

from gateway.dialects.native_forms import begun_payload, native_dialect, payloads_of, speaks_openai
from gateway.dialects.wire_usage import WireUsage
from gateway.providers.accepted_parameters import NEEDED, mapped
from gateway.providers.answers import ChunkSource, LitellmSource
from gateway.providers.attachments import attached
from gateway.providers.aws_access import AwsEnvironment, aws_access
from gateway.providers.azure_access import AzureTokens, by_token, without_access
from gateway.providers.blocking import BlockingTransport
from gateway.providers.call import NO_KEY, Call, ProviderNames
from gateway.providers.embeddings import embedding_base, embeds_by_sdk
from gateway.providers.errors import TimeoutFault, UpstreamFault
from gateway.providers.exchange import EXCHANGE, Exchange
from gateway.providers.inband import broken_off
from gateway.providers.litellm_clients import (
    HANDLERS,
    SDK_TIMEOUT_S,
    UNLIMITED,
    WHOLE_ONLY,
    Handlers,
    SdkClients,
)
from gateway.providers.litellm_faults import fault_of_call
from gateway.providers.litellm_transport import BoundedTransport, NoSecondTransport, RecordedStream
from gateway.providers.replies import Reply, WholeSource, native_reply, translated_reply
from gateway.providers.responses_route import ResponsesRoute
from gateway.providers.transport import Connections
from gateway.providers.waiting import Patience
from gateway.providers.wire_source import WireSource

# Providers with OpenAI's path but an answer of their own.
_TRANSLATED = frozenset({"cohere", "cohere_chat"})
_OWN_SCHEMAS = frozenset({"openai", "custom_openai", "azure"})
_WARM_CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "w"}}


class LitellmClient:
    """Calls LiteLLM. Create it in the event loop that uses it, after importing LiteLLM."""

    def __init__(
        self,
        litellm: Any,
        connect_timeout_s: float,
        aws: AwsEnvironment,
        route: ResponsesRoute,
        connections: Connections,
    ) -> None:
        self._litellm = litellm
        self._aws = aws
        self._route = route
        self._azure = AzureTokens()
        self._openai: Any = importlib.import_module("openai")
        self._internal_call: Any = importlib.import_module("litellm._internal_context").is_internal_call
        self._timeout = httpx.Timeout(SDK_TIMEOUT_S, connect=connect_timeout_s)
        transports = importlib.import_module("litellm.llms.custom_httpx.aiohttp_transport")
        handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
        inner = transports.LiteLLMAiohttpTransport(client=lambda: connections.kept)
        fresh = transports.LiteLLMAiohttpTransport(client=lambda: connections.fresh)
        transport = BoundedTransport(inner, fresh=fresh)
        self._http = httpx.AsyncClient(transport=transport, timeout=self._timeout, follow_redirects=False)
        self._blocking = httpx.Client(transport=BlockingTransport(), timeout=self._timeout, follow_redirects=False)
        waiting = handlers.AsyncHTTPHandler(timeout=self._timeout)
        self._replaced, waiting.client = waiting.client, self._http
        # After a lost connection LiteLLM's handler would make a second, uncounted call with a second client.
        waiting.create_client = lambda **_: httpx.AsyncClient(transport=NoSecondTransport())
        self._handlers = Handlers(waiting, handlers.HTTPHandler(client=self._blocking))
        self._sdk = SdkClients(litellm, self._http)

    async def close(self) -> None:
        """Close the HTTP clients."""
        await self._replaced.aclose()
        await self._http.aclose()
        self._blocking.close()

    def prepare(
        self, call: Call, found: ProviderNames, params: dict[str, Any], messages: list[dict[str, Any]]
    ) -> LitellmCall:
        """A prepared call; `params` and `messages` are the outgoing ones."""
        arguments = self._arguments(call, found, params, messages)
        return LitellmCall(self, call, found.provider, arguments, self._litellm.acompletion)

    def embedding(self, call: Call, found: ProviderNames) -> LitellmCall:
        """A prepared embedding call, whose parameters hold the input."""
        arguments = self._arguments(call, found, {}, [])
        chat_only = ("messages", "stream", "_skip_mcp_handler", "allowed_openai_params", call.max_tokens_param)
        for name in chat_only:
            arguments.pop(name, None)
        by_sdk = embeds_by_sdk(found.provider)
        arguments["client"] = self._sdk.client(call, found) if by_sdk else self._handlers.waiting
        arguments["timeout"] = self._timeout if by_sdk else SDK_TIMEOUT_S
        if not by_sdk and call.api_base is not None:
            arguments["api_base"] = embedding_base(found.provider, call.api_base)
        return LitellmCall(self, call, found.provider, arguments | dict(call.params), self._litellm.aembedding)

    async def with_key(self, call: Call, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments with the key for Bedrock, for which a server of Amazon's may be asked.

        A token for Azure is noted for the request that is being recorded.
        """
        provider, exchange = arguments["custom_llm_provider"], EXCHANGE.get()
        if exchange is not None and by_token(call, provider):
            exchange.bearer = await self._azure.token(call)
        if provider != "bedrock":
            return arguments
        key = await self._aws.key(aws_access(call))
        return arguments if key is None else {**arguments, "api_key": key}

    @contextmanager
    def recorded(self, exchange: Exchange) -> Iterator[None]:
        """Record HTTP exchanges of this context in `exchange`.

        LiteLLM treats calls within as internal ones: no logs, no logging worker, no callbacks.
        """
        mark, inner, handed = EXCHANGE.set(exchange), self._internal_call.set(True), HANDLERS.set(self._handlers)
        try:
            yield
        finally:
            EXCHANGE.reset(mark)
            self._internal_call.reset(inner)
            HANDLERS.reset(handed)

    def translates(self, model: str, provider: str, tool: Mapping[str, Any]) -> bool:
        """True if LiteLLM can write a tool in the provider's form."""
        try:
            mapped(self._litellm, model, provider, tools=[deepcopy(tool)])
        except Exception:  # noqa: BLE001 - each provider's code has errors of its own
            return False
        return True

    def known_code(self, error: Exception) -> str:
        """The client-visible code of an error that LiteLLM recognised by its message; "" for others."""
        if isinstance(error, self._litellm.ContextWindowExceededError):
            return "context_length_exceeded"
        return "content_filter" if isinstance(error, self._litellm.ContentPolicyViolationError) else ""

    def _arguments(
        self, call: Call, found: ProviderNames, params: dict[str, Any], messages: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Keyword arguments for LiteLLM."""
        model, provider = found.model, found.provider
        by_sdk = self._sdk.kind(provider) != "http"
        access = aws_access(call) if provider == "bedrock" else None
        options, headers = (call.options, call.extra_headers) if access is None else (access.options, access.headers)
        if by_token(call, provider):
            options = without_access(options)
        arguments: dict[str, Any] = {**options, **params, "messages": messages}
        streamed = call.stream and provider not in WHOLE_ONLY
        if self._route.takes(call, found, params):
            # LiteLLM makes a stream of a complete answer there, and writes the arguments of its tool calls twice.
            streamed = streamed and self._litellm.utils.supports_native_streaming(model, provider)
            arguments.setdefault("store", False)  # the default of chat, which is not that of /v1/responses
        arguments |= {"model": model, "custom_llm_provider": provider, "stream": streamed}
        arguments |= {"max_retries": 0, "num_retries": 0, "caching": False, "no-log": True}
        arguments["drop_params"] = call.drop_params and self._may_drop(call, model, provider)
        # Callers cannot name MCP servers (gateway.dialects.arguments); LiteLLM's check would import the MCP package.
        arguments["_skip_mcp_handler"] = True
        arguments["timeout"] = self._timeout if by_sdk else SDK_TIMEOUT_S
        if call.max_tokens is not None and provider not in UNLIMITED:
            arguments[call.max_tokens_param] = call.max_tokens
            if by_sdk and call.max_tokens_param not in self._known_params(call, model, provider):
                # A server of OpenAI's dialect accepts it even if LiteLLM does not list it.
                arguments["allowed_openai_params"] = [call.max_tokens_param]
        if call.api_base is not None and provider in ("sagemaker", "sagemaker_chat", "sagemaker_nova"):
            suffix = "-response-stream" if streamed and call.api_base.endswith("/invocations") else ""
            arguments["sagemaker_base_url"] = call.api_base + suffix
        if streamed:
            arguments["stream_options"] = {**params.get("stream_options", {}), "include_usage": True}
        if call.base_model is not None:
            arguments["base_model"] = call.base_model
        if call.api_base is not None:
            arguments["api_base"] = call.api_base
        if access is None and (call.api_key is not None or call.api_base is not None):
            arguments["api_key"] = call.api_key or NO_KEY
        if headers:
            arguments["extra_headers"] = dict(headers)
        arguments["client"] = self._sdk.client(call, found) if by_sdk else self._handlers.waiting
        return arguments

    def _may_drop(self, call: Call, model: str, provider: str) -> bool:
        """False when LiteLLM would drop the token limit of the reservation or parameters that shape the response."""
        known = self._known_params(call, model, provider)
        needed = {name for name in NEEDED if name in call.params}
        limit = {call.max_tokens_param} if call.max_tokens is not None and provider not in UNLIMITED else set()
        return needed | (set() if self._sdk.kind(provider) != "http" else limit) <= known

    def _known_params(self, call: Call, model: str, provider: str) -> frozenset[str]:
        """Names that LiteLLM sends, at OpenAI's servers by the deployment's name alone."""
        named = model if provider == "openai" else call.base_model or model
        known = self._litellm.get_supported_openai_params(model=named, custom_llm_provider=provider)
        return frozenset(known or ())

    async def warm_up(self) -> None:
        """Make one call of each kind against a mock transport, which imports the rest of LiteLLM."""
        answer = {"id": "w", "object": "chat.completion", "created": 1, "model": "w", "choices": [_WARM_CHOICE]}

        def answered(request: httpx.Request) -> httpx.Response:
            if b'"stream":true' in request.content.replace(b" ", b""):
                return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"data: [DONE]\n\n")
            return httpx.Response(200, json=answer)

        async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as nowhere:
            client = self._openai.AsyncOpenAI(base_url="http://nowhere.invalid", api_key=NO_KEY, http_client=nowhere)
            for stream in (False, True):
                arguments = {"model": "w", "custom_llm_provider": "openai", "api_key": NO_KEY, "client": client}
                arguments |= {"messages": [{"role": "user", "content": "w"}], "stream": stream, "max_retries": 0}
                with self.recorded(Exchange()):
                    await self._litellm.acompletion(**arguments)


class LitellmCall:
    """One call through `acompletion` or `aembedding`."""

    def __init__(
        self,
        lane: LitellmClient,
        call: Call,
        provider: str,
        arguments: Mapping[str, Any],
        function: Callable[..., Awaitable[Any]],
    ) -> None:
        self._lane = lane
        self._call = call
        self._provider = provider
        self._arguments = arguments
        self._function = function

    async def whole(self, exchange: Exchange) -> Any:
        """Make the call; returns LiteLLM's response object."""
        exchange.attached = attached(self._arguments.get("messages") or ())
        with self._lane.recorded(exchange):
            return await self._answer()

    async def opened(self, exchange: Exchange, deadline: float) -> ChunkSource:
        """Start the call as a stream, or as one complete response where LiteLLM cannot stream."""
        exchange.attached = attached(self._arguments["messages"])
        exchange.streaming = self._arguments["stream"]
        exchange.reports = WireUsage() if exchange.streaming else None
        with self._lane.recorded(exchange):
            if not self._arguments["stream"]:
                return WholeSource(await self._whole_reply(exchange))
            response = await self._answer()
            answer = exchange.answer
            if answer is not None and not answer.begun and self.is_native(exchange):
                exchange.reports = None
                return WireSource(answer, exchange, self._call.idle_timeout_s, deadline)
            source = LitellmSource(
                response, self._call.idle_timeout_s, deadline, self.fault, exchange, self._lane.recorded
            )
            await source.open()
            answer = exchange.answer
            shows_form = exchange.shows_form or native_dialect(exchange.path) is not None
            if isinstance(answer, RecordedStream) and not answer.begun and shows_form:
                await _begin(answer, exchange, self._call.idle_timeout_s, deadline)
                if self.is_native(exchange):
                    exchange.reports = None
                    return WireSource(answer, exchange, self._call.idle_timeout_s, deadline)
            return source

    async def _answer(self) -> Any:
        return await self._function(**await self._lane.with_key(self._call, self._arguments))

    async def _whole_reply(self, exchange: Exchange) -> Reply:
        """A complete response for a stream; one that LiteLLM cannot read may be in OpenAI's dialect."""
        try:
            response = await self._answer()
        except Exception:
            if exchange.whole and exchange.speaks_openai:
                return await native_reply(exchange)
            raise
        return translated_reply(exchange, response)

    def is_native(self, exchange: Exchange) -> bool:
        """False also where LiteLLM emulates schemas with tools, which only LiteLLM can reverse."""
        wanted = self._call.params.get("response_format") or {}
        emulated = wanted.get("type") == "json_schema" and self._provider not in _OWN_SCHEMAS
        instead = exchange.openai_instead and native_dialect(exchange.path) is not None
        return exchange.speaks_openai and (instead or (self._provider not in _TRANSLATED and not emulated))

    def fault(self, exchange: Exchange, error: Exception) -> UpstreamFault:
        """The fault of a failed call, from the exchange, else from LiteLLM's exception."""
        messages, code = self._arguments.get("messages") or (), self._lane.known_code(error)
        return fault_of_call(exchange, error, self._call, messages, code, self._refused_tool)

    def _refused_tool(self) -> str | None:
        """The schema of the first tool that LiteLLM cannot translate."""
        model, provider = self._arguments["model"], self._arguments["custom_llm_provider"]
        for index, tool in enumerate(self._arguments.get("tools") or ()):
            if not self._lane.translates(model, provider, tool):
                return f"tools[{index}].function.parameters"
        return None


async def _begin(answer: RecordedStream, exchange: Exchange, idle_timeout_s: float, deadline: float) -> None:
    """Wait for the first event of a stream, which shows the dialect that it is in."""
    try:
        with Patience(min(asyncio.get_running_loop().time() + idle_timeout_s, deadline)):
            head = await answer.head()
    except TimeoutError:
        raise TimeoutFault("the provider stopped sending for too long") from None
    except httpx.HTTPError:
        raise broken_off(exchange) from None
    begun = [] if exchange.document else [begun_payload(head) or {}]
    if exchange.document:
        with suppress(ValueError):
            begun = payloads_of(head)
    exchange.openai_instead = any(map(speaks_openai, begun))
