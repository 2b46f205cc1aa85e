"""Calls through `litellm.acompletion`, for every provider that LiteLLM supports.

LiteLLM builds the request for each provider; `gateway.providers.exchange` records the response. Neither the environment
of this process nor the caller's body can choose an address or a key.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import httpx
import orjson

from gateway.catalog.usage import ReportedUsage, usage_from_openai
from gateway.dialects.native_forms import begun_payload, native_dialect, payloads_of, speaks_openai
from gateway.dialects.raw_answer import last_error
from gateway.dialects.usage_report import take_usage
from gateway.providers.answers import ChunkSource, LitellmSource
from gateway.providers.attachments import LOST, attached
from gateway.providers.blocking import BlockingTransport
from gateway.providers.call import NO_KEY, Call, ProviderNames
from gateway.providers.errors import BrokenFault, CallRefused, FailedFault, MessagesRefused, TimeoutFault, UpstreamFault
from gateway.providers.exchange import (
    EXCHANGE,
    BoundedTransport,
    Exchange,
    NoSecondTransport,
    RecordedStream,
    exchange_fault,
    wire_fault,
)
from gateway.providers.history import broken_arguments
from gateway.providers.inband import fault_in
from gateway.providers.litellm_clients import (
    HANDLERS,
    OPENAI_ADDRESS,
    SDK_TIMEOUT_S,
    UNLIMITED,
    WHOLE_ONLY,
    CurrentHandler,
    Handlers,
    SdkClients,
    handler_cache,
)
from gateway.providers.litellm_readers import keep_service_tiers, read_whole_answers, read_whole_blocks, skip_comments
from gateway.providers.litellm_writers import keep_pictures
from gateway.providers.parameters import NEEDED
from gateway.providers.replies import WholeSource, translated_reply
from gateway.providers.transport import Connections
from gateway.providers.waiting import Patience
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
    # Images go to the provider by reference or not at all.
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",
    # Repetitive output is for the client to handle.
    "REPEATED_STREAMING_CHUNK_LIMIT": "1000000000",
}

# Providers with OpenAI's path but their own content format (lists of parts where text is expected).
_TRANSLATED = frozenset({"mistral", "cohere", "cohere_chat", "databricks"})
_MCP_GATEWAY = "litellm.responses.mcp.litellm_proxy_mcp_handler"
_OWN_SCHEMAS = frozenset({"openai", "custom_openai", "azure"})
_MAX_KNOWN = 1024
_QUOTED = re.compile(r"['`](\w+)['`]")
_WARM_CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "w"}}


class LitellmClient:
    """Calls LiteLLM. Create it in the event loop that uses it, after importing LiteLLM."""

    def __init__(self, litellm: Any, connect_timeout_s: float) -> None:
        self._litellm = litellm
        self._openai: Any = importlib.import_module("openai")
        self._internal_call: Any = importlib.import_module("litellm._internal_context").is_internal_call
        self._bridged: Any = importlib.import_module("litellm.main").responses_api_bridge_check
        self._at_responses: dict[tuple[Any, ...], bool] = {}
        self._timeout = httpx.Timeout(SDK_TIMEOUT_S, connect=connect_timeout_s)
        self._sdk: SdkClients | None = None
        self._handlers: Handlers | None = None
        self._http: httpx.AsyncClient | None = None
        self._blocking: httpx.Client | None = None

    async def start(self, connections: Connections) -> None:
        """Install our transport in LiteLLM and make dummy calls, which import the rest of it."""
        transports = importlib.import_module("litellm.llms.custom_httpx.aiohttp_transport")
        handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
        inner = transports.LiteLLMAiohttpTransport(client=lambda: connections.kept)
        fresh = transports.LiteLLMAiohttpTransport(client=lambda: connections.fresh)
        transport = BoundedTransport(inner, fresh=fresh)
        self._http = httpx.AsyncClient(transport=transport, timeout=self._timeout, follow_redirects=False)
        self._blocking = httpx.Client(transport=BlockingTransport(), timeout=self._timeout, follow_redirects=False)
        waiting = handlers.AsyncHTTPHandler(timeout=self._timeout)
        await waiting.client.aclose()
        waiting.client = self._http
        # After a lost connection LiteLLM's handler would make a second, uncounted call with a second client.
        waiting.create_client = lambda **_: httpx.AsyncClient(transport=NoSecondTransport())
        self._handlers = Handlers(waiting, handlers.HTTPHandler(client=self._blocking))
        self._sdk = SdkClients(self._litellm, self._http)
        await self._warm_up()

    async def close(self) -> None:
        """Close the HTTP clients."""
        if self._http is not None:
            await self._http.aclose()
        if self._blocking is not None:
            self._blocking.close()
        self._http, self._blocking, self._handlers, self._sdk = None, None, None, None

    def prepare(
        self, call: Call, found: ProviderNames, params: dict[str, Any], messages: list[dict[str, Any]]
    ) -> LitellmCall:
        """A prepared call; `params` and `messages` are the outgoing ones."""
        return LitellmCall(self, call, found.provider, self._arguments(call, found, params, messages))

    def embedding(self, call: Call, found: ProviderNames, body: Mapping[str, Any]) -> LitellmEmbeddingCall:
        """A prepared embedding call; `body` holds the input and its parameters."""
        arguments = self._arguments(call, found, {}, [])
        chat_only = ("messages", "stream", "_skip_mcp_handler", "allowed_openai_params", call.max_tokens_param)
        for name in chat_only:
            arguments.pop(name, None)
        return LitellmEmbeddingCall(self, call, found.provider, arguments | dict(body))

    async def aembedding(self, arguments: Mapping[str, Any]) -> Any:
        """Call `litellm.aembedding`; use within `recorded`."""
        return await self._litellm.aembedding(**arguments)

    async def acompletion(self, arguments: Mapping[str, Any]) -> Any:
        """Call `litellm.acompletion`; use within `recorded`."""
        return await self._litellm.acompletion(**arguments)

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

    def known_code(self, error: Exception) -> str:
        """The client-visible code of an error that LiteLLM recognised by its message; "" for others."""
        if isinstance(error, self._litellm.ContextWindowExceededError):
            return "context_length_exceeded"
        return "content_filter" if isinstance(error, self._litellm.ContentPolicyViolationError) else ""

    def _arguments(
        self, call: Call, found: ProviderNames, params: dict[str, Any], messages: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Keyword arguments for LiteLLM."""
        assert self._sdk is not None
        assert self._handlers is not None
        model, provider = found.model, found.provider
        by_sdk = self._sdk.kind(provider) != "http"
        arguments: dict[str, Any] = {**call.options, **params, "messages": messages}
        streamed = call.stream and provider not in WHOLE_ONLY
        if self.goes_to_responses(call, found, params):
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
            if by_sdk and call.max_tokens_param not in self._known_params(call.base_model or model, provider):
                # A server of OpenAI's dialect accepts it even if LiteLLM does not list it.
                arguments["allowed_openai_params"] = [call.max_tokens_param]
        if call.api_base is not None and provider in ("sagemaker", "sagemaker_chat", "sagemaker_nova"):
            suffix = "-response-stream" if streamed and call.api_base.endswith("/invocations") else ""
            arguments["sagemaker_base_url"] = call.api_base + suffix
        if streamed:
            arguments["stream_options"] = {"include_usage": True}
        if call.base_model is not None:
            arguments["base_model"] = call.base_model
        if call.api_base is not None:
            arguments["api_base"] = call.api_base
        if call.api_key is not None or call.api_base is not None:
            arguments["api_key"] = call.api_key or NO_KEY
        if call.extra_headers:
            arguments["extra_headers"] = dict(call.extra_headers)
        arguments["client"] = self._sdk.client(call, found) if by_sdk else self._handlers.waiting
        return arguments

    def goes_to_responses(self, call: Call, found: ProviderNames, params: Mapping[str, Any]) -> bool:
        """True if LiteLLM translates the call for /v1/responses, as some models need it."""
        base = call.api_base or found.api_base or (OPENAI_ADDRESS if found.provider == "openai" else None)
        tools, effort, search = (params.get(name) for name in ("tools", "reasoning_effort", "web_search_options"))
        has_function = any(tool.get("type") == "function" for tool in tools or ())
        # All that LiteLLM's check reads; it looks the model up again every time, and every call asks.
        key = (found.model, found.provider, base, has_function, effort, search is not None)
        known = self._at_responses.get(key)
        if known is None:
            if len(self._at_responses) >= _MAX_KNOWN:
                self._at_responses.clear()
            info, _ = self._bridged(
                model=found.model, custom_llm_provider=found.provider, api_base=base, tools=tools,
                reasoning_effort=effort, web_search_options=search,
            )  # fmt: skip
            known = self._at_responses[key] = info.get("mode") == "responses"
        return known

    def _may_drop(self, call: Call, model: str, provider: str) -> bool:
        """False when LiteLLM would drop the token limit of the reservation or parameters that shape the response."""
        known = self._known_params(call.base_model or model, provider)
        needed = {name for name in NEEDED if name in call.params}
        limit = {call.max_tokens_param} if call.max_tokens is not None and provider not in UNLIMITED else set()
        assert self._sdk is not None
        return needed | (set() if self._sdk.kind(provider) != "http" else limit) <= known

    def _known_params(self, model: str, provider: str) -> frozenset[str]:
        known = self._litellm.get_supported_openai_params(model=model, custom_llm_provider=provider)
        return frozenset(known or ())

    async def _warm_up(self) -> None:
        """Make one call of each kind against a mock transport."""
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
                    await self.acompletion(arguments)


