"""The providers, through LiteLLM: `Upstream.complete` and `Upstream.open_stream`. The only importer of litellm.

LiteLLM makes the request that each provider understands; what came back is read off the wire by `gateway.wire`. One
call is one request: no retries, no fallbacks, no callbacks, no address or key out of the environment of this process
or out of the caller's body. Every failure leaves as an UpstreamFault whose words are ours.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import aiohttp
import httpx
import orjson

from gateway.arguments import outgoing_messages, outgoing_params
from gateway.errors import InvalidRequest
from gateway.faults import (
    MAX_RETRY_AFTER_S,
    BrokenFault,
    CallRefused,
    ConnectFault,
    FailedFault,
    TimeoutFault,
    UpstreamFault,
    fault_from_status,
)
from gateway.sse import Event, EventReader, EventTooLarge
from gateway.usage import ReportedUsage, usage_from_openai
from gateway.wire import EXCHANGE, AnswerTooLarge, BoundedTransport, Exchange

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

# What LiteLLM itself sends through the OpenAI SDK; for these the raw answer is OpenAI's dialect already.
_OPENAI_PROVIDERS = frozenset({"openai", "custom_openai"})
_NO_KEY = "none"
"""Sent where a deployment has an address but no key, so that no key out of the environment goes to that address."""
_SDK_TIMEOUT_S = 3600.0
_CONNECT_TIMEOUT_S = 10.0


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
    options: Mapping[str, str] = field(default_factory=dict)
    """The operator's provider options: api_version, organization, and the like. Never the caller's."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `body` is the chat completion; `usage` only what the provider itself reported."""

    body: dict[str, Any]
    usage: ReportedUsage
    finish_reason: str | None
    provider_model: str | None


class UpstreamStream:
    """The chunks of one answer, as dicts; the last ones may carry `usage` with empty `choices`.

    Ends normally only when the provider ended properly, that is, gave a finish reason; everything else raises an
    UpstreamFault. `aclose` lets go of the provider at once and may be called at any time, any number of times.
    """

    def __init__(self, source: _ChunkSource, exchange: Exchange) -> None:
        self.usage: ReportedUsage = None
        self.finish_reason: str | None = None
        self.provider_model: str | None = None
        self.ended_properly = False
        self._source = source
        self._exchange = exchange
        self._ahead: list[dict[str, Any]] = []
        self._unfinished: set[int] = set()
        self._closed = False

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._ahead:
            return self._ahead.pop(0)
        if self._closed or self.ended_properly:
            raise StopAsyncIteration
        chunk = await self._source.next_chunk()
        if chunk is None:
            if self.finish_reason is None or self._unfinished:
                raise BrokenFault("the provider's stream ended before the answer was complete")
            self.ended_properly = True
            await self.aclose()
            raise StopAsyncIteration
        self._note(chunk)
        return chunk

    async def read_ahead(self) -> None:
        """Wait for the first chunk, so that a failure before it can still become an HTTP status."""
        self._ahead.append(await self.__anext__())

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        await _uninterrupted(self._source.aclose(), self._exchange.close())

    def _note(self, chunk: Mapping[str, Any]) -> None:
        reported = usage_from_openai(chunk.get("usage"))
        if reported is not None:
            self.usage = reported
        model = chunk.get("model")
        if isinstance(model, str) and model:
            self.provider_model = model
        for choice in chunk.get("choices") or ():
            index = choice.get("index") or 0
            if choice.get("finish_reason"):
                self.finish_reason = choice["finish_reason"]
                self._unfinished.discard(index)
            elif self.finish_reason is None:
                self._unfinished.add(index)


