"""One fake provider that speaks many: the dialect of an answer is chosen by the path and the body of its request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.harness.listener import Listener

TEXT = ("Hel", "lo")
PROMPT_TOKENS, OUTPUT_TOKENS = 10, 5
USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": 15}

_JSON, _EVENTS, _LINES, _FRAMES = (
    "application/json", "text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream",
)  # fmt: skip

Spoken = tuple[str, bytes]
"""Content type and body of an answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as a dialect looks at it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    raw: bytes
    address: str

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(slots=True)
class DialectProvider(Listener):
    """`async with DialectProvider() as provider:`; `asked` holds every request, in order."""

    asked: list[Asked] = field(default_factory=list)
    answering: Callable[[Asked], Spoken] | None = None
    """Answers instead of the dialect that the path tells."""

    @property
    def sign_in(self) -> str:
        """The same server by another name, as a provider's identity service is another host."""
        return f"http://localhost:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await self._read(reader)
        self.asked.append(asked)
        kind, body = (self.answering or spoken)(asked)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> Asked:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        if "chunked" in headers.get("transfer-encoding", ""):
            raw = b""
            while size := int(await reader.readline(), 16):
                raw += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            raw = await reader.readexactly(int(headers.get("content-length", "0")))
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = {}
        return Asked(method, path, headers, body if isinstance(body, dict) else {}, raw, self.address)


def spoken(asked: Asked) -> Spoken:
    """The answer in the dialect that the request is in."""
    path = asked.path.partition("?")[0]
    for fragment, dialect in _DIALECTS:
        if fragment in path:
            return dialect(asked)
    return _openai(asked)


def as_json(body: Any) -> Spoken:
    """The content type and body of JSON."""
    return _JSON, json.dumps(body).encode()


def as_events(*events: Any, done: bool = False) -> Spoken:
    """The content type and body of an event stream."""
    lines = [
        (f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else "")
        + f"data: {json.dumps(event)}\n\n"
        for event in events
    ]
    return _EVENTS, "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def _lines(*events: Any) -> Spoken:
    return _LINES, "".join(json.dumps(event) + "\n" for event in events).encode()


# -- OpenAI and its kin ------------------------------------------------------------------------------------------------


def _completion() -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(TEXT)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE, "choices": [choice]}


def _chunks() -> list[dict[str, Any]]:
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    said: list[dict[str, Any]] = [
        {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None} for text in TEXT
    ]
    said.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    return [*(head | {"choices": [choice]} for choice in said), head | {"choices": [], "usage": USAGE}]


def _openai(asked: Asked) -> Spoken:
    return as_events(*_chunks(), done=True) if asked.streamed else as_json(_completion())


def _fill_in_the_middle(asked: Asked) -> Spoken:
    """Mistral's path for code; Inception's, through OpenAI's SDK, answers in OpenAI's old way."""
    return _openai(asked) if "mistral-fim" in asked.path else _text_completion(asked)


def _text_completion(asked: Asked) -> Spoken:
    choice = {"index": 0, "text": "".join(TEXT), "finish_reason": "stop", "logprobs": None}
    return as_json(
        {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}
    )


def _watsonx_stream(asked: Asked) -> Spoken:
    return as_events(*_chunks())


def _sap(asked: Asked) -> Spoken:
    config = asked.body.get("config", {})
    if config.get("stream", {}).get("enabled"):
        return as_events(*({"request_id": "r", "final_result": chunk} for chunk in _chunks()), done=True)
    return as_json({"request_id": "r", "final_result": _completion(), "module_results": {}})


def _sap_deployments(asked: Asked) -> Spoken:
    found = {"scenarioId": "orchestration", "configurationId": "c", "deploymentUrl": f"{asked.address}/sap-deployment"}
    return as_json({"resources": [found | {"createdAt": "2026-01-01T00:00:00Z"}]})


def _sap_configuration(asked: Asked) -> Spoken:
    return as_json({"executableId": "orchestration"})


# -- dialects of their own ---------------------------------------------------------------------------------------------


def _hosted(asked: Asked) -> Spoken:
    """Models of several makers behind one address: each speaks its maker's dialect."""
    if "anthropic_version" not in asked.body:
        return _openai(asked)
    if asked.path.endswith("invoke-with-response-stream"):
        return invoked(_anthropic_events(_anthropic_message()))
    return _anthropic(asked)


