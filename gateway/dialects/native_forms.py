"""Conversion between whole answers and streams of Claude, Gemini and Responses.

Compatible servers and proxies send one where the other was requested, or answer in OpenAI's dialect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import orjson

from gateway.dialects.documents import document_payloads, form_of, is_done
from gateway.dialects.loose_json import read_loosely, strict_value, without_list
from gateway.dialects.responses_events import ENDS, ResponsesEvents
from gateway.dialects.sse import EventReader, EventTooLarge, data_frame, event_frame
from gateway.unchecked import at, mapping

NativeDialect = Literal["claude", "gemini", "responses"]
_GEMINI_PATH = re.compile(r":(?:streamG|g)enerateContent\b")
_CLAUDE_PATH = re.compile(r"/messages$|:(?:streamR|r)awPredict\b")
_EXTENDED_FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
"""Kind of a delta of Claude's -> the field of the block that it extends."""


def native_dialect(path: str) -> NativeDialect | None:
    """The dialect of an address of Claude's, Gemini's or OpenAI's own API."""
    if _CLAUDE_PATH.search(path):
        return "claude"
    if path.endswith("/responses"):
        return "responses"
    return "gemini" if _GEMINI_PATH.search(path) else None


def payloads_of(data: bytes | bytearray) -> list[dict[str, Any]]:
    """The JSON objects of a complete answer, whole or a stream. Raises ValueError.

    Their texts may have halves of surrogate pairs, which `as_stream` and `as_whole` join or replace.
    """
    if form_of(data) != "events":
        values = document_payloads(data)
    else:
        reader = EventReader(max_event_bytes=len(data))
        try:
            events = [*reader.feed(bytes(data)), *reader.finish()]
        except EventTooLarge as error:
            raise ValueError(str(error)) from None
        texts = [without_list(event.data) for event in events]
        values = [read_loosely(text) for text in texts if text[:1] in (b"{", b"[") and not is_done(text)]
    listed = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [item for item in listed if isinstance(item, dict)]


def begun_payload(head: bytes | bytearray) -> dict[str, Any] | None:
    """The first object in the complete lines of a stream's start; None while only pings arrived."""
    for line in bytes(head).splitlines(keepends=True):
        if not line.startswith(b"data:") or not line.endswith((b"\n", b"\r")):
            continue
        try:
            value = orjson.loads(line[5:])
        except ValueError:
            continue
        if isinstance(value, dict) and value.get("type") != "ping" and value:
            return value
    return None


def speaks_openai(payload: Mapping[str, Any]) -> bool:
    """True for an answer or a chunk in OpenAI's dialect."""
    return isinstance(payload.get("choices"), list)


def as_stream(dialect: NativeDialect, payloads: Sequence[dict[str, Any]]) -> bytes:
    """A complete answer as the events of a stream."""
    payloads = strict_value(payloads)
    if dialect == "gemini":
        return b"".join(map(data_frame, payloads))
    events = [event for payload in payloads for event in _events_of(payload)]
    if dialect == "responses":
        stream = ResponsesEvents()
        events = [each for event in events for each in stream.of(event)]
    return b"".join(
        event_frame(str(event["type"]), event) if "type" in event else data_frame(event) for event in events
    )


