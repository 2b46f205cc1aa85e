"""Chat completions, the way down: bodies and chunks under our id, the usage shown once, errors in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.catalog.usage import Usage
from gateway.dialects.dialect import AnswerIdentity, Billed, ErrorAnswer
from gateway.dialects.sse import DONE_FRAME, billed_frame, data_frame
from gateway.errors import GatewayError, http_status


class ChatDialect:
    """`POST /chat/completions`."""

    endpoint = "chat"

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """The provider's body under our id, with the catalogue's name of the model that answered."""
        made = answered_body(body, answer.decision_id, answer.model, answer.created_s)
        return made | {"usage": estimated_usage(billed.usage)} if billed.estimated else made

    def stream(self, answer: AnswerIdentity) -> ChatStream:
        return ChatStream(answer, self._include_usage)

    def error(self, error: GatewayError) -> ErrorAnswer:
        return ErrorAnswer(http_status(error), error.as_body())

    async def keep(self, session_id: str) -> None:
        """Nothing is kept of a chat completion."""


class ChatStream:
    """Chunks under our id; the usage chunk, where the client asked for it, at the end and with the bill."""

    def __init__(self, answer: AnswerIdentity, include_usage: bool) -> None:
        self._answer = answer
        self._name = completion_id(answer.decision_id)
        self._created = int(answer.created_s)
        self._include_usage = include_usage
        self._reported: dict[str, Any] | None = None

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        shown = answered_chunk(chunk, self._name, self._answer.model, self._created)
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
            usage = self._reported
            if usage is None or billed.estimated:
                usage = usage_chunk(self._answer.decision_id, self._answer.model, billed.usage, self._created)
            frames.append(data_frame({**usage, "seqroute": billed.report}))
        return b"".join([*frames, billed_frame(billed.report, last)])


def completion_id(decision_id: str) -> str:
    """The id in the body: ours, because a provider's may be missing or used twice."""
    return "chatcmpl-" + decision_id.removeprefix("dec_")


def answered_body(body: Mapping[str, Any], decision_id: str, model: str, created_s: float) -> dict[str, Any]:
    """The provider's body under our id, with the catalogue's name of the model that really answered.

    `created_s` is for providers that do not say when.
    """
    return _answered(body, completion_id(decision_id), "chat.completion", model, int(created_s))


def answered_chunk(chunk: Mapping[str, Any], completion: str, model: str, created: int) -> dict[str, Any]:
    """The same for a chunk of the stream whose id is `completion`."""
    return _answered(chunk, completion, "chat.completion.chunk", model, created)


def _answered(body: Mapping[str, Any], completion: str, kind: str, model: str, created: int) -> dict[str, Any]:
    made = {"id": completion, "object": kind, "created": created, "model": model, **body}
    made["id"], made["object"], made["model"] = completion, kind, model
    if type(made["created"]) is not int:
        made["created"] = created
    return made


def generated_text(body: Mapping[str, Any]) -> str:
    """Everything generated in a whole answer, for a count where usage is missing."""
    messages = [choice.get("message") for choice in _listed(body.get("choices"))]
    return "".join(text for message in messages if isinstance(message, Mapping) for text in generated_texts(message))


def estimated_usage(usage: Usage) -> dict[str, Any]:
    """Usage the provider did not report, marked as ours."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "estimated": True,
    }


def usage_chunk(decision_id: str, model: str, usage: Usage, created_s: float) -> dict[str, Any]:
    """The usage chunk of a stream whose provider reported none."""
    return {
        "id": completion_id(decision_id),
        "object": "chat.completion.chunk",
        "created": int(created_s),
        "model": model,
        "choices": [],
        "usage": estimated_usage(usage),
    }


def _listed(value: object) -> list[Any]:
    """What a provider should have sent as a list."""
    return value if isinstance(value, list) else []


def generated_texts(message: Mapping[str, Any]) -> Iterable[str]:
    """Every generated string in a message or a delta: answer, refusal, reasoning, tool names and arguments."""
    for name in ("content", "refusal", "reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            yield message[name]
    made = message.get("tool_calls")
    calls = [*(made if isinstance(made, list) else ()), {"function": message.get("function_call")}]
    for call in calls:
        function = call.get("function") or call.get("custom") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            for name in ("name", "arguments", "input"):
                if isinstance(function.get(name), str) and function[name]:
                    yield function[name]
