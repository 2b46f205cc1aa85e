"""JSON values of whole responses: one, several in lines, a list or a JSON text sequence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any, Literal

from gateway.dialects.loose_json import read_json, read_values
from gateway.dialects.repair import unwrapped

AGAIN = re.compile(rb"\s*data:\s*")
"""A second name of an event's data."""
_FIELDS = re.compile(rb"^(?:data:[ \t]*|(?:event|id|retry)?:[^\r\n]*)", re.MULTILINE)
"""Of an event: the name before its data, other fields and comments."""
_RECORD = b"\x1e"
"""What begins a value of a JSON text sequence (RFC 7464)."""
_SNIFFED_BYTES = 4096
_CHUNK = "chat.completion.chunk"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""Of UTF-16, which only a complete response can be read in."""


Form = Literal["unknown", "events", "document"]


def form_of(start: bytes | bytearray) -> Form:
    """The format of a response by its start; `unknown` while too little has arrived."""
    begun = bytes(start[:_SNIFFED_BYTES])
    if len(begun) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(begun):
        return "unknown"
    begun = begun.removeprefix(_BYTE_ORDER_MARK).lstrip(b" \t\r\n" + _RECORD)
    if not begun:
        return "unknown" if len(start) < _SNIFFED_BYTES else "document"
    return "document" if begun[:1] in b'{[<"' or begun.startswith(_WIDE_MARKS) else "events"


def document_payloads(data: bytes | bytearray) -> list[Any]:
    """JSON values of a response without events: one, or several in lines or a list.

    Raises ValueError.
    """
    data = data.replace(_RECORD, b"\n")
    try:
        value = read_json(data)
        return value if isinstance(value, list) and len(value) > 1 else [value]
    except ValueError:
        lines = [line for line in bytes(data).splitlines() if line.strip()]
        if len(lines) > 1:
            with contextlib.suppress(ValueError):
                return [read_json(line.strip(b" \t,;")) for line in lines]
        # Behind a first value that has no field's name, events may follow.
        return _values_and_more(_FIELDS.sub(b"", data))


def _values_and_more(data: bytes | bytearray) -> list[Any]:
    """Values without lines between them, or one whole answer and whatever follows it.

    Raises ValueError for anything else: more JSON that cannot be read is the rest of an answer that was cut off.
    """
    values, rest = read_values(data)
    ended = not rest or is_done(AGAIN.sub(b"", rest.encode("utf-8", "replace"), count=1))
    if not ended and (rest.startswith(("{", "[")) or len(values) > 1 or not _is_answer(values[0])):
        raise ValueError("expected a whole answer")
    return values


def _is_answer(value: Any) -> bool:
    """Whether a JSON value is a complete answer: every choice has a message."""
    body = unwrapped(value)
    if not isinstance(body, dict) or body.get("object") == _CHUNK:
        return False
    choices = body.get("choices")
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices)
    )


def is_chunk(body: Mapping[str, Any]) -> bool:
    """True for a piece of a stream: it says so, or has a delta.

    A delta beside a message does not count. As the only value of a response it is an answer if it has a finish reason;
    else the rest was cut off.
    """
    if body.get("object") in (_CHUNK, "chat.completion"):
        return bool(body["object"] == _CHUNK)
    choices = body.get("choices")
    return any(
        isinstance(choice, dict) and isinstance(choice.get("delta"), dict) and "message" not in choice
        for choice in (choices if isinstance(choices, list) else [choices])
    )


def is_done(data: bytes) -> bool:
    """True for the word that ends a stream."""
    return data.strip(b' \t\r\n",;.').upper() == b"[DONE]"
