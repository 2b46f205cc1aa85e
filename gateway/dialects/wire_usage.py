"""The usage that a provider reports, read from the bytes of its answer as they arrive.

LiteLLM's translations count themselves where the provider did not, write zeros for what they cannot read, and end
before the provider does. So the usage of an answer that they translate is read here, whole or streamed, in JSON, lines,
events or Amazon's frames, and theirs is not used. What a model wrote, as the arguments of a tool call, is not read.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.catalog.usage_names import counts_output
from gateway.dialects.amazon_frames import take_frames
from gateway.dialects.documents import document_payloads, form_of
from gateway.dialects.loose_json import read_json, read_loosely
from gateway.dialects.sse import EventReader, EventTooLarge
from gateway.dialects.usage_report import joined, reported_tier, take_usage
from gateway.unchecked import at, mapping

_MENTIONS = re.compile(rb'usage|tokens?(?:_?count)?"|eval_count|"meta"|billed|"details"', re.IGNORECASE)
_BY_MODEL = frozenset({"args", "arguments", "input", "parameters", "content", "content_block", "output"})
"""What a model wrote, or a tool that it called."""
_LISTS = frozenset({"results", "outputs"})
"""Lists of answers; all others hold parts of one."""
_SAYS = ("choices", "candidates", "delta", "message", "token", "text", "response", "results")
"""What an event has that brings a part of the answer."""
_MAX_DEPTH = 4
_FRAME_START = b"\0"
"""The first byte of a length below 16 MiB."""
_STARTS = frozenset({"message_start", "response.created", "response.in_progress"})
"""Events at the start of a stream: their output is not the answer's."""
_OUTPUTS = ("output_tokens", "total_tokens")
_FROM_HEADERS = {
    "input_tokens": "x-amzn-bedrock-input-token-count", "output_tokens": "x-amzn-bedrock-output-token-count",
}  # fmt: skip
_SEARCHES = ("web_search_requests", "google_maps_grounding_requests")
"""What LiteLLM counts in Gemini's answer itself."""
_OF_SEARCHES = ("toolUsePromptTokenCount", "totalTokenCount")
"""Google bills a search by a fee and not by the tokens that it found, which are in the total too."""


class WireUsage:
    """The reports of one answer, joined: `feed` takes its bytes in order, `finish` ends them."""

    def __init__(self) -> None:
        self.outdated = False
        """More of the answer came after the last count of its output."""
        self.service_tier: str | None = None
        self._report: dict[str, Any] | None = None
        self._beside: dict[str, Any] = {}
        self._buffer = bytearray()
        self._frames, self._printed = False, False
        self._events: EventReader | None = None
        self._counted = False

    @classmethod
    def of(cls, answer: bytes | bytearray, headers: Mapping[str, str]) -> WireUsage:
        """The reports of a whole answer."""
        made = cls()
        made.feed(bytes(answer))
        made.finish()
        if made._report is None:
            found = {name: headers[header] for name, header in _FROM_HEADERS.items() if header in headers}
            made._report = found or None
        return made

    @property
    def report(self) -> dict[str, Any] | None:
        """All that was reported so far; None for nothing."""
        if self._report is None or not self._beside:
            return self._report
        left_out = _OF_SEARCHES if not self._beside.keys().isdisjoint(_SEARCHES) else ()
        return self._beside | {name: count for name, count in self._report.items() if name not in left_out}

    def note_searches(self, usage: Mapping[str, Any]) -> None:
        """Add the searches that LiteLLM found in an answer, beside its usage."""
        details = mapping(usage.get("prompt_tokens_details"))
        found = {name: details.get(name) for name in _SEARCHES} | {"server_tool_use": usage.get("server_tool_use")}
        self._beside |= {name: count for name, count in found.items() if count}

    def feed(self, piece: bytes) -> None:
        """Read a piece of the answer."""
        if self._events is not None and not self._frames:
            self._take_events(piece)
            return
        self._buffer += piece
        if self._frames or self._buffer.startswith(_FRAME_START):
            self._frames = True
            self._take_frames()
        elif form_of(self._buffer) == "events":
            begun, self._buffer = bytes(self._buffer), bytearray()
            self._take_events(begun)
        elif b"\n" in piece and not self._printed:
            self._take_lines()

    def finish(self) -> None:
        """Read what the end of the answer completes."""
        if self._events is not None:
            for event in self._events.finish():
                self._take_text(event.data)
        if self._buffer and not self._frames:
            try:
                payloads = document_payloads(self._buffer)
            except ValueError:
                payloads = []
            for payload in payloads:
                self._take(payload)
        self._buffer.clear()

    def _take_lines(self) -> None:
        """Read complete lines that are JSON each; a printed document stays until its end."""
        lines = self._buffer.split(b"\n")
        for number, line in enumerate(lines[:-1]):
            try:
                payload = read_json(line) if line.strip() else None
            except ValueError:
                self._printed = True
                self._buffer = bytearray(b"\n").join(lines[number:])
                return
            self._take(payload)
        self._buffer = lines[-1]

    def _take_events(self, piece: bytes) -> None:
        if self._events is None:
            self._events = EventReader()
        try:
            events = self._events.feed(piece)
        except EventTooLarge:
            self._events = EventReader()
            return
        for event in events:
            self._take_text(event.data)

    def _take_frames(self) -> None:
        try:
            payloads = [payload for _, payload in take_frames(self._buffer)]
        except ValueError:
            self._buffer.clear()  # no frames
            return
        for payload in payloads:
            try:
                event = read_json(payload)
                inner = at(event, "bytes")
                self._take(read_json(base64.b64decode(inner)) if isinstance(inner, str) else event)
            except ValueError:
                self._take_events(payload)  # a piece of a stream of its own

    def _take_text(self, data: bytes) -> None:
        if not (self._counted and not self.outdated) and not _MENTIONS.search(data):
            return
        for text in _texts(data):
            try:
                self._take(read_loosely(text))
            except ValueError:
                continue

    def _take(self, payload: Any) -> None:
        for each in payload if isinstance(payload, list) else (payload,):
            if isinstance(each, dict):
                self._note(each)

    def _note(self, payload: dict[str, Any]) -> None:
        says = _says(payload)
        tier = reported_tier(payload) or reported_tier(mapping(payload.get("response")))
        self.service_tier = tier or self.service_tier
        found = _found(payload, _MAX_DEPTH)
        if found is not None and payload.get("type") in _STARTS:
            found = {name: count for name, count in found.items() if name not in _OUTPUTS}
        if found:
            self._report = joined(self._report, found)
            counted = counts_output(found)
            self._counted = self._counted or counted
            self.outdated = not counted and (self.outdated or says)
        elif self._report is not None:
            self.outdated = self.outdated or says


