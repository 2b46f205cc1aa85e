"""Streams in OpenAI's dialect, read directly from the HTTP response.

A tolerant reader: it skips heartbeats of any form, reads slightly malformed JSON, and turns a complete response into
chunks, whatever its content type. Anything else raises a fault with its meaning.
"""

from __future__ import annotations

import asyncio
import re
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any

import httpx
import orjson

from gateway.catalog.usage import ReportedUsage
from gateway.catalog.usage_reading import read_usage
from gateway.dialects.assembly import chunks_of
from gateway.dialects.documents import AGAIN, Form, document_payloads, form_of, is_chunk, is_done
from gateway.dialects.loose_json import check_depth, read_loosely, read_values, without_list
from gateway.dialects.repair import repair_whole, unwrapped
from gateway.dialects.sse import Event, EventReader, EventTooLarge
from gateway.dialects.surrogates import SurrogateJoiner
from gateway.dialects.usage_report import has_usage, take_usage
from gateway.providers.answers import LATE_S, ChunkSource
from gateway.providers.errors import BrokenFault, BrokenMidAnswer, FailedFault, TimeoutFault, UpstreamFault
from gateway.providers.exchange import Exchange, Pieces
from gateway.providers.inband import broken_off, fault_in
from gateway.providers.waiting import Patience

_HEARTBEATS = frozenset({b"ping", b"heartbeat", b"keepalive", b"keep-alive", b"comment"})
_ERROR_KEYS = frozenset({"error", "Error", "errors", "fault", "base_resp"})
_ANSWER_KEYS = frozenset({"id", "choices"})
WORDS = re.compile(rb"[\s\[<|/]*[A-Za-z][\w .:-]{0,99}[\s\]>|/]*")
"""A sign of life or an end in words: "keep-alive", "[END]"."""


class EventSource(ChunkSource):
    """Reads the events of a response, or what it has in their place."""

    def __init__(self, answer: Pieces, exchange: Exchange, idle_timeout_s: float, deadline: float) -> None:
        self._pieces = aiter(answer)
        self._answer = answer
        self._exchange = exchange
        self._idle_timeout_s = idle_timeout_s
        self._deadline = deadline
        self._reader = EventReader()
        self._joiner = SurrogateJoiner()
        self._form: Form = "unknown"
        self._document = bytearray()
        self._ended = False
        self._answered = False

    async def aclose(self) -> None:
        await self._answer.aclose()

    @abstractmethod
    def _receive(self, events: list[Event]) -> None:
        """Take the events that a piece completed."""

    @abstractmethod
    def _end(self) -> None:
        """Take what the end of the response completes."""

    async def _read(self) -> None:
        """Read until a complete line arrives; single bytes do not reset the idle timeout."""
        loop = asyncio.get_running_loop()
        lines = self._reader.lines
        quiet_until = min(loop.time() + self._idle_timeout_s, self._deadline)
        try:
            with Patience(quiet_until):
                while self._reader.lines == lines and not self._ended:
                    try:
                        piece = await anext(self._pieces)
                    except StopAsyncIteration:
                        self._ended = True
                        self._end()
                        return
                    self._receive(self._reader.feed(piece) if self._form == "events" else self._begun(piece))
        except TimeoutError:
            raise TimeoutFault("the provider stopped sending for too long") from None
        except EventTooLarge:
            raise BrokenFault("the provider sent an event too large to read") from None
        except (httpx.HTTPError, httpx.StreamError):
            raise broken_off(self._exchange, answered=self._answered) from None

    def _begun(self, piece: bytes) -> list[Event]:
        """The events that a piece completes; none before the end of what is no stream."""
        self._document += piece
        if self._form == "unknown":
            self._form = form_of(self._document)
        if self._form != "events":
            return []
        begun, self._document = bytes(self._document), bytearray()
        return self._reader.feed(begun)