_WRITES_MESSAGES = "litellm.litellm_core_utils.prompt_templates."
_UNTRANSLATED = (
    "the messages cannot be written in the form of the model's provider; expected the call of every tool result before "
    "it, and types of pictures and files that the provider takes"
)


class LitellmCall:
    """One call through `acompletion`."""

    def __init__(self, lane: LitellmClient, call: Call, provider: str, arguments: Mapping[str, Any]) -> None:
        self._lane = lane
        self._call = call
        self._provider = provider
        self._arguments = arguments

    async def whole(self, exchange: Exchange) -> Any:
        """Make the call; returns LiteLLM's response object."""
        exchange.attached = attached(self._arguments["messages"])
        with self._lane.recorded(exchange):
            return await self._lane.acompletion(self._arguments)

    async def opened(self, exchange: Exchange, deadline: float) -> ChunkSource:
        """Start the call as a stream, or as one complete response where LiteLLM cannot stream."""
        exchange.attached = attached(self._arguments["messages"])
        exchange.streaming = self._arguments["stream"]
        with self._lane.recorded(exchange):
            response = await self._lane.acompletion(self._arguments)
            if not self._arguments["stream"]:
                return WholeSource(translated_reply(exchange, response))
            answer = exchange.answer
            if answer is not None and not answer.begun and self.is_native(exchange):
                return WireSource(answer, exchange, self._call.idle_timeout_s, deadline)
            source = LitellmSource(response, self._call.idle_timeout_s, deadline, self.fault, exchange)
            await source.open()
            answer = exchange.answer
            if isinstance(answer, RecordedStream) and not answer.begun and native_dialect(exchange.path):
                await _begin(answer, exchange, self._call.idle_timeout_s, deadline)
                if exchange.openai_instead:
                    return WireSource(answer, exchange, self._call.idle_timeout_s, deadline)
            return _RecordedSource(source, self._lane, exchange)

    def is_native(self, exchange: Exchange) -> bool:
        """False also where LiteLLM emulates schemas with tools, which only LiteLLM can reverse."""
        wanted = self._call.params.get("response_format") or {}
        emulated = wanted.get("type") == "json_schema" and self._provider not in _OWN_SCHEMAS
        ordinary = self._provider not in _TRANSLATED and not emulated
        return exchange.speaks_openai and (exchange.openai_instead or ordinary)

    def fault(self, exchange: Exchange, error: Exception) -> UpstreamFault:
        """The fault of a failed call, from the exchange, else from LiteLLM's exception."""
        if isinstance(error, UpstreamFault):
            return error
        if exchange.lost is not None:
            return MessagesRefused.of(exchange.lost, LOST)
        code = self._lane.known_code(error)
        seen = exchange_fault(exchange, code)
        if seen is not None:
            return seen
        if exchange.status:
            unread = BrokenFault("the provider's answer was not a chat completion", status=exchange.status)
            return _failed_response(exchange) or unread.billed(_reported(exchange))
        missing = next((each.name for each in _chain(error) if isinstance(each, ModuleNotFoundError)), None)
        if exchange.attempts == 0 and missing is not None:
            _log.error("a call needs the Python package %s, which is not installed beside the gateway", missing)
            return FailedFault("the model's provider needs a Python package that the gateway lacks", retryable=False)
        status = getattr(error, "status_code", 0)
        status = status if isinstance(status, int) else 0
        name = _refused_name(error, self._call) if exchange.attempts == 0 else None
        if name is not None:
            return CallRefused.of(name)
        where = broken_arguments(self._arguments.get("messages") or ()) if exchange.attempts == 0 else None
        if where is not None:
            return MessagesRefused.of(where, "expected JSON, which the model's provider needs")
        if exchange.attempts == 0 and exchange.attached:
            return MessagesRefused.of(next(iter(exchange.attached)), LOST)  # LiteLLM's code gave up over it
        if exchange.attempts == 0 and (status == 400 or code):
            return CallRefused("the model's provider does not accept this request", status=400, code=code)
        if exchange.attempts == 0 and _in_messages(error):
            return MessagesRefused(_UNTRANSLATED, status=400)
        _log.warning("call failed inside LiteLLM: %s", type(error).__name__)
        return FailedFault("the provider could not be called", dispatched=exchange.reached, retryable=False)


