"""Responses requests for OpenAI's own servers, and their answers read as chat.

Nothing is stored there: the gateway keeps responses for its tenants, sends the whole conversation, and asks for
encrypted reasoning, which comes back with the next turn. Ids of items that only a store could resolve are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.catalog.hosted_tools import (
    CONTAINER_SIZE,
    IMAGE,
    IMAGE_MODEL,
    IMAGE_TOKENS,
    WEB_SEARCH,
    HostedTools,
    kind_of,
    run_by_provider,
)
from gateway.dialects import sealed_state
from gateway.dialects.fields import kind_of_item, read, refused
from gateway.dialects.forwarded import (
    FORWARDED,
    BesideMessages,
    ForwardedReader,
    ForwardedRequest,
    HostedTool,
    call_fragment,
    chat_answer,
    chunk_of,
    heard_usage,
    silent_chunk,
)
from gateway.dialects.pictures import own_picture
from gateway.dialects.responses_events import ResponsesEvents
from gateway.dialects.session_names import SESSION_FIELDS
from gateway.unchecked import at, mapping, objects_in

_FORWARDED_FIELDS = (
    "instructions", "tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "temperature", "top_p",
    "top_logprobs", "text", "reasoning", "include", "truncation", "user", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "service_tier", "metadata", "stream_options",
)  # fmt: skip
_OWN_ITEMS = frozenset({
    "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning",
})  # fmt: skip
_CONTAINERS = ("container", "environment")
"""Of the code interpreter, and of the shell."""
_COMPUTERS = ("computer", "computer_use", "computer_use_preview")
"""Tools whose `environment` is a word of their schema, as "browser"."""
_PLAIN_TOOLS = ("function", "custom", "namespace")
_REFERENCES = frozenset({"vector_store_ids", "file_ids", "file_id", "container_id", "skill_id"})
_ENCRYPTED = "reasoning.encrypted_content"
_CALLS: Mapping[str, str] = {"function_call": "arguments", "custom_tool_call": "input"}
_SEARCHING = ("search", None)
"""Actions of a web search that are billed; opening a page and finding in it are not."""
_CALL_ITEM = "_call"
_ENDS: Mapping[str, str] = {"max_output_tokens": "length", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class ForwardedResponses(ForwardedRequest):
    """A Responses request for a provider that has its own `/v1/responses`."""

    def _without_calls(self) -> Mapping[str, Any]:
        return {**self.body, "tool_choice": "none"} if self.body.get("tools") else self.body

    def beside_messages(self) -> BesideMessages:
        """Its tools, and the pictures that OpenAI's servers made."""
        made = [item for item in self.body["input"] if item.get("type") == IMAGE + _CALL_ITEM]
        picture = {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}
        return BesideMessages(self.body.get("tools") or (), [picture] * len(made))

    def outgoing(
        self, model: str, max_tokens: int | None, tool_calls: int, *, stream: bool, notes: Sequence[str]
    ) -> dict[str, Any]:
        body = {**self.body, "model": model, "store": False}
        if stream:
            body["stream"] = True
        else:
            body.pop("stream_options", None)
        if max_tokens is not None:
            body["max_output_tokens"] = max_tokens
        if tool_calls:
            body["max_tool_calls"] = tool_calls
        if notes:
            body["instructions"] = "\n\n".join([*filter(None, [body.get("instructions")]), *notes])
        return body

    def chat_body(self, answer: dict[str, Any]) -> dict[str, Any]:
        texts, thoughts, refusals, calls = [], [], [], []
        for item in _items(answer):
            kind = str(item.get("type"))
            for part in objects_in(item.get("content")) if kind == "message" else ():
                texts.append(str(part.get("text") or ""))
                refusals.append(str(part.get("refusal") or ""))
            for part in objects_in(item.get("summary")) if kind == "reasoning" else ():
                thoughts.append(str(part.get("text") or ""))
            if kind in _CALLS:
                function = {"name": str(item.get("name")), "arguments": _arguments(item)}
                calls.append({"id": item.get("call_id"), "type": "function", "function": function})
        body = chat_answer(
            answer, _finish_reason(answer), texts=texts, thoughts=thoughts, refusals=refusals, calls=calls
        )
        return body | _reported(answer)

    def reader(self) -> ResponsesReader:
        return ResponsesReader()


