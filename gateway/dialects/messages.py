"""Anthropic's Messages: one request's answer, stream and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects.dialect import AnswerIdentity, Billed, ErrorAnswer
from gateway.dialects.messages_answer import MessagesStream, error_body, whole_message
from gateway.errors import GatewayError, http_status


class MessagesDialect:
    """`POST /v1/messages`. `stop_sequences` are the request's: the answer names the one that stopped it."""

    endpoint = "messages"

    def __init__(self, stop_sequences: tuple[str, ...] = ()) -> None:
        self._stop_sequences = stop_sequences

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        made = whole_message(body, answer.decision_id, answer.model, billed.usage, self._stop_sequences)
        return made | {"seqroute": billed.report}

    def stream(self, answer: AnswerIdentity) -> MessagesStream:
        return MessagesStream(answer.decision_id, answer.model, answer.prompt_tokens, self._stop_sequences)

    def error(self, error: GatewayError) -> ErrorAnswer:
        return ErrorAnswer(http_status(error), error_body(error))

    async def keep(self, session_id: str) -> None:
        """Anthropic's API keeps nothing that a later request refers to."""
