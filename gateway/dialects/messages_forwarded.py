"""Messages requests for Anthropic's own servers, and their answers read as chat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.catalog.claude_hosts import CLIENT_TOOLS, SEARCH_RESULTS, SERVER_TOOLS
from gateway.catalog.hosted_tools import WEB_SEARCH, HostedTools, kind_of, run_by_provider
from gateway.dialects import sealed_state
from gateway.dialects.claude_blocks import OpenBlock
from gateway.dialects.claude_history import has_system_turns, own_messages, tool_changes, uncited
from gateway.dialects.fields import objects, read, refused, unknown
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
from gateway.dialects.session_names import SESSION_FIELDS, SESSION_METADATA
from gateway.unchecked import at, listed, mapping, objects_in

_FORWARDED_FIELDS = (
    "system", "messages", "tools", "tool_choice", "temperature", "top_p", "top_k", "stop_sequences", "thinking",
    "output_config", "output_format", "context_management", "mcp_servers", "container", "cache_control",
)  # fmt: skip
_LIMITED = ("web_search", "web_fetch")
"""Server tools with a limit of their own, `max_uses`."""
_BETAS = (
    "advanced-tool-use-", "claude-code-", "code-execution-", "computer-use-", "context-management-", "effort-",
    "extended-cache-ttl-", "fine-grained-tool-streaming-", "inline-tools-", "interleaved-thinking-", "mcp-client-",
    "mid-conversation-", "per-turn-control-", "prompt-caching-scope-", "redact-thinking-", "skills-",
    "structured-outputs-", "task-budgets-", "thinking-binding-controls-", "thinking-display-updates-",
    "thinking-token-count-", "token-efficient-tools-", "web-fetch-", "web-search-",
)  # fmt: skip
"""Betas that change neither the price nor who owns what is referred to."""
_FINISH: Mapping[str, str] = {
    "max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls",
    "refusal": "content_filter",
}  # fmt: skip
_OF_SEARCHES = ("server_tool_use", f"{WEB_SEARCH}_tool_result")
"""The blocks of an answer that searched; other tools have other results."""
_METRICS = "amazon-bedrock-invocationMetrics"
_COUNTS: Mapping[str, str] = {
    "inputTokenCount": "input_tokens", "outputTokenCount": "output_tokens",
    "cacheReadInputTokenCount": "cache_read_input_tokens", "cacheWriteInputTokenCount": "cache_creation_input_tokens",
}  # fmt: skip
_MOST_BETAS = 32
_OWN_EDITS = "clear_"
"""The edits of a context that its beta allows; compaction has another one, and a bill of its own."""


@dataclass(frozen=True, slots=True)
class ForwardedMessages(ForwardedRequest):
    """A Messages request for a provider that has its own `/v1/messages`."""

    @property
    def is_chat(self) -> bool:
        """True without hosted tools, and without fields of tools that are not translated."""
        return not self.required and not any(name.startswith("tools[]") for name in self.lost)

    def _without_calls(self) -> Mapping[str, Any]:
        """Without MCP servers, whose tools need not be listed to be called."""
        body = {name: value for name, value in self.body.items() if name not in ("mcp_servers", "tools", "tool_choice")}
        tools = [tool for tool in self.body.get("tools") or () if kind_of(tool.get("type"), "messages_api") != "mcp"]
        return {**body, "tools": tools, "tool_choice": {"type": "none"}} if tools else body

    def beside_messages(self) -> BesideMessages:
        """Its tools, those that system messages define, and MCP servers."""
        defined = tool_changes(self.body["messages"])
        return BesideMessages([*(self.body.get("tools") or ()), *defined, *(self.body.get("mcp_servers") or ())])

    def outgoing(
        self, model: str, max_tokens: int | None, tool_calls: int, *, stream: bool, notes: Sequence[str]
    ) -> dict[str, Any]:
        body = {**self.body, "model": model}
        asked = body.get("max_tokens")
        if stream:
            body["stream"] = True
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
            if max_tokens != asked:  # interleaved thinking may have a budget above the client's own limit
                _fit_thinking(body, max_tokens)
        if tool_calls and body.get("tools"):
            _share(body, tool_calls)
        if notes:
            body["system"] = [*_system_blocks(body.get("system")), *({"type": "text", "text": note} for note in notes)]
        return body

    def chat_body(self, answer: dict[str, Any]) -> dict[str, Any]:
        if isinstance(answer.get("content"), str):
            answer = {**answer, "content": [{"type": "text", "text": answer["content"]}]}
        texts, thoughts, calls = [], [], []
        for block in objects_in(answer.get("content")):
            kind = block.get("type")
            if kind == "text":
                texts.append(str(block.get("text") or ""))
            elif kind == "thinking":
                thoughts.append(str(block.get("thinking") or ""))
            elif kind == "tool_use":
                arguments = orjson.dumps(block.get("input") or {}).decode()
                function = {"name": str(block.get("name")), "arguments": arguments}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
        body = chat_answer(answer, _finish_reason(answer), texts=texts, thoughts=thoughts, calls=calls)
        return body | {name: answer[name] for name in ("model", "usage") if answer.get(name)}

    def reader(self) -> MessagesReader:
        return MessagesReader()


@dataclass(slots=True)
class MessagesReader(ForwardedReader):
    """Reads the events of one stream."""

    _calls: dict[str, int] = field(default_factory=dict)
    _open: OpenBlock = field(default_factory=OpenBlock)
    _heard: dict[str, int] = field(default_factory=dict)
    _steps: int = 0
    _told: set[str] = field(default_factory=set)

    def chunks(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """The chat chunks of an event, the first of them with it; before them a block's missing end."""
        made: list[dict[str, Any]] = []
        for event in self._open.in_order(payload):
            first, *more = self._chunks(event)
            made += [first | {FORWARDED: event}, *more]
        return made

    def failure(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if payload.get("type") != "error":
            return None
        error = payload.get("error")
        return error if isinstance(error, Mapping) else payload

    def _chunks(self, payload: Mapping[str, Any]) -> list[dict[str, Any]]:
        kind = payload.get("type")
        if kind == "content_block_delta":
            return [chunk_of(self._delta(payload))]
        if kind == "content_block_start":
            block = mapping(payload.get("content_block"))
            if block.get("type") == "tool_use":
                index = self._calls.setdefault(str(payload.get("index")), len(self._calls))
                return [chunk_of(call_fragment(index, call_id=str(block.get("id")), name=str(block.get("name"))))]
            return [chunk_of({}) | self._result(block)]
        if kind == "message_start":
            message = mapping(payload.get("message"))
            told = {name: message[name] for name in ("model", "usage") if message.get(name)}
            if isinstance(told.get("usage"), Mapping):  # its output is not the answer's
                told["usage"] = {name: count for name, count in told["usage"].items() if name != "output_tokens"}
                self._told |= told["usage"].keys()
            return [silent_chunk(), silent_chunk() | told]
        if kind == "message_delta":
            usage = dict(mapping(payload.get("usage")))
            self._told |= usage.keys()
            told = {"usage": usage} if isinstance(payload.get("usage"), Mapping) else {}
            return [chunk_of({}, _finish_reason(mapping(payload.get("delta")))), silent_chunk() | told]
        if kind == "message_stop":
            return [silent_chunk(), *self._counted_late(payload)]
        return [silent_chunk()]

    def _counted_late(self, payload: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What Bedrock counts behind an answer, and its event did not say."""
        counts = mapping(payload.get(_METRICS))
        late = {own: counts[name] for name, own in _COUNTS.items() if name in counts and own not in self._told}
        late |= mapping(payload.get("usage"))
        return [silent_chunk() | {"usage": late}] if late else []

    def _result(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Count the result of a server's tool; a failed search costs nothing."""
        kind, found, _ = str(block.get("type")).rpartition("_tool_result")
        if not found or not kind:
            return {}
        self._steps += 1
        if kind == WEB_SEARCH and isinstance(block.get("content"), list):
            self._heard[kind] = self._heard.get(kind, 0) + 1
        return heard_usage(self._heard, self._steps)

    def _delta(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        delta = payload.get("delta")
        if not isinstance(delta, Mapping):
            return {}
        if delta.get("type") == "text_delta":
            return {"content": delta.get("text")}
        if delta.get("type") == "thinking_delta":
            return {"reasoning_content": delta.get("thinking")}
        index = self._calls.get(str(payload.get("index")))
        if delta.get("type") == "input_json_delta" and index is not None:
            return call_fragment(index, arguments=str(delta.get("partial_json") or ""))
        return {}


def forwarded_request(
    fields: Mapping[str, Any], found: Sequence[HostedTool], betas: str, lost: tuple[str, ...], system: Any, user: Any
) -> ForwardedMessages:
    """The request for Anthropic's servers. Raises InvalidRequest.

    `found` are its hosted tools and blocks; without any it may be translated too. `system`: the system prompt without
    its billing header. `user`: the person whom the body names, if any.
    """
    body = {name: fields[name] for name in _FORWARDED_FIELDS if fields.get(name) is not None}
    body |= {name: fields[name] for name in ("max_tokens",) if name in fields}
    if found:
        _check_signatures(fields)
        body["messages"] = uncited(fields["messages"])
    else:
        body["messages"] = own_messages(fields["messages"])
    body.pop("system", None)
    if system:
        body["system"] = system
    if user:
        body["metadata"] = {"user_id": user}
    asked = [beta.strip() for beta in betas.split(",") if beta.strip()][:_MOST_BETAS]
    kept = tuple(beta for beta in asked if beta.startswith(_BETAS) and beta.replace("-", "").isalnum())
    known = frozenset({*_FORWARDED_FIELDS, *SESSION_FIELDS, "model", "max_tokens", "stream", "metadata"})
    labels = unknown(fields.get("metadata") or {}, frozenset({"user_id", *SESSION_METADATA}), "metadata.")
    dropped = sorted(unknown(fields, known, "") | labels)
    dropped += ["anthropic-beta"] if len(kept) < len(asked) else []
    if not found:
        dropped += _fit_betas(body, kept)
    tools = objects(fields.get("tools"), "tools")
    kinds = {kind for tool in tools if (kind := kind_of(tool.get("type"), "messages_api"))}
    kinds |= {"mcp"} if fields.get("mcp_servers") else set()
    uses = [read(tool, "max_uses", int) for tool in tools if kind_of(tool.get("type"), "messages_api") in _LIMITED]
    limits = [use for use in uses if use is not None]
    if any(use < 1 for use in limits):
        raise refused("tools", "expected max_uses to be an integer of at least 1")
    served = run_by_provider(kinds, "messages_api")
    most = sum(limits) if len(limits) == len(uses) and served <= frozenset(_LIMITED) and limits else None
    limited = HostedTools(served, most)
    reference = next(_references(fields), None)
    first = found[0] if found else HostedTool("model", "this model")
    features = frozenset(each for tool in found if (each := _feature(tool)))
    return ForwardedMessages(
        "messages_api", body, limited, first, bool(found), tuple(dropped), lost, kept, reference, features
    )


def _feature(tool: HostedTool) -> str | None:
    """What a server needs for a tool or for an earlier one's block; None for a search, which has a need of its own."""
    kind = kind_of(tool.kind, "messages_api")
    if kind == WEB_SEARCH:
        return None
    if tool.kind in _OF_SEARCHES:
        return SEARCH_RESULTS
    return SERVER_TOOLS if kind is None or run_by_provider({kind}, "messages_api") else CLIENT_TOOLS


def _fit_betas(body: dict[str, Any], betas: Sequence[str]) -> list[str]:
    """Leave out what Anthropic takes only with a beta that is not sent, and return its names. Raises InvalidRequest.

    Such a request can be translated, and is then served.
    """
    said = " ".join(betas)
    if has_system_turns(body["messages"][:1]):
        raise refused("messages", "expected the first system message in system")
    if "output_format" in body and "structured-outputs-" not in said:
        shape = body.pop("output_format")
        body["output_config"] = {"format": shape} | (body.get("output_config") or {})
    managed = body.get("context_management")
    edits = (managed or {}).get("edits")
    own = isinstance(edits, list) and all(
        isinstance(edit, Mapping) and str(edit.get("type")).startswith(_OWN_EDITS) for edit in edits
    )
    if managed is not None and not (own and "context-management-" in said):
        del body["context_management"]
        return ["context_management"]
    return []


def _references(fields: Mapping[str, Any]) -> Iterator[str]:
    """Where a request names containers, skills or files, which belong to the operator's account."""
    if fields.get("container"):
        yield "container"
    for index, message in enumerate(objects(fields.get("messages"), "messages")):
        for position, block in enumerate(listed(message.get("content"))):
            if str(block.get("type")).endswith("_tool_result") and _has_file(block):
                yield f"messages[{index}].content[{position}]"


def _has_file(value: object) -> bool:
    """True if a document or picture within is named by the id of a file."""
    level = [value]
    while level:
        inner = level.pop()
        if isinstance(inner, Mapping):
            if inner.get("type") == "file" and inner.get("file_id"):
                return True
            level += inner.values()
        elif isinstance(inner, list):
            level += inner
    return False


def _check_signatures(fields: Mapping[str, Any]) -> None:
    """Refuse state of another provider's answer, which only that provider can read."""
    for index, message in enumerate(objects(fields.get("messages"), "messages")):
        for position, block in enumerate(listed(message.get("content"))):
            for name in ("signature", "data"):
                mark = at(block, name)
                if isinstance(mark, str) and sealed_state.unseal(mark) is not None:
                    where = f"messages[{index}].content[{position}].{name}"
                    raise refused(where, "belongs to another provider's answer and cannot go to Anthropic's servers")


def _share(body: dict[str, Any], most: int) -> None:
    """Tell the limited server tools how often each may be used, all together `most` times.

    The smallest limits first, so that what they leave goes to the others; a tool without a share is left out.
    """
    tools = list(body["tools"])
    places = [place for place, tool in enumerate(tools) if kind_of(tool.get("type"), "messages_api") in _LIMITED]
    asked = {place: min(tools[place].get("max_uses") or most, most) for place in places}
    left, rest = len(places), most
    gone: set[object] = set()
    for place in sorted(places, key=lambda place: (asked[place], place)):
        share = min(asked[place], -(-rest // left))
        left, rest = left - 1, rest - share
        if not share:
            gone.add(tools[place].get("name"))
        tools[place] = {**tools[place], "max_uses": share}
    body["tools"] = [tool for place, tool in enumerate(tools) if place not in asked or tool["max_uses"]]
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type") == "tool" and choice.get("name") in gone:
        del body["tool_choice"]


def _fit_thinking(body: dict[str, Any], max_tokens: int) -> None:
    """Keep the thinking budget below an answer that was clamped; Anthropic's least is 1,024 tokens."""
    thinking = body.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    if not isinstance(thinking, Mapping) or not isinstance(budget, int) or budget < max_tokens:
        return
    if max_tokens // 2 < 1_024:
        del body["thinking"]
    else:
        body["thinking"] = {**thinking, "budget_tokens": max_tokens // 2}


def _system_blocks(system: object) -> list[Any]:
    if isinstance(system, str):
        return [{"type": "text", "text": system}]
    return listed(system)


def _finish_reason(told: Mapping[str, Any]) -> str:
    return _FINISH.get(str(told.get("stop_reason")), "stop")