async def _begin(answer: RecordedStream, exchange: Exchange, idle_timeout_s: float, deadline: float) -> None:
    """Wait for the first event of a stream, which shows the dialect that it is in."""
    try:
        async with Patience(min(asyncio.get_running_loop().time() + idle_timeout_s, deadline)):
            head = await answer.head()
    except TimeoutError:
        raise TimeoutFault("the provider stopped sending for too long") from None
    except httpx.HTTPError:
        raise wire_fault(exchange) from None
    begun = [] if exchange.document else [begun_payload(head) or {}]
    if exchange.document:
        with suppress(ValueError):
            begun = payloads_of(head)
    exchange.openai_instead = any(map(speaks_openai, begun))


def _failed_response(exchange: Exchange) -> UpstreamFault | None:
    """The fault that an answer of status 200 reports, with its usage: a whole one, or the last event of a stream."""
    try:
        payload = orjson.loads(exchange.body)
    except ValueError:
        payload = last_error(exchange.body)
    if isinstance(payload, list):
        payload = next((each for each in payload if isinstance(each, dict) and each.get("error")), None)
    if not isinstance(payload, dict):
        return None
    failed = payload.get("status") == "failed" or payload.get("type") == "error"
    fault = fault_in(payload, exchange.headers, named_error=failed, alone=True)
    usage = payload.get("usage")
    return None if fault is None else fault.billed(usage_from_openai(usage if isinstance(usage, dict) else None))


