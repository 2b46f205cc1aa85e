"""OpenAI's Responses: response, stream, errors and storage of one request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.dialects.dialect import AnswerIdentity, Billed, ErrorAnswer
from gateway.dialects.responses_answer import ResponseObject, ResponsesStream, whole_response
from gateway.dialects.responses_request import ResponsesRequest
from gateway.errors import GatewayError, SessionPaused, http_status

Store = Callable[[str, Mapping[str, Any], list[Mapping[str, Any]]], Awaitable[None]]
"""Stores a response object and the conversation, for later requests that continue it."""


class ResponsesDialect:
    """`POST /v1/responses`."""

    endpoint = "responses"

    def __init__(self, request: ResponsesRequest, store: Store) -> None:
        self._request = request
        self._store = store
        self._stream: ResponsesStream | None = None
        self._ended: dict[str, Any] | None = None

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """A complete chat response as a response object."""
        self._ended = whole_response(self._object(answer), body, billed.usage)
        return self._ended | {"usage": billed.told_in(self._ended["usage"]), "seqroute": billed.report}

    def stream(self, answer: AnswerIdentity) -> ResponsesStream:
        """A renderer of Responses events."""
        self._stream = ResponsesStream(self._object(answer))
        return self._stream

    def error(self, error: GatewayError) -> ErrorAnswer:
        """A spent budget or a pause becomes a 400.

        Codex shows it at once, but retries a 402 or 409 five times.
        """
        status = http_status(error)
        final = status == 402 or isinstance(error, SessionPaused)
        return ErrorAnswer(400 if final else status, error.as_body())

    async def keep(self, session_id: str) -> None:
        """Store a complete response, unless the client asked for `store: false`."""
        ended = self._ended if self._stream is None else self._stream.ended
        if ended is not None and self._request.store and ended["status"] != "failed":
            await self._store(session_id, ended, [*self._request.items, *ended["output"]])

    def _object(self, answer: AnswerIdentity) -> ResponseObject:
        request = self._request
        return ResponseObject(
            answer.decision_id, answer.model, answer.created_s, request.echoed, request.tools, request.store
        )
