"""Answers of OpenAI's Responses and Anthropic's Messages with one web search, as their own servers send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

FORWARDED_ROUTES = ("responses", "messages")
SEARCH_CALL = {
    "id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "weather"},
}  # fmt: skip
SERVER_USE = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "weather"}}
SEARCH_RESULT = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [
        {"type": "web_search_result", "url": "https://x.test", "title": "x", "encrypted_content": "EqgfCioIARgB"}
    ],
}
Usage = Mapping[str, Any] | None
Told = tuple[dict[str, Any], bool]
"""An event, and whether it brings a word."""


def forwarded_whole(route: str, model: str, words: Sequence[str], usage: Usage, finish: str) -> dict[str, Any]:
    """A complete answer; `usage` is chat's."""
    if route == "responses":
        return _response(model, [SEARCH_CALL, _spoken(words)], usage, finish)
    content = [SERVER_USE, SEARCH_RESULT, {"type": "text", "text": "".join(words)}]
    return _message(model, content, usage) | {"stop_reason": _stop(finish)}


def forwarded_events(
    route: str, model: str, words: Sequence[str], usage: Callable[[], Usage], finish: str
) -> Iterator[Told]:
    """The events of a stream; `usage` is asked once, when all was said."""
    if route == "messages":
        yield from _message_events(model, words, usage, finish)
        return
    for number, (event, speaks) in enumerate(_response_events(model, words, usage, finish)):
        yield event | {"sequence_number": number}, speaks


def responses_usage(usage: Usage) -> dict[str, Any] | None:
    """Chat's usage as Responses write it."""
    if usage is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"], "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }  # fmt: skip


def messages_usage(usage: Usage) -> dict[str, Any]:
    """Chat's usage as Anthropic writes it, with one search."""
    if usage is None:
        return {}
    return {
        "input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"],
        "server_tool_use": {"web_search_requests": 1},
    }  # fmt: skip


def _response(model: str, output: Sequence[Any], usage: Usage, finish: str) -> dict[str, Any]:
    cut = finish == "length"
    return {
        "id": "resp_provider", "object": "response", "created_at": 1_750_000_000, "model": f"{model}-2026-01-01",
        "status": "incomplete" if cut else "completed", "error": None, "store": False,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": list(output), "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": responses_usage(usage),
    }  # fmt: skip


def _spoken(words: Sequence[str]) -> dict[str, Any]:
    note = {"type": "url_citation", "url": "https://x.test", "title": "x", "start_index": 0, "end_index": 1}
    part = {"type": "output_text", "text": "".join(words), "annotations": [note], "logprobs": []}
    return {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def _response_events(model: str, words: Sequence[str], usage: Callable[[], Usage], finish: str) -> Iterator[Told]:
    begun = _response(model, [], None, "stop") | {"status": "in_progress"}
    said = _spoken(words)
    at = {"output_index": 1, "item_id": "msg_1", "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    searching = SEARCH_CALL | {"status": "in_progress"}
    opened = said | {"status": "in_progress", "content": []}
    for event in (
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": searching},
        {"type": "response.web_search_call.searching", "output_index": 0, "item_id": "ws_1"},
        {"type": "response.web_search_call.completed", "output_index": 0, "item_id": "ws_1"},
        {"type": "response.output_item.done", "output_index": 0, "item": SEARCH_CALL},
        {"type": "response.output_item.added", "output_index": 1, "item": opened},
        {"type": "response.content_part.added", **at, "part": empty},
    ):
        yield event, False
    for word in words:
        yield {"type": "response.output_text.delta", **at, "delta": word, "logprobs": []}, True
    yield {"type": "response.output_text.done", **at, "text": "".join(words), "logprobs": []}, False
    yield {"type": "response.content_part.done", **at, "part": said["content"][0]}, False
    yield {"type": "response.output_item.done", "output_index": 1, "item": said}, False
    name = "response.incomplete" if finish == "length" else "response.completed"
    yield {"type": name, "response": _response(model, [SEARCH_CALL, said], usage(), finish)}, False


def _message(model: str, content: Sequence[Any], usage: Usage) -> dict[str, Any]:
    return {
        "id": "msg_provider", "type": "message", "role": "assistant", "model": model, "content": list(content),
        "stop_reason": None, "stop_sequence": None, "usage": messages_usage(usage),
    }  # fmt: skip


def _stop(finish: str) -> str:
    return "max_tokens" if finish == "length" else "end_turn"


def _message_events(model: str, words: Sequence[str], usage: Callable[[], Usage], finish: str) -> Iterator[Told]:
    query = {"type": "input_json_delta", "partial_json": '{"query": "weather"}'}
    for event in (
        {"type": "message_start", "message": _message(model, [], None)},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": SERVER_USE | {"input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": query},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": SEARCH_RESULT},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
    ):
        yield event, False
    for word in words:
        said = {"type": "text_delta", "text": word}
        yield {"type": "content_block_delta", "index": 2, "delta": said}, True
    yield {"type": "content_block_stop", "index": 2}, False
    ended = {"stop_reason": _stop(finish), "stop_sequence": None}
    yield {"type": "message_delta", "delta": ended, "usage": messages_usage(usage())}, False
    yield {"type": "message_stop"}, False
