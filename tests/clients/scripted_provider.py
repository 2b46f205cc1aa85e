"""A provider that plays a coding agent's model: it reads a file, edits it and says that it is done.

It speaks chat completions, streamed and whole, and looks only at which tools it is offered and how many tool results
it was given, so that it serves every agent: each step of the script is the first of the known tools that is offered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

DONE = "The file says green now."
PROMPT_TOKENS, OUTPUT_TOKENS = 1_000, 20


@dataclass(slots=True)
class ScriptedProvider:
    """The model of one task: `file` has the word blue in it, which becomes green."""

    file: Path
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/chat/completions", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        message, finish = self._next(body)
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": PROMPT_TOKENS + OUTPUT_TOKENS,
        }
        head = {"id": "x", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
            return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        return StreamingResponse(_chunks(head, message, finish, usage), media_type="text/event-stream")

    def _next(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        offered = {tool["function"]["name"] for tool in body.get("tools") or () if tool.get("type") == "function"}
        results = sum(message["role"] == "tool" for message in body["messages"])
        for name, arguments in self._script()[results] if results < 2 else ():
            if name in offered:
                function = {"name": name, "arguments": json.dumps(arguments)}
                call = {"id": f"call_{results}", "type": "function", "function": function}
                return {"content": "Working on it.", "tool_calls": [call]}, "tool_calls"
        return {"content": DONE}, "stop"

    def _script(self) -> list[list[tuple[str, dict[str, Any]]]]:
        path = str(self.file)
        return [
            [
                ("Read", {"file_path": path}),
                ("exec_command", {"cmd": f"cat {path}"}),
                ("shell_command", {"command": f"cat {path}"}),
                ("shell", {"command": ["cat", path]}),
            ],
            [
                ("Edit", {"file_path": path, "old_string": "blue", "new_string": "green"}),
                ("exec_command", {"cmd": f"sed -i s/blue/green/ {path}"}),
                ("shell_command", {"command": f"sed -i s/blue/green/ {path}"}),
                ("shell", {"command": ["sed", "-i", "s/blue/green/", path]}),
            ],
        ]


async def _chunks(
    head: Mapping[str, Any], message: Mapping[str, Any], finish: str, usage: Mapping[str, Any]
) -> AsyncIterator[str]:
    def event(delta: Mapping[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return "data: " + json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]}) + "\n\n"

    for word in str(message["content"]).split(" "):
        yield event({"content": word + " "})
        await asyncio.sleep(0)
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        opening = {"index": index, "id": call["id"], "type": "function", "function": {**function, "arguments": ""}}
        yield event({"tool_calls": [opening]})
        for start in range(0, len(function["arguments"]), 7):
            piece = {"arguments": function["arguments"][start : start + 7]}
            yield event({"tool_calls": [{"index": index, "function": piece}]})
    yield event({}, finish)
    yield "data: " + json.dumps({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}) + "\n\n"
    yield "data: [DONE]\n\n"
