"""One answer in the wire format of each provider family, whole and streamed, for the compatibility matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.harness.dialects import Asked, Spoken, as_events, as_frames, as_json, invoked

PROMPT_TOKENS, OUTPUT_TOKENS = 1_000, 50
SIGNATURE = "c2lnbmF0dXJl"


@dataclass(frozen=True, slots=True)
class Said:
    """An answer as no provider writes it: text, calls of tools (name, arguments), thoughts, and how it ended."""

    text: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    thought: str = ""
    ended: Literal["stop", "length", "refused"] = "stop"
    cached_tokens: int = 0


def openai(said: Said, asked: Asked) -> Spoken:
    """Chat completions, as OpenAI and the many that are compatible with it write them."""
    return _chat(said, asked, {"reasoning_content": said.thought} if said.thought else {})


def mistral(said: Said, asked: Asked) -> Spoken:
    """Chat completions in Mistral's form: thoughts are parts of the content."""
    if not said.thought:
        return _chat(said, asked, {})
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": said.thought}]}
    return _chat(said, asked, {"content": [thinking, {"type": "text", "text": said.text}]})


def _chat(said: Said, asked: Asked, more: Mapping[str, Any]) -> Spoken:
    usage = {
        "prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": PROMPT_TOKENS + OUTPUT_TOKENS, "prompt_tokens_details": {"cached_tokens": said.cached_tokens},
    }  # fmt: skip
    calls = [
        {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(said.calls)
    ]
    finish = {"length": "length", "refused": "content_filter"}.get(said.ended, "tool_calls" if calls else "stop")
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None, **more}
    if not asked.streamed:
        message |= {"tool_calls": calls} if calls else {}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return as_json(
            {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )
    deltas: list[dict[str, Any]] = [message]
    for index, call in enumerate(calls):
        function: Any = call["function"]
        deltas.append({"tool_calls": [{**call, "index": index, "function": {**function, "arguments": ""}}]})
        for piece in _pieces(function["arguments"]):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return as_events(*chunks, head | {"choices": [], "usage": usage}, done=True)


def anthropic(said: Said, asked: Asked) -> Spoken:
    """Messages, as Anthropic writes them; a schema's answer comes as a call of the tool that LiteLLM made of it."""
    message, events = _message(said)
    return as_events(*events) if asked.streamed else as_json(message)


def invoke(said: Said, asked: Asked) -> Spoken:
    """Messages at Bedrock's InvokeModel, their events in Amazon's frames."""
    message, events = _message(said)
    return invoked(events) if asked.path.endswith("-with-response-stream") else as_json(message)


def _message(said: Said) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Claude's answer, whole and as events."""
    usage = {
        "input_tokens": PROMPT_TOKENS - said.cached_tokens, "cache_read_input_tokens": said.cached_tokens,
        "cache_creation_input_tokens": 0, "output_tokens": OUTPUT_TOKENS,
    }  # fmt: skip
    blocks: list[dict[str, Any]] = []
    if said.thought:
        blocks.append({"type": "thinking", "thinking": said.thought, "signature": SIGNATURE})
    if said.text:
        blocks.append({"type": "text", "text": said.text})
    blocks += [
        {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": dict(arguments)}
        for number, (name, arguments) in enumerate(said.calls)
    ]
    stop = {"length": "max_tokens", "refused": "refusal"}.get(said.ended, "tool_use" if said.calls else "end_turn")
    message = {
        "id": "m", "type": "message", "role": "assistant", "model": "claude", "content": blocks, "stop_reason": stop,
        "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    begun = message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    told: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(blocks):
        told += _anthropic_block(index, block)
    told.append({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": OUTPUT_TOKENS}})
    return message, [*told, {"type": "message_stop"}]


def _anthropic_block(index: int, block: Mapping[str, Any]) -> list[dict[str, Any]]:
    openings: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
        "text": ({"text": ""}, [{"type": "text_delta", "text": block.get("text")}]),
        "thinking": (
            {"thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": block.get("thinking")},
                {"type": "signature_delta", "signature": block.get("signature")},
            ],
        ),
        "tool_use": (
            {"input": {}},
            [{"type": "input_json_delta", "partial_json": piece} for piece in _pieces(json.dumps(block.get("input")))],
        ),
    }
    empty, deltas = openings[block["type"]]
    return [
        {"type": "content_block_start", "index": index, "content_block": {**block, **empty}},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def gemini(said: Said, asked: Asked) -> Spoken:
    """generateContent, as Gemini and Vertex AI write it."""
    usage = {
        "promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS,
        "totalTokenCount": PROMPT_TOKENS + OUTPUT_TOKENS,
    } | ({"cachedContentTokenCount": said.cached_tokens} if said.cached_tokens else {})  # fmt: skip
    parts: list[dict[str, Any]] = [{"text": said.thought, "thought": True}] if said.thought else []
    parts += [{"text": said.text}] if said.text else []
    parts += [{"functionCall": {"name": name, "args": dict(arguments)}} for name, arguments in said.calls]
    finish = {"length": "MAX_TOKENS", "refused": "SAFETY"}.get(said.ended, "STOP")

    def candidate(of: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"candidates": [{"content": {"role": "model", "parts": of}, "index": 0, **more}]}

    if "streamGenerateContent" not in asked.path:
        return as_json(candidate(parts, finishReason=finish) | {"usageMetadata": usage})
    told = [candidate([part]) for part in parts[:-1]]
    return as_events(*told, candidate(parts[-1:], finishReason=finish) | {"usageMetadata": usage})


def bedrock(said: Said, asked: Asked) -> Spoken:
    """Converse, as Amazon Bedrock writes it, streamed in Amazon's frames."""
    usage = {
        "inputTokens": PROMPT_TOKENS - said.cached_tokens, "outputTokens": OUTPUT_TOKENS,
        "totalTokens": PROMPT_TOKENS + OUTPUT_TOKENS, "cacheReadInputTokens": said.cached_tokens,
        "cacheWriteInputTokens": 0,
    }  # fmt: skip
    reasoning = {"reasoningText": {"text": said.thought, "signature": SIGNATURE}}
    uses = [
        {"toolUseId": f"tooluse_{number}", "name": name, "input": dict(arguments)}
        for number, (name, arguments) in enumerate(said.calls)
    ]
    content: list[dict[str, Any]] = [{"reasoningContent": reasoning}] if said.thought else []
    content += [{"text": said.text}] if said.text else []
    content += [{"toolUse": use} for use in uses]
    stop = {"length": "max_tokens", "refused": "content_filtered"}.get(said.ended, "tool_use" if uses else "end_turn")
    if not asked.path.endswith("converse-stream"):
        message = {"role": "assistant", "content": content}
        return as_json(
            {"output": {"message": message}, "stopReason": stop, "usage": usage, "metrics": {"latencyMs": 1}}
        )
    told: list[tuple[str, dict[str, Any]]] = [("messageStart", {"role": "assistant"})]
    for index, block in enumerate(content):
        deltas: list[dict[str, Any]]
        if "toolUse" in block:
            use = block["toolUse"]
            start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
            told.append(("contentBlockStart", {"contentBlockIndex": index, "start": start}))
            deltas = [{"toolUse": {"input": piece}} for piece in _pieces(json.dumps(use["input"]))]
        elif "text" in block:
            deltas = [block]
        else:
            deltas = [{"reasoningContent": {"text": said.thought}}, {"reasoningContent": {"signature": SIGNATURE}}]
        told += [("contentBlockDelta", {"contentBlockIndex": index, "delta": delta}) for delta in deltas]
        told.append(("contentBlockStop", {"contentBlockIndex": index}))
    told += [("messageStop", {"stopReason": stop}), ("metadata", {"usage": usage, "metrics": {"latencyMs": 1}})]
    return as_frames(*told)


FORMATS: Mapping[str, Callable[[Said, Asked], Spoken]] = {
    "openai": openai, "anthropic": anthropic, "gemini": gemini, "bedrock": bedrock, "invoke": invoke,
    "mistral": mistral,
}  # fmt: skip


def _pieces(text: str) -> list[str]:
    """Text in pieces of seven characters, as a model would write it."""
    return [text[start : start + 7] for start in range(0, len(text), 7)]
