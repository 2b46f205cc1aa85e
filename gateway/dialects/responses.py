"""OpenAI's Responses: response, stream, errors and storage of one request.

An answer of OpenAI's own servers is passed on as it came, with our ids, our name of the model, and the bill.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect, ErrorAnswer, StreamRenderer
from gateway.dialects.forwarded import FORWARDED
from gateway.dialects.responses_answer import ResponseObject, ResponsesStream, response_id, usage_object, whole_response
from gateway.dialects.responses_request import ResponsesRequest
from gateway.dialects.sse import billed_frame, event_frame
from gateway.dialects.usage_report import whole_counts
from gateway.errors import GatewayError, SessionPaused, http_status

_LIMITED_HERE = ("instructions", "max_output_tokens", "max_tool_calls", "prompt_cache_key")
"""Fields that the gateway fills for a client that sent none."""
Store = Callable[[str, Mapping[str, Any], list[Mapping[str, Any]]], Awaitable[None]]
"""Stores a response object and the conversation, for later requests that continue it."""


class ResponsesDialect(Dialect):
    """`POST /v1/responses`."""

    endpoint = "responses"

    def __init__(self, request: ResponsesRequest, store: Store) -> None:
        self._request = request
        self._store = store
        self._stream: ResponsesStream | ForwardedStream | None = None
        self._ended: dict[str, Any] | None = None

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        forwarded = body.get(FORWARDED)
        if isinstance(forwarded, Mapping):
            self._ended = _renamed(forwarded, answer, self._request)
        else:
            self._ended = whole_response(self._object(answer), body, billed.usage)
        return self._ended | {"usage": billed.told_in(self._ended.get("usage")), "seqroute": billed.report}

    def stream(self, answer: AnswerIdentity) -> StreamRenderer:
        self._stream = translated = ResponsesStream(self._object(answer))
        if self._request.forwarded is not None:
            self._stream = ForwardedStream(answer, self._request, translated)
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


class ForwardedStream(StreamRenderer):
    """Events of OpenAI's own servers, passed on; a translated answer goes to `translated`."""

    def __init__(self, answer: AnswerIdentity, request: ResponsesRequest, translated: ResponsesStream) -> None:
        self._answer = answer
        self._request = request
        self._translated = translated
        self._passing: bool | None = None
        self._begun: Mapping[str, Any] = {}
        self._last: dict[str, Any] | None = None
        self._sequence = 0
        self._ended: dict[str, Any] | None = None

    @property
    def ended(self) -> dict[str, Any] | None:
        """The response object of the last event, once sent."""
        return self._ended if self._passing else self._translated.ended

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """The event of one chunk; the last is kept for the end."""
        event = chunk.get(FORWARDED)
        if self._passing is None:
            self._passing = event is not None
        if not self._passing:
            return self._translated.chunk(chunk)
        if event is None:
            return b""
        number = event.get("sequence_number")
        self._sequence = number + 1 if isinstance(number, int) else self._sequence + 1
        response = event.get("response")
        if isinstance(response, Mapping):
            event = {**event, "response": _renamed(response, self._answer, self._request)}
            self._begun = event["response"]
            if event["type"] in ("response.completed", "response.incomplete"):
                self._last = event
                return b""
        return event_frame(str(event.get("type")), event)

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        if not self._passing:
            return self._translated.end(billed, error)
        if error is not None or self._last is None:
            told = {"code": error.code, "message": error.message} if error is not None else None
            usage = usage_object(billed.usage)
            self._ended = {**self._begun, "status": "failed", "error": told, "usage": usage}
            last = {"type": "response.failed", "sequence_number": self._sequence, "response": self._ended}
        else:
            self._ended, last = self._last["response"], self._last
        shown = {**self._ended, "usage": billed.told_in(self._ended.get("usage"))}
        name = str(last["type"])
        return billed_frame(billed.report, event_frame(name, {**last, "response": shown, "seqroute": billed.report}))


def _renamed(response: Mapping[str, Any], answer: AnswerIdentity, request: ResponsesRequest) -> dict[str, Any]:
    """A response of OpenAI's under our id, with the client's own words for what the gateway may have changed."""
    output, usage = response.get("output"), response.get("usage")
    return {
        "object": "response",
        "status": "completed",
        **response,
        **{name: None for name in _LIMITED_HERE if name in response},
        **request.echoed,
        "output": output if isinstance(output, list) else [],
        "usage": whole_counts(usage) if isinstance(usage, Mapping) else None,
        "id": response_id(answer.decision_id),
        "model": answer.model,
        "store": request.store,
        "previous_response_id": request.echoed.get("previous_response_id"),
    }