class Upstream:
    """All providers of this process. `start` imports LiteLLM (seconds), `close` gives every connection back."""

    def __init__(self, *, max_connections: int = 512, max_connections_per_host: int = 256) -> None:
        self._max_connections = max_connections
        self._max_connections_per_host = max_connections_per_host
        self._litellm: Any = None
        self._handler: Any = None
        self._http: httpx.AsyncClient | None = None
        self._openai_clients: dict[tuple[str | None, str | None, str | None], Any] = {}
        self._openai: Any = None

    async def start(self) -> None:
        if self._litellm is None:
            self._litellm, self._openai = await asyncio.to_thread(_import_litellm)
        transports = importlib.import_module("litellm.llms.custom_httpx.aiohttp_transport")
        handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
        inner = transports.LiteLLMAiohttpTransport(client=self._new_session)
        timeout = httpx.Timeout(_SDK_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        self._http = httpx.AsyncClient(transport=BoundedTransport(inner), timeout=timeout, follow_redirects=False)
        self._handler = handlers.AsyncHTTPHandler(timeout=timeout)
        await self._handler.client.aclose()
        self._handler.client = self._http

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
        self._http, self._handler = None, None
        self._openai_clients.clear()

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
        arguments, native = self._arguments(call, stream=False)
        exchange = Exchange()
        mark = EXCHANGE.set(exchange)
        try:
            async with asyncio.timeout(call.timeout_s) as limit:
                response = await self._litellm.acompletion(**arguments)
        except TimeoutError:
            raise _timeout_fault(exchange, limit.expired()) from None
        except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its providers' code raises
            raise self._fault(exchange, error) from None
        finally:
            EXCHANGE.reset(mark)
            await _uninterrupted(exchange.close())
        return _native_reply(exchange) if native and exchange.whole else _translated_reply(exchange, response)

    async def open_stream(self, call: Call) -> UpstreamStream:
        """A stream whose first chunk is there already. Raises as `complete` does."""
        arguments, native = self._arguments(call, stream=True)
        exchange = Exchange()
        deadline = asyncio.get_running_loop().time() + call.timeout_s
        mark = EXCHANGE.set(exchange)
        stream: UpstreamStream | None = None
        try:
            async with asyncio.timeout(min(call.stream_timeout_s, call.timeout_s)) as limit:
                response = await self._litellm.acompletion(**arguments)
                stream = UpstreamStream(self._source(response, native, exchange, call, deadline), exchange)
                await stream.read_ahead()
        except BaseException as error:
            await _uninterrupted(exchange.close() if stream is None else stream.aclose())
            if isinstance(error, TimeoutError):
                raise _timeout_fault(exchange, limit.expired()) from None
            if isinstance(error, UpstreamFault) or not isinstance(error, Exception):
                raise
            raise self._fault(exchange, error) from None
        finally:
            EXCHANGE.reset(mark)
        return stream

    def _source(
        self, response: Any, native: bool, exchange: Exchange, call: Call, deadline: float
    ) -> _ChunkSource:
        completion_stream = getattr(response, "completion_stream", None)
        raw = getattr(completion_stream, "response", None)
        if native and isinstance(raw, httpx.Response) and exchange.status == 200:
            return _WireSource(raw, exchange, call.idle_timeout_s, deadline)
        return _LitellmSource(response, call.idle_timeout_s, deadline, self._fault, exchange)

    def _arguments(self, call: Call, *, stream: bool) -> tuple[dict[str, Any], bool]:
        """LiteLLM's keyword arguments, and whether the answer comes in OpenAI's own dialect."""
        if self._litellm is None or self._http is None:
            raise RuntimeError("Upstream.start() was not awaited")
        model, provider = self._provider(call)
        native = provider in _OPENAI_PROVIDERS
        arguments = outgoing_params(call.params)
        arguments["messages"] = outgoing_messages(call.messages, by_reference=native)
        arguments |= {name: value for name, value in call.options.items() if name in ("api_version", "organization")}
        arguments |= {"model": model, "custom_llm_provider": provider, "stream": stream}
        arguments |= {"max_retries": 0, "num_retries": 0, "caching": False, "no-log": True, "drop_params": False}
        arguments["timeout"] = httpx.Timeout(_SDK_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S) if native else _SDK_TIMEOUT_S
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
        arguments["client"] = self._openai_client(call) if native else self._handler
        return arguments, native

    def _provider(self, call: Call) -> tuple[str, str]:
        try:
            model, provider, _, _ = self._litellm.get_llm_provider(
                model=call.litellm_model, api_base=call.api_base, api_key=call.api_key or _NO_KEY
            )
        except Exception as error:  # noqa: BLE001 - its text would repeat our arguments
            raise CallRefused(f"no provider is known for the model ({type(error).__name__})") from None
        return model, provider

    def _openai_client(self, call: Call) -> Any:
        """One SDK client per address and key; all share one connection pool."""
        wanted = (call.api_base, call.api_key, call.options.get("organization"))
        client = self._openai_clients.get(wanted)
        if client is None:
            client = self._openai.AsyncOpenAI(
                base_url=call.api_base or "https://api.openai.com/v1",
                api_key=call.api_key or (_NO_KEY if call.api_base else os.environ.get("OPENAI_API_KEY", _NO_KEY)),
                organization=call.options.get("organization"),
                max_retries=0,
                http_client=self._http,
                timeout=_SDK_TIMEOUT_S,
            )
            self._openai_clients[wanted] = client
        return client

    def _fault(self, exchange: Exchange, error: Exception) -> UpstreamFault:
        """What happened, from the wire first and from LiteLLM's exception where the wire says nothing."""
        if isinstance(error, UpstreamFault | InvalidRequest):
            raise error
        code = self._known_code(error)
        if exchange.status >= 400:
            return fault_from_status(exchange.status, _retry_after_s(exchange.headers), code)
        if exchange.attempts and not exchange.reached:
            return ConnectFault("the provider could not be reached")
        if exchange.failure is not None:
            return _wire_fault(exchange)
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


class _ChunkSource:
    """Where chunks come from: None at the end of the wire."""

    async def next_chunk(self) -> dict[str, Any] | None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class _WireSource(_ChunkSource):
    """OpenAI's dialect, read from the HTTP answer itself: what the provider sent is what one gets."""

    def __init__(self, response: httpx.Response, exchange: Exchange, idle_timeout_s: float, deadline: float) -> None:
        self._pieces = response.aiter_raw()
        self._response = response
        self._exchange = exchange
        self._idle_timeout_s = idle_timeout_s
        self._deadline = deadline
        self._reader = EventReader()
        self._events: list[Event] = []
        self._ended = False
        self._answered = False
        self._streamed = "text/event-stream" in exchange.headers.get("content-type", "")

    async def next_chunk(self) -> dict[str, Any] | None:
        while True:
            while self._events:
                event = self._events.pop(0)
                if event.data.strip() == b"[DONE]":
                    return None
                return self._chunk(event)
            if self._ended:
                return None
            await self._read()

    async def aclose(self) -> None:
        await self._response.aclose()

    async def _read(self) -> None:
        """Read until a whole line came: a single byte now and then is no sign of life."""
        if not self._streamed:
            raise BrokenFault("the provider answered with something else than an event stream", status=200)
        loop = asyncio.get_running_loop()
        lines = self._reader.lines
        quiet_until = min(loop.time() + self._idle_timeout_s, self._deadline)
        try:
            async with asyncio.timeout_at(quiet_until):
                while self._reader.lines == lines and not self._ended:
                    try:
                        piece = await anext(self._pieces)
                    except StopAsyncIteration:
                        self._ended = True
                        self._events += self._reader.finish()
                        return
                    self._events += self._reader.feed(piece)
        except TimeoutError:
            raise TimeoutFault("the provider sent nothing more in time") from None
        except EventTooLarge:
            raise BrokenFault("the provider sent an event too large to read") from None
        except (httpx.HTTPError, httpx.StreamError):
            raise _wire_fault(self._exchange) from None

    def _chunk(self, event: Event) -> dict[str, Any]:
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise BrokenFault("the provider sent an event that is not JSON") from None
        if not isinstance(chunk, dict):
            raise BrokenFault("the provider sent an event that is not a chat chunk")
        if chunk.get("error") or event.name == b"error":
            raise self._in_band(chunk.get("error"))
        choices = chunk.get("choices", [])
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise BrokenFault("the provider sent an event that is not a chat chunk")
        self._answered = self._answered or bool(choices)
        return chunk

    def _in_band(self, error: object) -> UpstreamFault:
        """An error event. Before any answer it is as good as a status; afterwards the answer is broken."""
        status = error.get("code") if isinstance(error, dict) else None
        if self._answered:
            return BrokenFault("the provider reported an error in the middle of the answer", status=502)
        if isinstance(status, int) and 400 <= status < 600:
            return fault_from_status(status, _retry_after_s(self._exchange.headers))
        return FailedFault("the provider reported an error instead of an answer", status=502)


class _LitellmSource(_ChunkSource):
    """Providers with another dialect: LiteLLM's chunks, with the truth taken from below its wrapper.

    The wrapper invents a final `stop` and a usage when the provider gave none; `_Tap` sees what really came.
    """

    def __init__(self, wrapper: Any, idle_timeout_s: float, deadline: float, fault: Any, exchange: Exchange) -> None:
        self._wrapper = wrapper
        self._idle_timeout_s = idle_timeout_s
        self._deadline = deadline
        self._fault = fault
        self._exchange = exchange
        self._tap: _Tap | None = None
        if getattr(wrapper, "completion_stream", None) is not None:
            self._tap = _Tap(wrapper.completion_stream)
            wrapper.completion_stream = self._tap
        self._chunks = aiter(wrapper)
        self._usage_given = False

    async def next_chunk(self) -> dict[str, Any] | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(loop.time() + self._idle_timeout_s, self._deadline)):
                chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return self._last_usage()
        except TimeoutError:
            raise TimeoutFault("the provider sent nothing more in time") from None
        except Exception as error:  # noqa: BLE001 - as in Upstream.complete
            raise self._fault(self._exchange, error) from None
        payload: dict[str, Any] = chunk.model_dump(exclude_none=True)
        payload.pop("usage", None)
        for choice in payload.get("choices") or ():
            if choice.get("finish_reason") and not self._really_finished():
                del choice["finish_reason"]
        return payload

    async def aclose(self) -> None:
        await self._wrapper.aclose()

    def _really_finished(self) -> bool:
        return bool(getattr(self._wrapper, "received_finish_reason", None)) or (
            self._tap is not None and self._tap.finished
        )

    def _last_usage(self) -> dict[str, Any] | None:
        """One closing chunk with what the provider reported, if it did; then the end."""
        if self._usage_given or self._tap is None or self._tap.usage is None:
            return None
        self._usage_given = True
        return {"object": "chat.completion.chunk", "choices": [], "usage": self._tap.usage}