class ResponsesReader(ForwardedReader):
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self._events = ResponsesEvents()
        self._calls: dict[str, int] = {}
        self._done: list[Mapping[str, Any]] = []

    def chunks(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """The chat chunks of an event and of those left out before it, with their events."""
        made: list[dict[str, Any]] = []
        for event in self._events.of(payload):
            first, *rest = self._chunks(event)
            made += [first | {FORWARDED: event}, *rest]
        return made

    def failure(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
        kind = payload.get("type")
        if kind == "error":
            inner = payload.get("error")
            return inner if isinstance(inner, Mapping) else payload
        if kind != "response.failed":
            return None
        error = at(payload, "response", "error")
        return error if isinstance(error, Mapping) and error else {"message": "the response failed"}

    def _chunks(self, payload: Mapping[str, Any]) -> list[dict[str, Any]]:
        kind, delta, response = payload.get("type"), payload.get("delta"), mapping(payload.get("response"))
        if isinstance(delta, str):
            if kind == "response.output_text.delta":
                return [chunk_of({"content": delta})]
            if kind == "response.function_call_arguments.delta":
                index = self._calls.get(str(payload.get("output_index")))
                return [chunk_of({} if index is None else call_fragment(index, arguments=delta))]
            if kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
                return [chunk_of({"reasoning_content": delta})]
            return [chunk_of({"refusal": delta} if kind == "response.refusal.delta" else {})]
        if kind in ("response.completed", "response.incomplete"):
            return [chunk_of({}, _finish_reason(response)), silent_chunk() | _reported(response)]
        if kind == "response.failed":
            return [silent_chunk(), silent_chunk() | _reported(response)]
        if kind == "response.created":
            model = response.get("model")
            return [silent_chunk() | ({"model": model} if isinstance(model, str) else {})]
        item = payload.get("item")
        if isinstance(item, Mapping) and str(item.get("type")) in _CALLS:
            return [self._call(kind, payload, item)]
        if kind == "response.output_item.done" and isinstance(item, Mapping):
            self._done.append({name: item.get(name) for name in ("type", "action", "container_id")})
            return [chunk_of({}) | _heard(self._done)]
        return [silent_chunk() if kind == "response.in_progress" else chunk_of({})]

    def _call(self, kind: object, payload: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
        place = str(payload.get("output_index"))
        if kind == "response.output_item.added" and place not in self._calls:
            index = self._calls[place] = len(self._calls)
            name = str(item.get("name"))
            return chunk_of(call_fragment(index, call_id=str(item.get("call_id")), name=name))
        if kind == "response.output_item.done" and item["type"] == "custom_tool_call" and place in self._calls:
            return chunk_of(call_fragment(self._calls[place], arguments=_arguments(item)))
        return chunk_of({})


def forwarded_request(
    fields: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    found: Sequence[HostedTool],
    *,
    required: bool,
    lost: tuple[str, ...],
    known_items: int = 0,
) -> ForwardedResponses:
    """The request for OpenAI's servers. Raises InvalidRequest.

    `found` are its hosted tools and items, if any. The first `known_items` of the items were kept by the gateway.
    """
    body = {name: fields[name] for name in _FORWARDED_FIELDS if fields.get(name) is not None}
    body["input"] = _outgoing_items(items)
    reasons = isinstance(body.get("reasoning"), Mapping)
    if reasons and _ENCRYPTED not in (body.get("include") or ()):
        body["include"] = [*(body.get("include") or ()), _ENCRYPTED]
    known = {*_FORWARDED_FIELDS, *SESSION_FIELDS, "model", "input", "stream", "store", "max_output_tokens",
             "previous_response_id", "client_metadata", "background", "prompt"}  # fmt: skip
    dropped = sorted(name for name, value in fields.items() if name not in known and value is not None)
    listed = fields.get("tools") or ()
    named = (kind_of(tool.get("type"), "responses_api") for tool in listed)
    kinds = run_by_provider(filter(None, named), "responses_api")
    most = read(fields, "max_tool_calls", int)
    if most is not None and most < 1:
        raise refused("max_tool_calls", "expected an integer of at least 1")
    tools = HostedTools(kinds, most, _image_model(listed))
    for index, tool in enumerate(listed):
        _check_size(tool, f"tools[{index}]")
    reference = next(_references(listed, items, known_items), None)
    first = found[0] if found else HostedTool("model", "this model")
    return ForwardedResponses("responses_api", body, tools, first, required, tuple(dropped), lost, reference=reference)


def _check_size(tool: Mapping[str, Any], where: str) -> None:
    """Refuse a container whose price is not the one that is held for."""
    for name in _CONTAINERS:
        size = at(tool, name, "memory_limit")
        if size not in (None, CONTAINER_SIZE):
            raise refused(f"{where}.{name}.memory_limit", f"is not served here; leave it out, or say {CONTAINER_SIZE}")


def _references(
    tools: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]], known_items: int
) -> Iterator[str]:
    """Where a request names files, stores or containers, which belong to the operator's account.

    The first `known_items` were kept here for this tenant, and may name the containers of its own answers.
    """
    for index, tool in enumerate(tools):
        if tool.get("type") in _PLAIN_TOOLS:
            continue
        worded = kind_of(tool.get("type"), "responses_api") in _COMPUTERS
        for name in _CONTAINERS[: 1 if worded else None]:
            if isinstance(tool.get(name), str):
                yield f"tools[{index}].{name}"
        yield from (f"tools[{index}].{path}" for path in _named(tool))
    for index, item in enumerate(items[known_items:]):
        kind = kind_of_item(item)
        if kind in _OWN_ITEMS or kind == "file_search_call":
            continue
        yield from (f"input[{index}].{path}" for path in _named(item))
        if kind == IMAGE + _CALL_ITEM and not item.get("result"):
            yield f"input[{index}].id"


def _named(value: object, where: str = "") -> Iterator[str]:
    """The paths of ids within a tool or an item."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in _REFERENCES and inner and isinstance(inner, str | list):
                yield f"{where}{name}"
            else:
                yield from _named(inner, f"{where}{name}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _named(inner, f"{where.rstrip('.')}[{index}].")


def _heard(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The calls of hosted tools among finished items."""
    kinds = [str(item.get("type")).removesuffix(_CALL_ITEM) for item in items]
    steps = sum(bool(run_by_provider([kind], "responses_api")) for kind in kinds)
    return heard_usage(_counts({"output": items}), steps)


def _outgoing_items(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of a conversation for a server that stored none of them."""
    made: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        kind = kind_of_item(item)
        sent = dict(item)
        if kind in _OWN_ITEMS:
            sent = {name: value for name, value in item.items() if name != "id" and value is not None}
        picture = own_picture(item)
        if picture is not None:  # no item of OpenAI's
            sent = {"role": "user", "content": [{"type": "input_image", "image_url": picture}]}
        if kind != "reasoning":
            made.append(sent)
            continue
        sealed = item.get("encrypted_content")
        state = sealed_state.unseal(sealed) if isinstance(sealed, str) else None
        if state is not None:
            made += _restored(state, f"input[{index}].encrypted_content")
        elif sealed:  # without it, OpenAI would look for the item in its store
            made.append(sent)
    return made


def _restored(state: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """OpenAI's reasoning items in a sealed state. Raises InvalidRequest for another provider's."""
    kept = state.get("reasoning_items")
    if not isinstance(kept, list) or len(state) > 1:
        raise refused(where, "belongs to another provider's answer and cannot go to OpenAI's servers; leave it out")
    return [{name: value for name, value in item.items() if name != "id"} for item in kept if isinstance(item, dict)]


def _items(response: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return objects_in(response.get("output"))


def _arguments(item: Mapping[str, Any]) -> str:
    if item.get("type") == "custom_tool_call":
        return orjson.dumps({"input": str(item.get("input") or "")}).decode()
    return str(item.get("arguments") or "{}")


def _finish_reason(response: Mapping[str, Any]) -> str:
    if response.get("status") == "incomplete":
        return _ENDS.get(str(at(response, "incomplete_details", "reason")), "length")
    return "tool_calls" if any(str(item.get("type")) in _CALLS for item in _items(response)) else "stop"


def _reported(response: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a chat answer with what the provider billed: its usage and its tools' calls."""
    report: dict[str, Any] = {name: response[name] for name in ("model", "service_tier") if response.get(name)}
    usage = response.get("usage")
    if not isinstance(usage, Mapping):
        return report | _heard(list(_items(response)))
    counts = _counts(response)
    told: dict[str, Any] = {**usage, "server_tool_use": {"web_search_requests": counts.pop(WEB_SEARCH, 0)}}
    images = _images(response, counts.pop(IMAGE, 0))
    if images:
        told["iterations"] = [dict(usage), *images]
    return report | {"usage": told | {"hosted_calls": dict(counts)}}


def _counts(response: Mapping[str, Any]) -> Counter[str]:
    """Billed calls by kind. A session of the code interpreter is one call, however often it is used."""
    counts: Counter[str] = Counter()
    sessions: set[str] = set()
    for item in _items(response):
        kind = str(item.get("type")).removesuffix(_CALL_ITEM)
        if kind == WEB_SEARCH:
            counts[kind] += at(item, "action", "type") in _SEARCHING
        elif kind in ("code_interpreter", "shell"):
            session = f"{kind} {item.get('container_id')}"
            counts[kind] += session not in sessions
            sessions.add(session)
        elif kind in ("file_search", IMAGE):
            counts[kind] += 1
    stated = at(response, "tool_usage", WEB_SEARCH, "num_requests")
    if isinstance(stated, int):
        counts[WEB_SEARCH] = stated
    return counts


def _images(response: Mapping[str, Any], made: int) -> Iterable[dict[str, Any]]:
    """The call of the image model: as reported, else as if every image had the largest size."""
    model = _image_model(response.get("tools"))
    usage = mapping(at(response, "tool_usage", "image_gen"))
    output = usage.get("output_tokens")
    if isinstance(output, int) and output > 0:
        return [{"model": model, **usage, "output_tokens_details": {"image_tokens": output}}]
    if not made:
        return []
    tokens = made * IMAGE_TOKENS
    details = {"image_tokens": tokens}
    return [{"model": model, "input_tokens": 0, "output_tokens": tokens, "output_tokens_details": details}]


def _image_model(tools: object) -> str:
    pictures = [tool for tool in objects_in(tools) if tool.get("type") == IMAGE]
    named = pictures[0].get("model") if pictures else None
    return named if isinstance(named, str) else IMAGE_MODEL