def as_whole(dialect: NativeDialect, payloads: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The events of a stream, or the items of a list, as one answer; None if its end is missing."""
    whole: dict[str, Any] | None = strict_value(_one_answer(dialect, payloads))
    return whole


def _one_answer(dialect: NativeDialect, payloads: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    failed = next((payload for payload in payloads if payload.get("error")), None)
    if failed is not None:
        return failed
    if dialect == "gemini":
        return _join_candidates(without_nulls(payloads))
    if dialect == "responses":
        ends = [payload.get("response") for payload in payloads if payload.get("type") in ENDS]
        return ends[-1] if ends and isinstance(ends[-1], dict) else None
    whole = next((payload for payload in payloads if _is_message(payload)), None)
    return whole if whole is not None else _join_message(payloads)


def _is_message(payload: Mapping[str, Any]) -> bool:
    return payload.get("type") == "message" or ("type" not in payload and "content" in payload)


def _events_of(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if _is_message(payload):
        yield from _message_events(payload)
    elif "output" in payload and "type" not in payload:
        yield {"type": f"response.{payload.get('status') or 'completed'}", "response": payload}
    else:
        yield payload


def _message_events(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of Claude's whole message."""
    content = message.get("content") or []
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    known = {name: value for name, value in message.items() if name not in ("stop_reason", "stop_sequence")}
    yield {"type": "message_start", "message": {**known, "content": [], "stop_reason": None, "stop_sequence": None}}
    for index, block in enumerate(blocks):
        start, deltas = _split_block(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        yield {"type": "content_block_stop", "index": index}
    stop = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    usage = {"usage": message["usage"]} if message.get("usage") else {}
    yield {"type": "message_delta", "delta": stop, **usage}
    yield {"type": "message_stop"}


def _split_block(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Split a block into its start and its deltas; kinds without deltas stay whole."""
    start, deltas = dict(block), []
    if block.get("type") in ("text", "thinking"):
        for kind, name in _EXTENDED_FIELDS.items():
            if block.get(name):
                deltas.append({"type": kind, name: block[name]})
                start[name] = ""
        for citation in start.pop("citations", None) or ():
            deltas.append({"type": "citations_delta", "citation": citation})
    elif block.get("type") in ("tool_use", "server_tool_use") and block.get("input"):
        text = block["input"] if isinstance(block["input"], str) else orjson.dumps(block["input"]).decode()
        deltas.append({"type": "input_json_delta", "partial_json": text})
        start["input"] = {}
    return start, deltas


def _join_message(events: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Join the events of Claude's stream to one message; None if it was cut off."""
    message: dict[str, Any] = {"type": "message", "role": "assistant"}
    blocks: dict[Any, dict[str, Any]] = {}
    inputs: dict[Any, str] = {}
    counted = False
    for event in events:
        kind, index = event.get("type"), event.get("index", 0)
        if kind == "message_start":
            message |= mapping(event.get("message"))
        elif kind == "content_block_start":
            blocks[index] = dict(mapping(event.get("content_block")))
        elif kind == "content_block_delta":
            _add(blocks.setdefault(index, {"type": "text"}), mapping(event.get("delta")), inputs, index)
        elif kind == "message_delta":
            message |= mapping(event.get("delta"))
            usage = mapping(event.get("usage"))
            counted = counted or "output_tokens" in usage
            message["usage"] = {**mapping(message.get("usage")), **usage}
    for index, text in inputs.items():
        blocks[index]["input"] = orjson.loads(text)
    if not message.get("stop_reason"):
        return None
    if not counted and message.get("usage"):
        message["usage"]["output_tokens"] = 0  # the start's count is not the answer's
    return message | {"content": list(blocks.values())}


def _add(block: dict[str, Any], delta: Mapping[str, Any], inputs: dict[Any, str], index: Any) -> None:
    """Add a delta to its block, or to the JSON texts of tool inputs by block index."""
    kind = str(delta.get("type"))
    if kind in _EXTENDED_FIELDS:
        name = _EXTENDED_FIELDS[kind]
        block[name] = str(block.get(name) or "") + str(delta.get(name) or "")
    elif kind == "input_json_delta" and delta.get("partial_json"):
        inputs[index] = inputs.get(index, "") + str(delta["partial_json"])
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or ()), delta.get("citation")]


def without_nulls(value: Any) -> Any:
    """Drop the null fields of Gemini's answer, which LiteLLM does not expect.

    The arguments of a call keep theirs.
    """
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if item is not None}
        return {name: item if name == "args" else without_nulls(item) for name, item in kept.items()}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value if item is not None]
    return value


def _join_candidates(payloads: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Join the pieces of Gemini's stream to one answer; None if it was cut off."""
    whole: dict[str, Any] = {}
    candidates: dict[Any, dict[str, Any]] = {}
    for payload in payloads:
        whole |= {name: value for name, value in payload.items() if name != "candidates" and value is not None}
        for candidate in payload.get("candidates") or ():
            known = candidates.setdefault(candidate.get("index", 0), {})
            parts = [*_parts(known), *_parts(candidate)]
            known |= candidate
            known["content"] = {"role": "model", **mapping(candidate.get("content")), "parts": parts}
    blocked = mapping(whole.get("promptFeedback")).get("blockReason")
    if not blocked and not (candidates and all(candidate.get("finishReason") for candidate in candidates.values())):
        return None
    return whole | ({"candidates": list(candidates.values())} if candidates else {})


def _parts(candidate: Mapping[str, Any]) -> list[Any]:
    return list(at(candidate, "content", "parts") or ())