class _Tap:
    """Passes chunks through and remembers the provider's own finish and usage."""

    def __init__(self, inner: Any) -> None:
        self.finished = False
        self.usage: dict[str, Any] | None = None
        self._inner = inner
        self._iterator = aiter(inner) if hasattr(inner, "__aiter__") else None
        self._plain = None if self._iterator is not None else iter(inner)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is not None:
            chunk = await anext(self._iterator)
        else:
            assert self._plain is not None
            chunk = await asyncio.to_thread(next, self._plain, None)
            if chunk is None:
                raise StopAsyncIteration
        self._note(chunk if isinstance(chunk, dict) else getattr(chunk, "__dict__", {}))
        return chunk

    async def aclose(self) -> None:
        close = getattr(self._inner, "aclose", None) or getattr(self._inner, "close", None)
        if close is not None:
            pending = close()
            if pending is not None:
                await pending

    def _note(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if usage is not None:
            self.usage = usage if isinstance(usage, dict) else usage.model_dump(exclude_none=True)
        if chunk.get("finish_reason") or chunk.get("is_finished"):
            self.finished = True
        for choice in chunk.get("choices") or ():
            if getattr(choice, "finish_reason", None):
                self.finished = True


def _native_reply(exchange: Exchange) -> Reply:
    """The provider's own JSON."""
    try:
        body = orjson.loads(bytes(exchange.body))
    except orjson.JSONDecodeError:
        raise BrokenFault("the provider's answer was not JSON", status=exchange.status) from None
    if isinstance(body, dict) and body.get("error"):
        raise FailedFault("the provider reported an error instead of an answer", status=502)
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise BrokenFault("the provider's answer was not a chat completion", status=exchange.status)
    usage = body.get("usage")
    return Reply(
        body=body,
        usage=usage_from_openai(usage if isinstance(usage, dict) else None),
        finish_reason=choices[0].get("finish_reason"),
        provider_model=body.get("model") if isinstance(body.get("model"), str) else None,
    )


def _translated_reply(exchange: Exchange, response: Any) -> Reply:
    """Another dialect, as LiteLLM translated it."""
    body: dict[str, Any] = response.model_dump(exclude_none=True)
    usage = body.get("usage")
    reported = usage_from_openai(usage if isinstance(usage, dict) else None)
    if exchange.status >= 400 or (exchange.whole and not _mentions_usage(bytes(exchange.body))):
        # LiteLLM fills in zeros, or an estimate of its own, where the provider reported nothing.
        reported = None
        body.pop("usage", None)
    choices = body.get("choices") or [{}]
    return Reply(
        body=body, usage=reported, finish_reason=choices[0].get("finish_reason"), provider_model=body.get("model")
    )


def _mentions_usage(answer: bytes) -> bool:
    return any(name in answer for name in (b'"usage"', b'"usageMetadata"', b'"meta"', b"eval_count"))


def _timeout_fault(exchange: Exchange, ours: bool) -> UpstreamFault:
    if not exchange.reached:
        return ConnectFault("the provider could not be reached in time")
    said = "the provider did not answer in time" if ours else "the connection to the provider timed out"
    return TimeoutFault(said, status=exchange.status)


def _wire_fault(exchange: Exchange) -> UpstreamFault:
    failure = exchange.failure or httpx.ReadError
    if issubclass(failure, httpx.TimeoutException):
        return TimeoutFault("the connection to the provider timed out")
    if issubclass(failure, AnswerTooLarge):
        return BrokenFault("the provider's answer was too large or compressed")
    return BrokenFault("the connection to the provider broke off")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The provider's Retry-After, in seconds or as a date, clamped to [0, MAX_RETRY_AFTER_S]; None if unreadable."""
    milliseconds = headers.get("retry-after-ms", "")
    text = headers.get("retry-after", "").strip()[:64]
    try:
        wish = float(milliseconds) / 1000 if milliseconds else float(text)
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
        wish = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(wish, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(wish) else None


async def _uninterrupted(*closings: Any) -> None:
    """Await clean-up to its end, also when this task is being cancelled; the cancellation follows afterwards."""
    task = asyncio.ensure_future(_closed(closings))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                break
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _closed(closings: Sequence[Any]) -> None:
    for closing in closings:
        try:
            await closing
        except Exception as error:  # noqa: BLE001 - closing what is broken must not hide why it broke
            _log.debug("closing an upstream connection failed: %s", type(error).__name__)


def _import_litellm() -> tuple[Any, Any]:
    for name, value in LITELLM_ENVIRONMENT.items():
        os.environ[name] = value
    litellm: Any = importlib.import_module("litellm")
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