class WireSource(EventSource):
    """Reads chunks as dicts; raises errors inside the response as faults."""

    def __init__(self, answer: Pieces, exchange: Exchange, idle_timeout_s: float, deadline: float) -> None:
        super().__init__(answer, exchange, idle_timeout_s, deadline)
        self._events: deque[Event] = deque()
        self._chunks: deque[dict[str, Any]] = deque()
        self._alone = False
        self._lone: dict[str, Any] | None = None

    async def next_chunk(self) -> dict[str, Any] | None:
        """The next chunk, or None at the end. Raises UpstreamFault."""
        try:
            return await self._next_chunk()
        except BrokenMidAnswer as fault:
            if fault.usage is None:
                fault.billed(await self._usage_behind())
            raise

    async def _next_chunk(self) -> dict[str, Any] | None:
        while True:
            if self._chunks:
                return self._chunks.popleft()
            while self._events:
                event = self._events.popleft()
                if is_done(event.data):
                    self._check_lone()
                    self._ended = True
                    self._take_late_usage()
                    return self._chunks.popleft() if self._chunks else None
                self._take(event)
                if self._chunks:
                    return self._chunks.popleft()
            if self._ended:
                self._check_lone()
                return None
            await self._read()

    def _take_late_usage(self) -> None:
        """A usage that arrived together with the end, behind it."""
        events, self._events = self._events, deque()
        for event in events:
            payload = _object(event.data)
            if payload is not None and not payload.get("choices") and has_usage(payload):
                self._chunks.append(payload)

    async def _usage_behind(self) -> ReportedUsage:
        """The usage of a broken answer that comes behind the error, and soon."""
        loop = asyncio.get_running_loop()
        self._deadline = min(self._deadline, loop.time() + LATE_S)
        while True:
            while self._events:
                payload = _object(self._events.popleft().data)
                if payload is not None and has_usage(payload):
                    return read_usage(take_usage(payload))
            if self._ended or loop.time() >= self._deadline:
                return None
            try:
                await self._read()
            except UpstreamFault:
                return None

    def _check_lone(self) -> None:
        """Raise the error that a stream without an answer consisted of."""
        if self._lone is not None and not self._answered:
            self._alone = True
            self._check(self._lone, b"")

    def _receive(self, events: list[Event]) -> None:
        self._events += events

    def _end(self) -> None:
        if self._form != "document":
            self._events += self._reader.finish()
            return
        try:
            payloads = document_payloads(self._document)
        except ValueError:
            raise BrokenFault("the provider answered with neither JSON nor an event stream", status=200) from None
        self._alone = len(payloads) == 1
        for payload in payloads:
            self._take_payload(payload, b"")

    def _take(self, event: Event) -> None:
        """Turn an event into chunks; none for a heartbeat."""
        data = event.data
        try:
            payload = orjson.loads(data)
            check_depth(data, payload)
        except ValueError:
            if data.strip() and event.name not in _HEARTBEATS:
                for payload in self._read_loosely(event):
                    self._take_payload(self._joiner.joined(payload), event.name)
            return
        if self._joiner.holding:
            payload = self._joiner.joined(payload)
        self._take_payload(payload, event.name)

    def _read_loosely(self, event: Event) -> Iterator[Any]:
        """The values of an event that is not strict JSON."""
        if is_done(AGAIN.sub(b"", event.data, count=1)):
            self._events.appendleft(Event(event.name, b"[DONE]"))
            return
        data = without_list(AGAIN.sub(b"", event.data, count=1))
        try:
            if data:
                yield read_loosely(data)
            return
        except ValueError:
            lines = event.data.split(b"\n")
        if len(lines) == 1:
            if event.name == b"error":
                yield {"error": event.data.decode("utf-8", "replace")}
            elif not WORDS.fullmatch(event.data):
                raise BrokenFault("the provider sent an event that is not JSON")
            return
        # Events without a blank line between them arrive as one.
        for number, line in enumerate(lines):
            if is_done(line):
                self._events.extendleft(Event(event.name, left) for left in reversed(lines[number:]))
                return
            try:
                yield read_loosely(without_list(line))
            except ValueError:
                yield from self._read_printed(event.name, b"\n".join(lines[number:]))
                return

    def _read_printed(self, name: bytes, data: bytes) -> Iterator[Any]:
        """The values of JSON over several lines, and the end of the stream if it follows."""
        try:
            values, rest = read_values(data)
        except ValueError:
            values, rest = [], ""
        behind = rest.encode("utf-8", "replace")
        if not values or (rest and not is_done(behind.partition(b"\n")[0])):
            raise BrokenFault("the provider sent an event that is not JSON")
        if rest:
            self._events.extendleft(Event(name, left) for left in reversed(behind.split(b"\n")))
        yield from values

    def _take_payload(self, payload: Any, name: bytes) -> None:
        payload = unwrapped(payload)
        if not isinstance(payload, dict):
            if name == b"error":
                payload = {"error": payload or "error"}
            elif isinstance(payload, list) and payload:
                raise BrokenFault("the provider sent an event that is not a chat chunk")
            else:
                return
        choices = payload.get("choices")
        if not choices or name == b"error" or not payload.keys().isdisjoint(_ERROR_KEYS) or _has_error(choices):
            self._check(payload, name)
            if not choices and payload.keys().isdisjoint(_ANSWER_KEYS) and not has_usage(payload):
                self._lone = payload  # a heartbeat that is an object, or all that comes
                return
        if self._form == "document" and not self._is_chunk(payload, choices):
            self._take_whole(payload)
        else:
            self._chunks.append(payload)
        self._answered = self._answered or bool(choices)

    def _is_chunk(self, payload: dict[str, Any], choices: Any) -> bool:
        """Whether a JSON value is a piece of an answer: it says so, or one of several lines speaks in deltas."""
        if is_chunk(payload):
            return True
        listed = choices if isinstance(choices, list) else [choices]
        return not self._alone and not any(isinstance(c, dict) and "message" in c for c in listed)

    def _take_whole(self, body: dict[str, Any]) -> None:
        repair_whole(body, lambda: self._exchange.new_id("call"), one_choice=self._exchange.one_choice)
        if not body["choices"]:
            fault = BrokenFault("the provider's answer was not a chat completion", status=self._exchange.status)
            raise fault.billed(read_usage(take_usage(body)))
        self._chunks += chunks_of(body)

    def _check(self, payload: dict[str, Any], name: bytes) -> None:
        """Raise the fault of an error in the payload; after the first content it is a BrokenMidAnswer."""
        fault = fault_in(payload, self._exchange.headers, named_error=name == b"error", alone=self._alone)
        if fault is None and name != b"error":
            return
        fault = fault or FailedFault("the provider reported an error instead of an answer", status=502)
        if self._answered:
            fault = BrokenMidAnswer(fault)
        raise fault.billed(read_usage(take_usage(payload)))


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        payload = orjson.loads(data)
    except ValueError:
        return None
    return payload if isinstance(payload, dict) else None


def _has_error(choices: Any) -> bool:
    for choice in choices if type(choices) is list else (choices,):
        if type(choice) is dict and "error" in choice:
            return True
    return False