def _texts(data: bytes) -> Iterator[bytes]:
    """The JSON texts of an event: one, or some without a blank line between them."""
    lines = data.split(b"\n")
    several = len(lines) > 1 and all(line[:1] == b"{" and line.rstrip()[-1:] == b"}" for line in lines)
    yield from lines if several else (data,)


def _found(payload: dict[str, Any], depth: int) -> dict[str, Any] | None:
    """The report of an answer or event, in itself or in what it holds."""
    found = take_usage(payload)
    if found is not None or not depth:
        return found
    for name, value in payload.items():
        inner = value if isinstance(value, list) and name in _LISTS else (value,)
        for each in inner if name not in _BY_MODEL else ():
            if isinstance(each, dict) and (found := _found(each, depth - 1)) is not None:
                return found
    return None


def _says(payload: Mapping[str, Any]) -> bool:
    """True if an event brings a part of the answer."""
    if payload.get("type") in ("message_start", "message_delta", "message-end", "error") or payload.get("error"):
        return False
    return any(payload.get(name) for name in _SAYS)


_NO_COUNTS: Mapping[str, Any] = {"input_tokens": 0, "output_tokens": 0}
_PLAIN: tuple[tuple[frozenset[str], Mapping[str, Any]], ...] = (
    (frozenset({"choices"}), {}),
    (frozenset({"candidates"}), {"usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0}}),
    (frozenset({"promptFeedback"}), {"usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0}}),
    (frozenset({"stopReason"}), {"usage": {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}}),
    (frozenset({"content"}), {"usage": _NO_COUNTS}),
    (frozenset({"object", "output"}), {"usage": {**_NO_COUNTS, "total_tokens": 0}}),
    (frozenset({"done"}), {"prompt_eval_count": 0, "eval_count": 0}),
    (frozenset({"finish_reason", "message"}), {"usage": {"billed_units": _NO_COUNTS, "tokens": _NO_COUNTS}}),
    (frozenset({"finish_reason", "text"}), {"meta": {"billed_units": _NO_COUNTS, "tokens": _NO_COUNTS}}),
)
"""The fields of a whole answer in each dialect -> a usage as LiteLLM reads it: some of its readers need one."""


def with_plain_usage(answer: bytes) -> bytes:
    """A whole answer with a placeholder usage, for LiteLLM's readers that fail on others."""
    try:
        payload = orjson.loads(answer)
    except ValueError:
        return answer
    if not isinstance(payload, dict):
        return answer
    usage = next((usage for fields, usage in _PLAIN if fields <= payload.keys()), None)
    return orjson.dumps({**payload, **usage}) if usage else answer
