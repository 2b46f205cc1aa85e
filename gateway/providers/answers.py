"""Streamed answers: an iterator of chunks that ends normally only when the provider really ended.

Where the provider speaks OpenAI's dialect the chunks are read off the wire (`WireSource`): LiteLLM's wrapper takes a
millisecond and more per chunk, knows one choice only, and invents a `stop` for a stream that was cut. The others go
through that wrapper (`LitellmSource`) with the truth taken from below it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import httpx
import orjson

from gateway.catalog.usage import ReportedUsage, usage_from_openai
from gateway.dialects.sse import Event, EventReader, EventTooLarge
from gateway.providers.errors import BrokenFault, FailedFault, TimeoutFault, UpstreamFault, fault_from_status
from gateway.providers.exchange import Answer, Exchange, retry_after_s, uninterrupted, wire_fault

FaultOf = Callable[[Exchange, Exception], UpstreamFault]


class UpstreamStream:
    """The chunks of one answer, as dicts; the last ones may carry `usage` with empty `choices`.

    Ends normally only when the provider ended properly, that is, gave a finish reason; everything else raises an
    UpstreamFault. `aclose` lets go of the provider at once and may be called at any time, any number of times.
    """

    def __init__(self, source: ChunkSource, exchange: Exchange) -> None:
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
        await uninterrupted(self._source.aclose(), self._exchange.close())

    def _note(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        reported = usage_from_openai(usage) if isinstance(usage, dict) else None
        if reported is not None:
            self.usage = reported
        model = chunk.get("model")
        if isinstance(model, str) and model:
            self.provider_model = model
        for choice in chunk.get("choices") or ():
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            finish = choice.get("finish_reason")
            if isinstance(finish, str) and finish:
                self.finish_reason = finish
                self._unfinished.discard(index)
            elif self.finish_reason is None:
                self._unfinished.add(index)


class ChunkSource(Protocol):
    """Where chunks come from: None at the end of the wire."""

    async def next_chunk(self) -> dict[str, Any] | None: ...

    async def aclose(self) -> None: ...


class WireSource:
    """OpenAI's dialect, read from the HTTP answer itself: what the provider sent is what one gets."""

    def __init__(self, answer: Answer, exchange: Exchange, idle_timeout_s: float, deadline: float) -> None:
        self._pieces = aiter(answer)
        self._answer = answer
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
        await self._answer.aclose()

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
            raise wire_fault(self._exchange) from None

    def _chunk(self, event: Event) -> dict[str, Any]:
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise BrokenFault("the provider sent an event that is not JSON") from None
        if not isinstance(chunk, dict):
            raise BrokenFault("the provider sent an event that is not a chat chunk")
        if chunk.get("error") or event.name == b"error":
            raise self._in_band(chunk.get("error"))
        choices = chunk["choices"] = chunk.get("choices") or []
        if not isinstance(choices, list) or not all(_is_choice(choice) for choice in choices):
            raise BrokenFault("the provider sent an event that is not a chat chunk")
        self._answered = self._answered or bool(choices)
        return chunk

    def _in_band(self, error: object) -> UpstreamFault:
        """An error event. Before any answer it is as good as a status; afterwards the answer is broken."""
        status = error.get("code") if isinstance(error, dict) else None
        if self._answered:
            return BrokenFault("the provider reported an error in the middle of the answer", status=502)
        if isinstance(status, int) and 400 <= status < 600:
            return fault_from_status(status, retry_after_s(self._exchange.headers))
        return FailedFault("the provider reported an error instead of an answer", status=502)


def _is_choice(choice: object) -> bool:
    """A choice whose delta, where it has one, is an object: what clients read next."""
    return isinstance(choice, dict) and isinstance(choice.setdefault("delta", {}), dict)


class LitellmSource:
    """Providers with another dialect: LiteLLM's chunks, with the truth taken from below its wrapper.

    The wrapper invents a final `stop` and a usage when the provider gave none; `_Tap` sees what really came.
    """

    def __init__(
        self, wrapper: Any, idle_timeout_s: float, deadline: float, fault: FaultOf, exchange: Exchange
    ) -> None:
        self._wrapper = wrapper
        self._idle_timeout_s = idle_timeout_s
        self._deadline = deadline
        self._fault = fault
        self._exchange = exchange
        self._tap: _Tap | None = None
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
        return payload if any(_says_something(choice) for choice in payload["choices"]) else await self.next_chunk()

    async def aclose(self) -> None:
        await self._wrapper.aclose()

    async def open(self) -> None:
        """Before the first chunk: put the tap between LiteLLM's wrapper and the provider's stream, which it may not
        even have asked for yet."""
        if self._wrapper.completion_stream is None:
            await self._wrapper.fetch_stream()
        self._tap = self._wrapper.completion_stream = _Tap(self._wrapper.completion_stream)

    def _really_finished(self) -> bool:
        said = bool(getattr(self._wrapper, "received_finish_reason", None))
        tapped = self._tap is not None and self._tap.finished
        return (said or tapped) and self._exchange.finish_was_sent

    def _last_usage(self) -> dict[str, Any] | None:
        """One closing chunk with what the provider reported, if it did; then the end."""
        if self._usage_given:
            return None
        self._usage_given = True
        usage = (self._tap.usage if self._tap is not None else None) or _usage_in(bytes(self._exchange.body))
        return None if usage is None else {"object": "chat.completion.chunk", "choices": [], "usage": usage}


def _usage_in(tail: bytes) -> dict[str, Any] | None:
    """The usage at the end of a stream in OpenAI's dialect; LiteLLM drops it in a chunk without choices."""
    for line in reversed(tail.split(b"\n")):
        if line.startswith(b"data:") and b'"usage"' in line:
            try:
                chunk = orjson.loads(line[5:])
            except orjson.JSONDecodeError:
                continue
            if isinstance(chunk, dict) and isinstance(chunk.get("usage"), dict):
                return dict(chunk["usage"])
    return None


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
        self._note(chunk)
        return chunk

    async def aclose(self) -> None:
        close = getattr(self._inner, "aclose", None) or getattr(self._inner, "close", None)
        if close is not None:
            pending = close()
            if pending is not None:
                await pending

    def _note(self, chunk: Any) -> None:
        usage = _member(chunk, "usage")
        if usage is not None:
            self.usage = usage if isinstance(usage, dict) else usage.model_dump(exclude_none=True)
        if _member(chunk, "finish_reason") or _member(chunk, "is_finished"):
            self.finished = True
        for choice in _member(chunk, "choices") or ():
            if _member(choice, "finish_reason"):
                self.finished = True


def _member(value: Any, name: str) -> Any:
    """LiteLLM's providers give dicts here and objects there."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _says_something(choice: Mapping[str, Any]) -> bool:
    """False for the empty chunks that LiteLLM's wrapper adds at the end."""
    return bool(choice.get("finish_reason") or choice.get("delta"))
