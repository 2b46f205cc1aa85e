"""The providers, through LiteLLM: `Upstream.complete` and `Upstream.open_stream`. The only importer of litellm.

LiteLLM makes the request that each provider understands; what came back is read off the wire by `gateway.wire`. One
call is one request: no retries, no fallbacks, no callbacks, no address or key out of the environment of this process
or out of the caller's body. Every failure leaves as an UpstreamFault whose words are ours.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import httpx

from gateway.arguments import outgoing_messages, outgoing_params
from gateway.chunks import ChunkSource, LitellmSource, UpstreamStream, WireSource
from gateway.faults import BrokenFault, CallRefused, ConnectFault, FailedFault, UpstreamFault, fault_from_status
from gateway.replies import Reply, native_reply, translated_reply
from gateway.wire import EXCHANGE, BoundedTransport, Exchange, retry_after_s, timeout_fault, uninterrupted, wire_fault

__all__ = ["Call", "Reply", "Upstream", "UpstreamStream"]

_log = logging.getLogger("seqroute.upstream")

LITELLM_ENVIRONMENT: Mapping[str, str] = {
    # Nothing is fetched at import, and no .env file of the working directory is read.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "HF_HUB_OFFLINE": "1",
    # A picture goes to the provider by reference or not at all.
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",
    # A model that says the same hundred times is the client's business.
    "REPEATED_STREAMING_CHUNK_LIMIT": "1000000000",
}

# What LiteLLM sends through the OpenAI SDK, so that it wants one of its clients.
_OPENAI_PROVIDERS = frozenset({"openai", "custom_openai"})
# Providers that fetch a picture by its address themselves and are given it as it is.
_BY_REFERENCE = _OPENAI_PROVIDERS | {
    "azure", "deepinfra", "fireworks_ai", "groq", "hosted_vllm", "openrouter", "together_ai", "xai",
}  # fmt: skip
# Providers with OpenAI's path but content of their own (lists of parts where text is expected).
_TRANSLATED = frozenset({"mistral", "cohere", "cohere_chat", "databricks"})
_NO_KEY = "none"
"""Sent where a deployment has an address but no key, so that no key out of the environment goes to that address."""
_SDK_TIMEOUT_S = 3600.0
_WARM_CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "w"}}
DEFAULT_AZURE_API_VERSION = "2024-10-21"


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at one deployment. `timeout_s` bounds the whole call, `stream_timeout_s` the wait for a stream's
    first chunk, `idle_timeout_s` the wait between chunks. `params` are the caller's, checked; they are filtered again.
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
    stream_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    drop_params: bool = False
    """Leave out OpenAI parameters that the model's provider does not take, instead of refusing the call."""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The operator's own arguments for LiteLLM (api_version, organization, aws_..., vertex_...), never the caller's."""


