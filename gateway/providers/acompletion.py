"""The lane through `litellm.acompletion`, for every provider that LiteLLM knows.

LiteLLM makes the request that each provider understands; what came back is read off the wire by
`gateway.providers.exchange`. Nothing out of the environment of this process or out of the caller's body chooses an
address or a key.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx

from gateway.providers.answers import ChunkSource, LitellmSource
from gateway.providers.call import NO_KEY, Call
from gateway.providers.errors import BrokenFault, CallRefused, FailedFault, UpstreamFault
from gateway.providers.exchange import EXCHANGE, BoundedTransport, Exchange, exchange_fault
from gateway.providers.wire_source import WireSource

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

OPENAI_PROVIDERS = frozenset({"openai", "custom_openai"})
"""What LiteLLM sends through the OpenAI SDK, so that it wants one of its clients."""
# Providers with OpenAI's path but content of their own (lists of parts where text is expected).
_TRANSLATED = frozenset({"mistral", "cohere", "cohere_chat", "databricks"})
_SDK_TIMEOUT_S = 3600.0
_MAX_CLIENTS = 512
_WARM_CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "w"}}
DEFAULT_AZURE_API_VERSION = "2024-10-21"


class LitellmClient:
    """Made after LiteLLM was imported, inside the loop that uses it; `session` makes the connections."""

    def __init__(self, litellm: Any, connect_timeout_s: float) -> None:
        self._litellm = litellm
        self._openai: Any = importlib.import_module("openai")
        self._internal_call: Any = importlib.import_module("litellm._internal_context").is_internal_call
        self._timeout = httpx.Timeout(_SDK_TIMEOUT_S, connect=connect_timeout_s)
        self._sdk_clients: dict[tuple[str | None, ...], Any] = {}
        self._handler: Any = None
        self._http: httpx.AsyncClient | None = None

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Put our transport under LiteLLM's clients, and call once in vain: LiteLLM imports much of itself then."""
        transports = importlib.import_module("litellm.llms.custom_httpx.aiohttp_transport")
        handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
        inner = transports.LiteLLMAiohttpTransport(client=lambda: session)
        self._http = httpx.AsyncClient(transport=BoundedTransport(inner), timeout=self._timeout, follow_redirects=False)
        self._handler = handlers.AsyncHTTPHandler(timeout=self._timeout)
        await self._handler.client.aclose()
        self._handler.client = self._http
        await self._warm_up()

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
        self._http, self._handler = None, None
        self._sdk_clients.clear()

    def sending(
        self, call: Call, model: str, provider: str, params: dict[str, Any], messages: list[dict[str, Any]]
    ) -> LitellmSending:
        """`params` and `messages` are the outgoing ones (`gateway.dialects.arguments`)."""
        return LitellmSending(self, call, provider, self._arguments(call, model, provider, params, messages))

    async def acompletion(self, arguments: Mapping[str, Any]) -> Any:
        """To be awaited within `recorded`."""
        return await self._litellm.acompletion(**arguments)

    @asynccontextmanager
    async def recorded(self, exchange: Exchange) -> AsyncIterator[None]:
        """Within, the transport writes into `exchange`, and LiteLLM takes the call for one of its own inner calls:
        it keeps no logs of those, starts no logging worker and runs no callbacks."""
        mark, inner = EXCHANGE.set(exchange), self._internal_call.set(True)
        try:
            yield
        finally:
            EXCHANGE.reset(mark)
            self._internal_call.reset(inner)

    def known_code(self, error: Exception) -> str:
        """What LiteLLM made of an error's words, where clients have a code for it."""
        if isinstance(error, self._litellm.ContextWindowExceededError):
            return "context_length_exceeded"
        return "content_filter" if isinstance(error, self._litellm.ContentPolicyViolationError) else ""

    def _arguments(
        self, call: Call, model: str, provider: str, params: dict[str, Any], messages: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """LiteLLM's keyword arguments."""
        by_sdk = provider in OPENAI_PROVIDERS or provider == "azure"
        arguments: dict[str, Any] = {**call.options, **params, "messages": messages}
        arguments |= {"model": model, "custom_llm_provider": provider, "stream": call.stream}
        arguments |= {"max_retries": 0, "num_retries": 0, "caching": False, "no-log": True}
        arguments["drop_params"] = call.drop_params and self._may_drop(call, model, provider)
        # Callers cannot name MCP servers (gateway.arguments), and the check for them would import their package.
        arguments["_skip_mcp_handler"] = True
        arguments["timeout"] = self._timeout if by_sdk else _SDK_TIMEOUT_S
        if call.max_tokens is not None:
            arguments[call.max_tokens_param] = call.max_tokens
        if call.stream:
            arguments["stream_options"] = {"include_usage": True}
        if call.api_base is not None:
            arguments["api_base"] = call.api_base
        if call.api_key is not None or call.api_base is not None:
            arguments["api_key"] = call.api_key or NO_KEY
        if call.extra_headers:
            arguments["extra_headers"] = dict(call.extra_headers)
        arguments["client"] = self._sdk_client(call, provider) if by_sdk else self._handler
        return arguments

    def _may_drop(self, call: Call, model: str, provider: str) -> bool:
        """What must not be dropped in silence: the limit that the reservation rests on, and what shapes the answer."""
        known = self._litellm.get_supported_openai_params(model=model, custom_llm_provider=provider) or ()
        needed = {name for name in ("tools", "response_format") if name in call.params}
        return needed | ({call.max_tokens_param} if call.max_tokens is not None else set()) <= set(known)

    def _sdk_client(self, call: Call, provider: str) -> Any:
        """One SDK client per address and key; all share one connection pool."""
        wanted = (provider, call.api_base, call.api_key, call.options.get("api_version"))
        client = self._sdk_clients.get(wanted)
        if client is None:
            keyless = NO_KEY if call.api_base else os.environ.get("OPENAI_API_KEY", NO_KEY)
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
            if len(self._sdk_clients) >= _MAX_CLIENTS:
                self._sdk_clients.clear()
            self._sdk_clients[wanted] = client
        return client

    async def _warm_up(self) -> None:
        """One call of each kind that goes nowhere."""
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
                async with self.recorded(Exchange()):
                    await self.acompletion(arguments)


class LitellmSending:
    """One call through `acompletion`."""

    def __init__(self, lane: LitellmClient, call: Call, provider: str, arguments: Mapping[str, Any]) -> None:
        self._lane = lane
        self._call = call
        self._provider = provider
        self._arguments = arguments

    async def whole(self, exchange: Exchange) -> Any:
        async with self._lane.recorded(exchange):
            return await self._lane.acompletion(self._arguments)

    async def opened(self, exchange: Exchange, deadline: float) -> ChunkSource:
        async with self._lane.recorded(exchange):
            response = await self._lane.acompletion(self._arguments)
            answer = exchange.answer
            if answer is not None and not answer.begun and self.is_native(exchange):
                return WireSource(answer, exchange, self._call.idle_timeout_s, deadline)
            source = LitellmSource(response, self._call.idle_timeout_s, deadline, self.fault, exchange)
            await source.open()
            return source

    def is_native(self, exchange: Exchange) -> bool:
        """LiteLLM emulates schemas with tools for some providers, and must undo that itself."""
        emulated = "response_format" in self._call.params and self._provider not in OPENAI_PROVIDERS | {"azure"}
        return exchange.speaks_openai and self._provider not in _TRANSLATED and not emulated

    def fault(self, exchange: Exchange, error: Exception) -> UpstreamFault:
        """What happened, from the wire first and from LiteLLM's exception where the wire says nothing."""
        if isinstance(error, UpstreamFault):
            return error
        code = self._lane.known_code(error)
        seen = exchange_fault(exchange, code)
        if seen is not None:
            return seen
        if exchange.status:
            return BrokenFault("the provider's answer was not a chat completion", status=exchange.status)
        status = getattr(error, "status_code", 0)
        status = status if isinstance(status, int) else 0
        if exchange.attempts == 0 and (status == 400 or code):
            return CallRefused("the model's provider does not take this request", status=400, code=code)
        _log.warning("call failed inside LiteLLM: %s", type(error).__name__)
        return FailedFault("the provider could not be called", dispatched=exchange.reached, retryable=False)


def _no_price(*_: Any, **__: Any) -> None:
    return None


def import_litellm() -> Any:
    """Import LiteLLM (seconds) in the environment it is to be kept in."""
    for name, value in LITELLM_ENVIRONMENT.items():
        os.environ[name] = value
    with warnings.catch_warnings():
        # About its own types, when they are built: here rather than in the middle of the first call.
        warnings.simplefilter("ignore")
        litellm: Any = importlib.import_module("litellm")
        for answer in (litellm.ModelResponse, litellm.types.utils.ModelResponseStream):
            answer().model_dump()
    # What a call costs is the ledger's to say. LiteLLM's own price takes a quarter of its time, and nobody reads it.
    importlib.import_module("litellm.litellm_core_utils.litellm_logging").Logging.response_cost_calculator = _no_price
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
    importlib.import_module("openai")
    return litellm
