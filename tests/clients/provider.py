"""A provider that plays a model for real clients, and that fails every third call once.

It speaks chat completions, streamed and whole, and embeddings. What it says follows from what it is offered and told,
so that it serves every client: a coding agent's tools read and edit the file of the task; of other tools the first is
called once with the plainest arguments; a JSON schema is answered with the plainest value; a long story costs 4,000
tokens.
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

from demo.answers import json_answer, schema_example
from tests.clients.steps import STORY

DONE = "The file says green now."
WEATHER = "It is sunny in Berlin."
PROMPT_TOKENS, OUTPUT_TOKENS, STORY_TOKENS = 5, 20, 4_000
FAULT_EVERY = 3
WHOLE_FILE = "file listing"
"""aider's instructions ask for the whole file in this form."""


@dataclass(slots=True)
class PlayedProvider:
    """The model of a task: `file` has the word blue in it, which becomes green."""

    file: Path = Path("notes.txt")
    bodies: list[dict[str, Any]] = field(default_factory=list)
    faults: int = 0

    def app(self) -> Starlette:
        routes = [
            Route("/chat/completions", self.answer, methods=["POST"]),
            Route("/embeddings", self.vectors, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self._fails():
            return _overloaded()
        message, finish = self._next(body)
        usage = _usage(body)
        head = {"id": f"x{len(self.bodies)}", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
            return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        return StreamingResponse(_chunks(head, message, finish, usage), media_type="text/event-stream")

    async def vectors(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self._fails():
            return _overloaded()
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"object": "embedding", "index": at, "embedding": [float(at), 0.5]} for at in range(len(inputs))]
        usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
        return JSONResponse({"object": "list", "model": body["model"], "data": data, "usage": usage})

    def _fails(self) -> bool:
        fails = len(self.bodies) % FAULT_EVERY == 0
        self.faults += fails
        return fails

    def _next(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        offered = {
            tool["function"]["name"]: tool["function"].get("parameters") or {}
            for tool in body.get("tools") or ()
            if tool.get("type") == "function"
        }
        results = sum(message["role"] == "tool" for message in body["messages"])
        script = self._script()
        for name, arguments in script[results] if results < len(script) else ():
            if name in offered:
                known = offered[name].get("properties") or arguments
                return _call(results, name, {key: value for key, value in arguments.items() if key in known})
        if offered.keys() & {name for step in script for name, _ in step}:
            return {"content": DONE}, "stop"
        if offered and body["messages"][-1]["role"] != "tool":
            name = next(iter(offered))
            return _call(results, name, schema_example(offered[name]))
        if WHOLE_FILE in str(body["messages"]):
            return {"content": f"{self.file.name}\n```\nThe sky is green.\n```\n{DONE}"}, "stop"
        wanted = body.get("response_format") or {}
        return {"content": json_answer(wanted) if wanted.get("type") == "json_schema" else WEATHER}, "stop"

    def _script(self) -> list[list[tuple[str, dict[str, Any]]]]:
        """By turn, the tools that agents have for it; each is given those of the arguments that it knows."""
        path = str(self.file)
        read = dict.fromkeys(("file_path", "filePath", "path"), path)
        edit = read | dict.fromkeys(("old_string", "oldString", "old_str"), "blue")
        edit |= dict.fromkeys(("new_string", "newString", "new_str"), "green")
        return [
            [
                ("exec_command", {"cmd": f"cat {path}"}),
                ("shell_command", {"command": f"cat {path}"}),
                ("shell", {"command": ["cat", path]}),
                *((name, read) for name in ("Read", "read", "read_file", "view")),
            ],
            [
                ("exec_command", {"cmd": f"sed -i s/blue/green/ {path}"}),
                ("shell_command", {"command": f"sed -i s/blue/green/ {path}"}),
                ("shell", {"command": ["sed", "-i", "s/blue/green/", path]}),
                *((name, edit) for name in ("Edit", "edit")),
            ],
        ]


def _call(number: int, name: str, arguments: Any) -> tuple[dict[str, Any], str]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"content": "Working on it.", "tool_calls": [call]}, "tool_calls"


def _usage(body: Mapping[str, Any]) -> dict[str, int]:
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or STORY_TOKENS
    wanted = STORY_TOKENS if STORY in str(body["messages"][-1]) else OUTPUT_TOKENS
    output = min(wanted, limit)
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": output, "total_tokens": PROMPT_TOKENS + output}


def _overloaded() -> Response:
    return JSONResponse({"error": {"message": "overloaded", "type": "server_error", "code": None}}, status_code=503)


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
