"""Reading rendered event streams back, and chunks to render."""

from __future__ import annotations

import json
from typing import Any

from gateway.dialects.sse import EventReader


def events(stream: bytes) -> list[dict[str, Any]]:
    """The data of every event; comments are left out, and each event's name must be its type."""
    reader = EventReader()
    found = [*reader.feed(stream), *reader.finish()]
    payloads = [json.loads(event.data) for event in found]
    assert [event.name.decode() for event in found] == [payload["type"] for payload in payloads]
    return payloads


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def call(index: int, arguments: str = "", **fields: Any) -> dict[str, Any]:
    """A chunk with one fragment of one tool call."""
    function: dict[str, Any] = {"arguments": arguments}
    if "name" in fields:
        function["name"] = fields.pop("name")
    return delta(tool_calls=[{"index": index, "function": function, **fields}])


def whole(finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, **message}
    return {"choices": [{"index": 0, "finish_reason": finish_reason, "message": message}]}


def function_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
