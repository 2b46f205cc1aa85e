"""Cost of the dialects: `python -m bench.dialects [--rounds 400] [--turns 10]`.

One conversation of an agent with ten tools in each dialect. Times on one thread, in milliseconds of CPU: reading the
body into a chat request, and rendering a whole answer; the difference from chat is what a dialect adds to a turn. Then
the events a second that its stream renders. Targets: .3 ms a turn above chat's, 15,000 events a second.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from gateway.catalog.usage import Usage
from gateway.config.settings import LimitSettings
from gateway.dialects import completions, messages_request, responses_request
from gateway.dialects.chat import ChatDialect
from gateway.dialects.completions import CompletionsDialect
from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect
from gateway.dialects.messages import MessagesDialect
from gateway.dialects.request import chat_of, parse_chat, parse_object
from gateway.dialects.responses import ResponsesDialect
from gateway.dialects.responses_request import ResponsesRequest

LIMITS = LimitSettings()
TEXT = "The function reads a file, splits its lines and returns those that begin with a word. " * 3
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}, "line": {"type": "integer"}}}
NAMES = [f"tool_{number}" for number in range(10)]
ANSWER = AnswerIdentity("dec_1", "small", 1_000.0, 1_000)
BILLED = Billed(Usage(1_000, 100), False, {"cost_usd": "0.001"}.copy)
Read = Callable[[bytes], object]


def chat_body(turns: int) -> dict[str, Any]:
    """The conversation in OpenAI's chat dialect."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": TEXT}, {"role": "user", "content": TEXT}]
    for turn in range(turns):
        function = {"name": NAMES[0], "arguments": '{"path":"a.py","line":1}'}
        call = {"id": f"call_{turn}", "type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": TEXT, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call_{turn}", "content": TEXT},
        ]
    tools = [
        {"type": "function", "function": {"name": name, "description": TEXT, "parameters": SCHEMA}} for name in NAMES
    ]
    return {"model": "auto", "max_tokens": 500, "messages": messages, "tools": tools}


def messages_body(turns: int) -> dict[str, Any]:
    """The conversation in Anthropic's dialect."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": TEXT}]
    for turn in range(turns):
        use = {"type": "tool_use", "id": f"call_{turn}", "name": NAMES[0], "input": {"path": "a.py", "line": 1}}
        result = {"type": "tool_result", "tool_use_id": f"call_{turn}", "content": TEXT}
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": TEXT}, use]},
            {"role": "user", "content": [result]},
        ]
    tools = [{"name": name, "description": TEXT, "input_schema": SCHEMA} for name in NAMES]
    return {"model": "auto", "max_tokens": 500, "system": TEXT, "messages": messages, "tools": tools}


def responses_body(turns: int) -> dict[str, Any]:
    """The conversation in the Responses dialect."""
    items: list[dict[str, Any]] = [{"role": "user", "content": TEXT}]
    for turn in range(turns):
        name = {"call_id": f"call_{turn}"}
        items += [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]},
            {"type": "function_call", "name": NAMES[0], "arguments": '{"path":"a.py","line":1}', **name},
            {"type": "function_call_output", "output": TEXT, **name},
        ]
    tools = [{"type": "function", "name": name, "description": TEXT, "parameters": SCHEMA} for name in NAMES]
    return {"model": "auto", "max_output_tokens": 500, "instructions": TEXT, "input": items, "tools": tools}


def _translated(translate: Callable[[Mapping[str, Any]], Any]) -> Read:
    def reading(body: bytes) -> object:
        chat = translate(parse_object(body, LIMITS)).chat
        return chat_of(chat, LIMITS, hashlib.sha256(body).digest(), shallow=True)

    return reading


async def _store_nothing(session_id: str, response: Mapping[str, Any], items: list[Mapping[str, Any]]) -> None:
    """Storage that keeps nothing."""


def _responses() -> Dialect:
    return ResponsesDialect(ResponsesRequest({}, {}, {}, (), store=False), _store_nothing)


def subjects(turns: int) -> dict[str, tuple[dict[str, Any], Read, Callable[[], Dialect]]]:
    """Each dialect's body, reader and renderer."""
    prompt = {"model": "auto", "prompt": TEXT * 2 * turns, "max_tokens": 500}
    return {
        "chat": (chat_body(turns), lambda body: parse_chat(body, LIMITS), lambda: ChatDialect(False)),
        "messages": (messages_body(turns), _translated(messages_request.to_chat), MessagesDialect),
        "responses": (responses_body(turns), _translated(responses_request.to_chat), _responses),
        "completions": (prompt, _translated(completions.to_chat), lambda: CompletionsDialect("", False)),
    }


def cpu_ms(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU time of each of `works`, the 10th percentile, which other work disturbs least.

    They take turns, so that a machine which is slow for a while is slow for all of them.
    """
    taken: dict[str, list[int]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started_ns = time.thread_time_ns()
            work()
            taken[name].append(time.thread_time_ns() - started_ns)
    return {name: sorted(times)[len(times) // 10] / 1e6 for name, times in taken.items()}


def events_per_s(make: Callable[[], Dialect], events: int) -> float:
    """Events of text that one stream renders in a second of CPU."""
    stream = make().stream(ANSWER)
    chunks = [
        {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": f" word{n}"}}]}
        for n in range(events)
    ]
    started_ns = time.thread_time_ns()
    for chunk in chunks:
        stream.chunk(chunk)
    stream.end(BILLED, None)
    return events / ((time.thread_time_ns() - started_ns) / 1e9)


def main() -> None:
    """Print one row for each dialect."""
    reader = argparse.ArgumentParser(description="Measure what a dialect adds to a turn")
    reader.add_argument("--rounds", type=int, default=400)
    reader.add_argument("--turns", type=int, default=10)
    reader.add_argument("--events", type=int, default=20_000)
    told = reader.parse_args()
    call = {"id": "call_1", "type": "function", "function": {"name": NAMES[0], "arguments": '{"path":"a.py"}'}}
    message = {"role": "assistant", "content": TEXT, "tool_calls": [call]}
    answer = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    print(f"{'dialect':12} {'body kB':>8} {'read ms':>8} {'render ms':>10} {'above chat ms':>14} {'events/s':>9}")
    bodies = {name: orjson.dumps(fields) for name, (fields, _, _) in subjects(told.turns).items()}
    reads: dict[str, Callable[[], object]] = {}
    renders: dict[str, Callable[[], object]] = {}
    for name, (_, read, make) in subjects(told.turns).items():
        reads[name] = functools.partial(read, bodies[name])
        renders[name] = functools.partial(_rendered, make, answer)
    read_ms, render_ms = cpu_ms(reads, told.rounds), cpu_ms(renders, told.rounds)
    for name, (_, _, make) in subjects(told.turns).items():
        above_ms = read_ms[name] + render_ms[name] - read_ms["chat"] - render_ms["chat"]
        print(
            f"{name:12} {len(bodies[name]) / 1e3:8.1f} {read_ms[name]:8.3f} {render_ms[name]:10.3f} {above_ms:14.3f} "
            f"{events_per_s(make, told.events):9,.0f}"
        )


def _rendered(make: Callable[[], Dialect], answer: Mapping[str, Any]) -> bytes:
    return orjson.dumps(make().whole(ANSWER, answer, BILLED))


if __name__ == "__main__":
    main()