def _reported(exchange: Exchange) -> ReportedUsage:
    """The usage in a whole answer that LiteLLM could not read."""
    try:
        payload = orjson.loads(exchange.body) if exchange.whole else None
    except ValueError:
        return None
    return usage_from_openai(take_usage(payload)) if isinstance(payload, dict) else None


def _refused_name(error: BaseException, call: Call) -> str | None:
    """The caller's parameter that LiteLLM, or the SDK that it calls, does not know."""
    for each in _chain(error):
        if isinstance(each, TypeError) or type(each).__name__ == "UnsupportedParamsError":
            named = _QUOTED.findall(str(each))
            return next((name for name in named if name in call.params or name in call.extras), None)
    return None


def _in_messages(error: BaseException) -> bool:
    """True if LiteLLM failed while it wrote the messages in the provider's form."""
    return any(
        str(frame.f_globals.get("__name__")).startswith(_WRITES_MESSAGES)
        for each in _chain(error)
        for frame, _ in traceback.walk_tb(each.__traceback__)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class LitellmEmbeddingCall(LitellmCall):
    """One call through `aembedding`."""

    async def whole(self, exchange: Exchange) -> Any:
        """Make the call; returns LiteLLM's embedding response."""
        with self._lane.recorded(exchange):
            return await self._lane.aembedding(self._arguments)


class _RecordedSource:
    """Reads chunks within the recorded context: LiteLLM's code may make further requests."""

    def __init__(self, inner: ChunkSource, lane: LitellmClient, exchange: Exchange) -> None:
        self._inner = inner
        self._lane = lane
        self._exchange = exchange

    async def next_chunk(self) -> dict[str, Any] | None:
        with self._lane.recorded(self._exchange):
            return await self._inner.next_chunk()

    async def aclose(self) -> None:
        await self._inner.aclose()


def _no_price(*_: Any, **__: Any) -> None:
    return None


def _without_null(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None or name == "content"}


class _WithoutMcp(ModuleType):
    """LiteLLM's module of MCP servers, which no call here has (gateway.dialects.arguments)."""

    class LiteLLM_Proxy_MCP_Handler:
        """Says of every call that it has none."""

        @staticmethod
        def should_use_litellm_mcp_gateway(tools: object) -> bool:
            """False: the tools are sent as they are."""
            return False


def import_litellm() -> Any:
    """Import LiteLLM (takes seconds), without its logging and telemetry."""
    for name, value in LITELLM_ENVIRONMENT.items():
        os.environ[name] = value
    # Its bridge from chat to /v1/responses (gpt-5-codex, o3-pro) would import the MCP package, which is not installed.
    sys.modules.setdefault(_MCP_GATEWAY, _WithoutMcp(_MCP_GATEWAY))
    with warnings.catch_warnings():
        # LiteLLM warns when it builds its own types: do it here instead of during the first call.
        warnings.simplefilter("ignore")
        litellm: Any = importlib.import_module("litellm")
        for answer in (litellm.ModelResponse, litellm.types.utils.ModelResponseStream):
            answer().model_dump()
    # It puts its own usage into an event of OpenAI's SDK, which would write a line for it.
    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
    # An answer that filled the context window was cut; LiteLLM takes a word that it does not know for `stop`.
    finishes: Any = importlib.import_module("litellm.litellm_core_utils.core_helpers")
    finishes._FINISH_REASON_MAP["model_context_window_exceeded"] = "length"
    read_whole_blocks(importlib.import_module("litellm.llms.anthropic.chat.handler").ModelResponseIterator)
    keep_service_tiers(importlib.import_module("litellm.llms.groq.chat.transformation").GroqChatConfig)
    read_whole_answers(importlib.import_module("litellm.llms.anthropic.chat.transformation").AnthropicConfig)
    google: Any = importlib.import_module("litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini")
    skip_comments(google.ModelResponseIterator)
    keep_pictures()
    litellm.in_memory_llm_clients_cache = handler_cache()
    litellm.module_level_aclient = CurrentHandler("waiting")
    litellm.module_level_client = CurrentHandler("blocking")
    # The ledger computes costs. LiteLLM's own computation takes a quarter of its time and is not used.
    importlib.import_module("litellm.litellm_core_utils.litellm_logging").Logging.response_cost_calculator = _no_price
    # With tool calls or reasoning the content may be null, and some servers require the field.
    messages: Any = importlib.import_module("litellm.utils")
    messages.cleanup_none_field_in_message = _without_null
    litellm.disable_hf_tokenizer_download = True
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = False
    litellm.num_retries = 0
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its messages repeat provider responses, which may contain keys.
        logging.getLogger(name).disabled = True
    for name in ("httpx", "openai", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    importlib.import_module("openai")
    return litellm
