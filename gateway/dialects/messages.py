"""Anthropic's Messages: responses, streams and errors of one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects.dialect import AnswerIdentity, Billed, ErrorAnswer
from gateway.dialects.messages_answer import MessagesStream, error_body, whole_message
from gateway.errors import GatewayError, ProviderOverloaded, http_status


class MessagesDialect:
    """`POST /v1/messages`. The response names the one of `stop_sequences` that ended it."""

    endpoint = "messages"

    def __init__(self, stop_sequences: tuple[str, ...] = ()) -> None:
        self._stop_sequences = stop_sequences

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """A complete chat response as Anthropic's message."""
        made = whole_message(body, answer.decision_id, answer.model, billed.usage, self._stop_sequences)
        return made | {"usage": billed.told_in(made["usage"]), "seqroute": billed.report}

    def stream(self, answer: AnswerIdentity) -> MessagesStream:
        """A renderer of Anthropic's events."""
        return MessagesStream(answer.decision_id, answer.model, answer.prompt_tokens, self._stop_sequences)

    def error(self, error: GatewayError) -> ErrorAnswer:
        """The error in Anthropic's format, and with its status for an overloaded provider."""
        status = 529 if isinstance(error, ProviderOverloaded) else http_status(error)
        return ErrorAnswer(status, error_body(error))

    async def keep(self, session_id: str) -> None:
        """Store nothing: Anthropic's API has no references to earlier responses."""