class Upstream:
    """All providers of this process. `start` imports LiteLLM (seconds), `close` gives every connection back."""

    def __init__(
        self, *, max_connections: int = 512, max_connections_per_host: int = 256, connect_timeout_s: float = 10.0
    ) -> None:
        self._max_connections = max_connections
        self._max_connections_per_host = max_connections_per_host
        self._timeout = httpx.Timeout(_SDK_TIMEOUT_S, connect=connect_timeout_s)
        self._litellm: Any = None
        self._handler: Any = None
        self._http: httpx.AsyncClient | None = None
        self._sdk_clients: dict[tuple[str | None, ...], Any] = {}
        self._openai: Any = None
        self._internal_call: Any = None

    async def start(self) -> None:
        if self._litellm is None:
            self._litellm, self._openai = await asyncio.to_thread(_import_litellm)
        self._internal_call = importlib.import_module("litellm._internal_context").is_internal_call
        transports = importlib.import_module("litellm.llms.custom_httpx.aiohttp_transport")
        handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
        inner = transports.LiteLLMAiohttpTransport(client=self._new_session)
        self._http = httpx.AsyncClient(transport=BoundedTransport(inner), timeout=self._timeout, follow_redirects=False)
        self._handler = handlers.AsyncHTTPHandler(timeout=self._timeout)
        await self._handler.client.aclose()
        self._handler.client = self._http

        await self._warm_up()

    async def _warm_up(self) -> None:
        """One call of each kind that goes nowhere: LiteLLM imports much of itself in the middle of its first call."""
        answer = {"id": "w", "object": "chat.completion", "created": 1, "model": "w", "choices": [_WARM_CHOICE]}

        def answered(request: httpx.Request) -> httpx.Response:
            if b'"stream":true' in request.content.replace(b" ", b""):
                return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"data: [DONE]\n\n")
            return httpx.Response(200, json=answer)

        async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as nowhere:
            client = self._openai.AsyncOpenAI(base_url="http://nowhere.invalid", api_key=_NO_KEY, http_client=nowhere)
            for stream in (False, True):
                arguments = {"model": "w", "custom_llm_provider": "openai", "api_key": _NO_KEY, "client": client}
                async with self._recorded(Exchange()):
                    await self._litellm.acompletion(
                        messages=[{"role": "user", "content": "w"}], stream=stream, max_retries=0, **arguments
                    )

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
        self._http, self._handler = None, None
        self._sdk_clients.clear()

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._max_connections,
            limit_per_host=self._max_connections_per_host,
            keepalive_timeout=15.0,
            ttl_dns_cache=60,
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    async def complete(self, call: Call) -> Reply:
        """One whole answer. Raises UpstreamFault (and InvalidRequest for content no provider may be sent)."""
        arguments, provider = self._arguments(call, stream=False)
        exchange = Exchange(organization=call.options.get("organization"))
        response, fault = None, None
        try:
            async with self._recorded(exchange), asyncio.timeout(call.timeout_s) as limit:
                response = await self._litellm.acompletion(**arguments)
        except TimeoutError:
            fault = timeout_fault(exchange, limit.expired())
        except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its providers' code raises
            fault = self._fault(exchange, error)
        finally:
            await uninterrupted(exchange.close())
        # Raised out here a fault carries no context: LiteLLM's exceptions repeat what the provider said.
        if exchange.whole and _is_plain(call, provider, exchange):
            return native_reply(exchange)
        if fault is not None:
            raise fault
        return translated_reply(exchange, response)

    async def open_stream(self, call: Call) -> UpstreamStream:
        """A stream whose first chunk is there already. Raises as `complete` does."""
        arguments, provider = self._arguments(call, stream=True)
        exchange = Exchange(organization=call.options.get("organization"))
        deadline = asyncio.get_running_loop().time() + call.timeout_s
        stream: UpstreamStream | None = None
        fault: UpstreamFault | None = None
        started = False
        try:
            async with self._recorded(exchange), asyncio.timeout(min(call.stream_timeout_s, call.timeout_s)) as limit:
                response = await self._litellm.acompletion(**arguments)
                stream = UpstreamStream(self._source(response, provider, exchange, call, deadline), exchange)
                await stream.read_ahead()
            started = True
        except TimeoutError:
            fault = timeout_fault(exchange, limit.expired())
        except UpstreamFault as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - as in `complete`
            fault = self._fault(exchange, error)
        finally:
            if not started:
                await uninterrupted(exchange.close() if stream is None else stream.aclose())
        if fault is not None or stream is None:
            raise fault or BrokenFault("the provider's answer was not a stream")
        return stream

    @asynccontextmanager
    async def _recorded(self, exchange: Exchange) -> AsyncIterator[None]:
        """Within, the transport writes into `exchange`, and LiteLLM takes the call for one of its own inner calls:
        it keeps no logs of those, starts no logging worker and runs no callbacks."""
        mark, inner = EXCHANGE.set(exchange), self._internal_call.set(True)
        try:
            yield
        finally:
            EXCHANGE.reset(mark)
            self._internal_call.reset(inner)

    def _source(self, response: Any, provider: str, exchange: Exchange, call: Call, deadline: float) -> ChunkSource:
        answer = exchange.answer
        if answer is not None and not answer.begun and _is_plain(call, provider, exchange):
            return WireSource(answer, exchange, call.idle_timeout_s, deadline)
        return LitellmSource(response, call.idle_timeout_s, deadline, self._fault, exchange)

    def _arguments(self, call: Call, *, stream: bool) -> tuple[dict[str, Any], str]:
        """LiteLLM's keyword arguments, and its name of the provider."""
        if self._litellm is None or self._http is None:
            raise RuntimeError("Upstream.start() was not awaited")
        model, provider = self._provider(call)
        by_sdk = provider in _OPENAI_PROVIDERS or provider == "azure"
        arguments: dict[str, Any] = {**call.options, **outgoing_params(call.params)}
        arguments["messages"] = outgoing_messages(call.messages, by_reference=provider in _BY_REFERENCE)
        arguments |= {"model": model, "custom_llm_provider": provider, "stream": stream}
        arguments |= {"max_retries": 0, "num_retries": 0, "caching": False, "no-log": True}
        arguments["drop_params"] = call.drop_params and self._may_drop(call, model, provider)
        # Callers cannot name MCP servers (gateway.arguments), and the check for them would import their package.
        arguments["_skip_mcp_handler"] = True
        arguments["timeout"] = self._timeout if by_sdk else _SDK_TIMEOUT_S
        if call.max_tokens is not None:
            arguments[call.max_tokens_param] = call.max_tokens
        if stream:
            arguments["stream_options"] = {"include_usage": True}
        if call.api_base is not None:
            arguments["api_base"] = call.api_base
        if call.api_key is not None or call.api_base is not None:
            arguments["api_key"] = call.api_key or _NO_KEY
        if call.extra_headers:
            arguments["extra_headers"] = dict(call.extra_headers)
        arguments["client"] = self._sdk_client(call, provider) if by_sdk else self._handler
        return arguments, provider

    def _may_drop(self, call: Call, model: str, provider: str) -> bool:
        """What must not be dropped in silence: the limit that the reservation rests on, and what shapes the answer."""
        known = self._litellm.get_supported_openai_params(model=model, custom_llm_provider=provider) or ()
        needed = {name for name in ("tools", "response_format") if name in call.params}
        return needed | ({call.max_tokens_param} if call.max_tokens is not None else set()) <= set(known)

    def _provider(self, call: Call) -> tuple[str, str]:
        try:
            model, provider, _, _ = self._litellm.get_llm_provider(
                model=call.litellm_model,
                custom_llm_provider=call.options.get("custom_llm_provider"),
                api_base=call.api_base,
                api_key=call.api_key or _NO_KEY,
            )
        except Exception:  # noqa: BLE001 - its text would repeat our arguments
            raise CallRefused("no provider is known for the model") from None
        return model, provider

    def _sdk_client(self, call: Call, provider: str) -> Any:
        """One SDK client per address and key; all share one connection pool."""
        wanted = (provider, call.api_base, call.api_key, call.options.get("api_version"))
        client = self._sdk_clients.get(wanted)
        if client is None:
            keyless = _NO_KEY if call.api_base else os.environ.get("OPENAI_API_KEY", _NO_KEY)
            common = {
                "api_key": call.api_key or keyless,
                "max_retries": 0,
                "http_client": self._http,
                "timeout": _SDK_TIMEOUT_S,
            }
            if provider == "azure":
                client = self._openai.AsyncAzureOpenAI(
                    azure_endpoint=call.api_base,
                    api_version=call.options.get("api_version", DEFAULT_AZURE_API_VERSION),
                    **common,
                )
            else:
                client = self._openai.AsyncOpenAI(base_url=call.api_base or "https://api.openai.com/v1", **common)
            self._sdk_clients[wanted] = client
        return client

    def _fault(self, exchange: Exchange, error: Exception) -> UpstreamFault:
        """What happened, from the wire first and from LiteLLM's exception where the wire says nothing."""
        if isinstance(error, UpstreamFault):
            return error
        code = self._known_code(error)
        if exchange.status >= 400:
            return fault_from_status(exchange.status, retry_after_s(exchange.headers), code)
        if exchange.attempts and not exchange.reached:
            return ConnectFault("the provider could not be reached")
        if exchange.failure is not None:
            return wire_fault(exchange)
        if 300 <= exchange.status < 400:
            return FailedFault("the provider redirected to another address", status=exchange.status)
        if exchange.status:
            return BrokenFault("the provider's answer was not a chat completion", status=exchange.status)
        status = getattr(error, "status_code", 0)
        status = status if isinstance(status, int) else 0
        if exchange.attempts == 0 and (status == 400 or code):
            return CallRefused("the model's provider does not take this request", status=400, code=code)
        _log.warning("call failed inside LiteLLM: %s", type(error).__name__)
        return FailedFault("the provider could not be called", dispatched=exchange.reached, retryable=False)

    def _known_code(self, error: Exception) -> str:
        if isinstance(error, self._litellm.ContextWindowExceededError):
            return "context_length_exceeded"
        return "content_filter" if isinstance(error, self._litellm.ContentPolicyViolationError) else ""


def _is_plain(call: Call, provider: str, exchange: Exchange) -> bool:
    """Whether the provider's words are given as they came. LiteLLM emulates schemas with tools for some providers, and
    must undo that itself."""
    emulated = "response_format" in call.params and provider not in _OPENAI_PROVIDERS | {"azure"}
    return exchange.speaks_openai and provider not in _TRANSLATED and not emulated


def _import_litellm() -> tuple[Any, Any]:
    for name, value in LITELLM_ENVIRONMENT.items():
        os.environ[name] = value
    with warnings.catch_warnings():
        # About its own types, when they are built: here rather than in the middle of the first call.
        warnings.simplefilter("ignore")
        litellm: Any = importlib.import_module("litellm")
        for answer in (litellm.ModelResponse, litellm.types.utils.ModelResponseStream):
            answer().model_dump()
    litellm.disable_hf_tokenizer_download = True
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = False
    litellm.num_retries = 0
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its messages repeat provider answers, which may repeat keys.
        logging.getLogger(name).disabled = True
    for name in ("httpx", "openai", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return litellm, importlib.import_module("openai")