def _anthropic_message() -> dict[str, Any]:
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    return {
        "id": "m", "type": "message", "role": "assistant", "model": "claude",
        "content": [{"type": "text", "text": "".join(TEXT)}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": usage,
    }  # fmt: skip


def _anthropic(asked: Asked) -> Spoken:
    message = _anthropic_message()
    streamed = asked.streamed or "streamRawPredict" in asked.path
    return as_events(*_anthropic_events(message)) if streamed else as_json(message)


def _anthropic_events(message: dict[str, Any]) -> list[dict[str, Any]]:
    begun = message | {"content": [], "stop_reason": None, "usage": message["usage"] | {"output_tokens": 1}}
    return [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in TEXT),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": OUTPUT_TOKENS}},
        {"type": "message_stop"},
    ]


def _anthropic_text(asked: Asked) -> Spoken:
    def said(text: str, stop: str | None) -> dict[str, Any]:
        return {"type": "completion", "id": "x", "completion": text, "stop_reason": stop, "model": "claude-2"}

    if asked.streamed:
        return as_events(said(TEXT[0], None), said(TEXT[1], None), said("", "stop_sequence"))
    return as_json(said("".join(TEXT), "stop_sequence"))


def _gemini(asked: Asked) -> Spoken:
    usage = {"promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS, "totalTokenCount": 15}

    def said(text: str, **more: Any) -> dict[str, Any]:
        return {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}

    if "streamGenerateContent" in asked.path:
        last = {"candidates": [said(TEXT[1], finishReason="STOP")], "usageMetadata": usage}
        return as_events({"candidates": [said(TEXT[0])]}, last)
    return as_json({"candidates": [said("".join(TEXT), finishReason="STOP")], "usageMetadata": usage})


def _cohere_usage() -> dict[str, Any]:
    tokens = {"input_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    return {"billed_units": tokens, "tokens": tokens}


def _cohere(asked: Asked) -> Spoken:
    message = {"role": "assistant", "content": [{"type": "text", "text": "".join(TEXT)}]}
    if not asked.streamed:
        return as_json({"id": "c", "finish_reason": "COMPLETE", "message": message, "usage": _cohere_usage()})
    return as_events(
        {"type": "message-start", "id": "c", "delta": {"message": {"role": "assistant"}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        *({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}} for text in TEXT),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": _cohere_usage()}},
    )


def _cohere_v1(asked: Asked) -> Spoken:
    whole = {"generation_id": "g", "text": "".join(TEXT), "finish_reason": "COMPLETE", "meta": _cohere_usage()}
    if not asked.streamed:
        return as_json(whole)
    return _lines(
        *({"event_type": "text-generation", "text": text, "is_finished": False} for text in TEXT),
        {"event_type": "stream-end", "is_finished": True, "finish_reason": "COMPLETE", "response": whole},
    )


def _ollama(asked: Asked) -> Spoken:
    ended = {"done": True, "done_reason": "stop", "prompt_eval_count": PROMPT_TOKENS, "eval_count": OUTPUT_TOKENS}
    head = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": False}
    chat = asked.path.endswith("/api/chat")

    def said(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if chat else {"response": text}

    if asked.body.get("stream", True):
        return _lines(*(head | said(text) for text in TEXT), head | said("") | ended)
    return as_json(head | said("".join(TEXT)) | ended)


def _replicate(asked: Asked) -> Spoken:
    urls = {"get": f"{asked.headers['x-asked-of']}/v1/predictions/p"} if "x-asked-of" in asked.headers else {}
    done = asked.method == "GET"
    return as_json({"id": "p", "status": "succeeded" if done else "starting", "output": list(TEXT), "urls": urls})


def _converse(asked: Asked) -> Spoken:
    usage = {"inputTokens": PROMPT_TOKENS, "outputTokens": OUTPUT_TOKENS, "totalTokens": 15}
    if asked.path.endswith("converse-stream"):
        return as_frames(
            ("messageStart", {"role": "assistant"}),
            *(("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}) for text in TEXT),
            ("contentBlockStop", {"contentBlockIndex": 0}),
            ("messageStop", {"stopReason": "end_turn"}),
            ("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}),
        )
    message = {"role": "assistant", "content": [{"text": "".join(TEXT)}]}
    return as_json(
        {"output": {"message": message}, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 1}}
    )


def _invocations(asked: Asked) -> Spoken:
    """SageMaker: what the container says, in Amazon's frames when it is streamed."""
    chat = "messages" in asked.body
    if not asked.path.endswith("response-stream") and not asked.streamed:
        return as_json(_completion()) if chat else as_json([{"generated_text": "".join(TEXT)}])
    events: list[dict[str, Any]] = _chunks() if chat else [{"token": {"text": text}} for text in TEXT]
    if not chat:
        events[-1] = events[-1] | {"generated_text": "".join(TEXT), "details": {"finish_reason": "eos_token"}}
    said = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return _FRAMES, b"".join(frame({":event-type": "PayloadPart"}, piece) for piece in said)


def _watsonx_text(asked: Asked) -> Spoken:
    def result(text: str, stop: str, tokens: int) -> dict[str, Any]:
        said = {"generated_text": text, "generated_token_count": tokens, "input_token_count": PROMPT_TOKENS}
        return {"model_id": "m", "created_at": "2026-01-01T00:00:00Z", "results": [said | {"stop_reason": stop}]}

    if asked.path.partition("?")[0].endswith("_stream"):
        return as_events(result(TEXT[0], "not_finished", 1), result(TEXT[1], "eos_token", OUTPUT_TOKENS))
    return as_json(result("".join(TEXT), "eos_token", OUTPUT_TOKENS))


def _generated(asked: Asked) -> Spoken:
    """Text generation servers: Triton, Predibase."""
    if "text_input" in asked.body:  # Triton
        if asked.path.endswith("generate_stream"):
            return as_events(*({"model_name": "m", "model_version": "1", "text_output": text} for text in TEXT))
        return as_json({"model_name": "m", "model_version": "1", "text_output": "".join(TEXT)})
    details = {"finish_reason": "eos_token", "prompt_tokens": PROMPT_TOKENS, "generated_tokens": OUTPUT_TOKENS}
    if asked.path.endswith("generate_stream"):
        events = [{"token": {"id": 1, "text": text, "logprob": -1.0, "special": False}} for text in TEXT]
        return as_events(events[0], events[1] | {"generated_text": "".join(TEXT), "details": details})
    return as_json({"generated_text": "".join(TEXT), "details": details | {"tokens": []}})


def _cloudflare(asked: Asked) -> Spoken:
    if asked.streamed:
        return as_events(*({"response": text} for text in TEXT), {"response": "", "usage": USAGE}, done=True)
    return as_json({"result": {"response": "".join(TEXT), "usage": USAGE}, "success": True, "errors": []})


def _nlp_cloud(asked: Asked) -> Spoken:
    return as_json(
        {"generated_text": "".join(TEXT), "nb_input_tokens": PROMPT_TOKENS, "nb_generated_tokens": OUTPUT_TOKENS}
    )


def _oci(asked: Asked) -> Spoken:
    usage = {"promptTokens": PROMPT_TOKENS, "completionTokens": OUTPUT_TOKENS, "totalTokens": 15}

    def message(text: str) -> dict[str, Any]:
        return {"role": "ASSISTANT", "content": [{"type": "TEXT", "text": text}]}

    if asked.body.get("chatRequest", {}).get("isStream"):
        return as_events(
            *({"index": 0, "message": message(text)} for text in TEXT),
            {"finishReason": "stop", "usage": usage},
        )
    choice = {"index": 0, "message": message("".join(TEXT)), "finishReason": "stop"}
    chat = {"apiFormat": "GENERIC", "timeCreated": "2026-01-01T00:00:00Z", "choices": [choice], "usage": usage}
    return as_json({"modelId": "m", "modelVersion": "1", "chatResponse": chat})


def _langgraph(asked: Asked) -> Spoken:
    said = {"type": "ai", "content": "".join(TEXT)}
    if asked.path.endswith("/stream"):
        return as_events(*(["messages", [[{"type": "AIMessageChunk", "content": text}, {}]]] for text in TEXT))
    return as_json({"messages": [{"type": "human", "content": "hi"}, said]})


def _langflow(asked: Asked) -> Spoken:
    return as_json({"outputs": [{"outputs": [{"results": {"message": {"text": "".join(TEXT)}}}]}]})


def _agent(asked: Asked) -> Spoken:
    """Agent to agent: JSON-RPC."""

    def result(text: str, state: str) -> dict[str, Any]:
        parts = [{"kind": "text", "text": text}]
        message = {"kind": "message", "messageId": "m", "role": "agent", "parts": parts}
        return {"jsonrpc": "2.0", "id": asked.body.get("id"), "result": message | {"status": {"state": state}}}

    if asked.body.get("method") == "message/stream":
        return _lines(result(TEXT[0], "working"), result(TEXT[1], "completed"))
    return as_json(result("".join(TEXT), "completed"))


def _bytez(asked: Asked) -> Spoken:
    if asked.streamed:
        return "text/plain", "".join(TEXT).encode()
    return as_json(
        {"error": None, "output": {"role": "assistant", "content": [{"type": "text", "text": "".join(TEXT)}]}}
    )


def _petals(asked: Asked) -> Spoken:
    return as_json({"ok": True, "outputs": "".join(TEXT)})


def _custom(asked: Asked) -> Spoken:
    return as_json({"data": [{"output": ["".join(TEXT)]}], "message": "ok"})


def _fal(asked: Asked) -> Spoken:
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    return as_json({"output": "".join(TEXT), "finish_reason": "stop", "usage_info": usage})


def _token(asked: Asked) -> Spoken:
    return as_json(
        {
            "access_token": "token",
            "tok": "token",
            "token_type": "Bearer",
            "expires_in": 3600,
            "expires_at": 4102444800000,
        }
    )


_DIALECTS: tuple[tuple[str, Callable[[Asked], Spoken]], ...] = (
    ("/token", _token),
    ("/lm/deployments", _sap_deployments),
    ("/lm/configurations", _sap_configuration),
    ("/sap-deployment", _sap),
    ("/v1/messages", _anthropic),
    ("/v1/complete", _anthropic_text),
    ("enerateContent", _gemini),
    ("/cohere/v1", _cohere_v1),
    ("/cohere", _cohere),
    ("/api/generate", _ollama),
    ("/api/chat", _ollama),
    ("/predictions", _replicate),
    ("/converse", _converse),
    ("/invocations", _invocations),
    ("/invoke", _hosted),
    ("awPredict", _hosted),
    ("/ml/v1/text/chat_stream", _watsonx_stream),
    ("/ml/v1/text/generation", _watsonx_text),
    ("/fim", _fill_in_the_middle),
    ("/generation", _nlp_cloud),
    ("/generate", _generated),
    ("/ai/run", _cloudflare),
    ("/actions/chat", _oci),
    ("/runs/", _langgraph),
    ("/api/v1/run/", _langflow),
    ("/agent", _agent),
    ("/models/v2/", _bytez),
    ("/petals", _petals),
    ("/custom", _custom),
    ("/fal", _fal),
    ("/chat/completions", _openai),
    ("/completions", _text_completion),
)


# -- Amazon's event stream ---------------------------------------------------------------------------------------------


def as_frames(*events: tuple[str, dict[str, Any]]) -> Spoken:
    """The content type and body of Amazon's frames."""
    return _FRAMES, b"".join(frame({":event-type": name}, json.dumps(body).encode()) for name, body in events)


def thrown(kind: str, message: str) -> bytes:
    """The frame of an exception, as Amazon's servers send it in the middle of a stream."""
    return frame({":message-type": "exception", ":exception-type": kind}, json.dumps({"message": message}).encode())


def frame(headers: Mapping[str, str], payload: bytes, *, kind: int = 7, length: int | None = None) -> bytes:
    """application/vnd.amazon.eventstream: lengths, their CRC, headers, payload, the CRC of it all.

    `kind`: the type of the headers, text by default. `length`: what the frame says of its own, if that is wrong.
    """
    every = {":message-type": "event", ":content-type": "application/json", **headers}
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", kind, len(value)) + value.encode()
        for name, value in every.items()
    )
    whole = 16 + len(packed) + len(payload)
    prelude = struct.pack("!II", whole if length is None else length, len(packed))
    head = prelude + struct.pack("!I", binascii.crc32(prelude)) + packed + payload
    return head + struct.pack("!I", binascii.crc32(head))


def invoked(events: list[dict[str, Any]]) -> Spoken:
    """Bedrock's `invoke` stream: the model's own events, in base64, in frames."""
    return _FRAMES, b"".join(
        frame(
            {":event-type": "chunk"}, json.dumps({"bytes": base64.b64encode(json.dumps(e).encode()).decode()}).encode()
        )
        for e in events
    )
