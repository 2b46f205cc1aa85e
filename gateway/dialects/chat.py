"""Responses of chat completions: bodies and chunks with our id, usage once, OpenAI's errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.catalog.usage import Usage
from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect, StreamRenderer
from gateway.dialects.sse import DONE_FRAME, billed_frame, data_frame
from gateway.errors import GatewayError
from gateway.unchecked import at, listed, mapping, objects_in


class ChatDialect(Dialect):
    """`POST /chat/completions`."""

    endpoint = "chat"

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """The provider's body with our id and the catalogue's name of the model that answered."""
        completion, created = completion_id(answer.decision_id), int(answer.created_s)
        made = answered(body, completion, "chat.completion", answer.model, created)
        usage = estimated_usage(billed.usage) if billed.estimated else made.get("usage") or {}
        return made | {"usage": billed.told_in(usage)}

    def stream(self, answer: AnswerIdentity) -> ChatStream:
        return ChatStream(answer, self._include_usage)


class ChatStream(StreamRenderer):
    """Chunks with our id, and a last usage chunk with the bill if the client asked for usage."""

    def __init__(self, answer: AnswerIdentity, include_usage: bool) -> None:
        self._answer = answer
        self._name = completion_id(answer.decision_id)
        self._created = int(answer.created_s)
        self._include_usage = include_usage
        self._reported: dict[str, Any] | None = None

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """One chunk; the usage chunk is kept for the end."""
        shown = answered(chunk, self._name, "chat.completion.chunk", self._answer.model, self._created)
        if shown.get("usage") and not shown.get("choices"):
            self._reported = shown
            return b""
        if not self._include_usage:
            shown.pop("usage", None)
        return data_frame(shown)

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        last = DONE_FRAME if error is None else data_frame(error.as_body())
        frames = []
        if error is None and self._include_usage:
            reported = self._reported
            if reported is None or billed.estimated:
                empty = {"choices": [], "usage": estimated_usage(billed.usage)}
                reported = answered(empty, self._name, "chat.completion.chunk", self._answer.model, self._created)
            told = {"usage": billed.told_in(reported["usage"]), "seqroute": billed.report}
            frames.append(data_frame(reported | told))
        return b"".join([*frames, billed_frame(billed.report, last)])


def completion_id(decision_id: str) -> str:
    """Our id for the body, because a provider's may be missing or repeated."""
    return "chatcmpl-" + decision_id.removeprefix("dec_")


def answered(body: Mapping[str, Any], completion: str, kind: str, model: str, created: int) -> dict[str, Any]:
    """A provider's body or chunk with our id `completion` and the catalogue's model name.

    `created` is the fallback for providers that send no time.
    """
    made = {"id": completion, "object": kind, "created": created, "model": model, **body}
    made["id"], made["object"], made["model"] = completion, kind, model
    if type(made["created"]) is not int:
        made["created"] = created
    return made


def generated_text(body: Mapping[str, Any]) -> str:
    """All generated text of a complete response, to count tokens when usage is missing."""
    return "".join(
        text for choice in objects_in(body.get("choices")) for text in generated_texts(mapping(choice.get("message")))
    )


def first_message(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message of a whole answer's first choice; empty where a provider sent none."""
    return mapping(at(next(iter(listed(body.get("choices"))), None), "message"))


def estimated_usage(usage: Usage) -> dict[str, Any]:
    """An estimated usage, marked as such."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "estimated": True,
    }


def generated_texts(message: Mapping[str, Any]) -> Iterable[str]:
    """Generated strings in a message or delta, including reasoning and tool calls."""
    for name in ("content", "refusal", "reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            yield message[name]
    calls = objects_in(message.get("tool_calls"))
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    for call in calls:
        function = mapping(call.get("function") or call.get("custom"))
        for name in ("name", "arguments", "input"):
            if isinstance(function.get(name), str) and function[name]:
                yield function[name]
