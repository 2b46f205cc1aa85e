"""Anthropic's Messages: responses, streams and errors of one request.

An answer of Anthropic's own servers is passed on as it came, with our id, our name of the model, and the bill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect, ErrorAnswer, StreamRenderer
from gateway.dialects.forwarded import FORWARDED
from gateway.dialects.messages_answer import MessagesStream, error_body, message_id, usage_object, whole_message
from gateway.dialects.sse import billed_frame, event_frame
from gateway.dialects.usage_report import whole_counts
from gateway.errors import GatewayError, ProviderOverloaded, http_status


class MessagesDialect(Dialect):
    """`POST /v1/messages`. The response names the one of `stop_sequences` that ended it."""

    endpoint = "messages"

    def __init__(self, stop_sequences: tuple[str, ...] = (), *, forwarded: bool = False) -> None:
        self._stop_sequences = stop_sequences
        self._forwarded = forwarded

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        forwarded = body.get(FORWARDED)
        if isinstance(forwarded, Mapping):
            named = {"id": message_id(answer.decision_id), "model": answer.model}
            usage = billed.told_in(_counted(forwarded) or usage_object(billed.usage))
            return {**forwarded, **named, "usage": usage, "seqroute": billed.report}
        made = whole_message(body, answer.decision_id, answer.model, billed.usage, self._stop_sequences)
        return made | {"usage": billed.told_in(made["usage"]), "seqroute": billed.report}

    def stream(self, answer: AnswerIdentity) -> StreamRenderer:
        made = MessagesStream(answer.decision_id, answer.model, answer.prompt_tokens, self._stop_sequences)
        return ForwardedMessagesStream(answer, made) if self._forwarded else made

    def error(self, error: GatewayError) -> ErrorAnswer:
        """The error in Anthropic's format, and with its status for an overloaded provider."""
        status = 529 if isinstance(error, ProviderOverloaded) else http_status(error)
        return ErrorAnswer(status, error_body(error))


class ForwardedMessagesStream(StreamRenderer):
    """Events of Anthropic's own servers, passed on; the last two wait for the bill.

    A server that answers in OpenAI's dialect is translated.
    """

    def __init__(self, answer: AnswerIdentity, translated: MessagesStream) -> None:
        self._answer = answer
        self._translated = translated
        self._passing: bool | None = None
        self._delta: Mapping[str, Any] = {}

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        event = chunk.get(FORWARDED)
        if self._passing is None:
            self._passing = event is not None
        if not self._passing:
            return self._translated.chunk(chunk)
        if event is None:
            return b""
        kind = event.get("type")
        if kind == "message_start" and isinstance(event.get("message"), Mapping):
            named = {"id": message_id(self._answer.decision_id), "model": self._answer.model}
            usage = _counted(event["message"])
            event = {**event, "message": {**event["message"], **named} | ({"usage": usage} if usage else {})}
        elif kind == "message_delta":
            self._delta = event
            return b""
        elif kind == "message_stop":
            return b""
        return event_frame(str(kind), event)

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        if not self._passing or error is not None:
            return self._translated.end(billed, error)
        usage = _counted(self._delta) or usage_object(billed.usage)
        delta = {**self._delta, "usage": billed.told_in(usage), "seqroute": billed.report}
        stop = billed_frame(billed.report, event_frame("message_stop", {"type": "message_stop"}))
        return event_frame("message_delta", delta) + stop


def _counted(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The usage of a message or event, its counts as numbers."""
    usage = answer.get("usage")
    return whole_counts(usage) if isinstance(usage, Mapping) else None
