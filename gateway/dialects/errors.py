"""Errors raised before the body is read, in the format of the requested route."""

from __future__ import annotations

from gateway.dialects.dialect import ErrorAnswer
from gateway.dialects.messages_answer import error_body
from gateway.errors import GatewayError, http_status

_ANTHROPIC = ("/messages", "/messages/count_tokens")


def error_on(path: str, error: GatewayError) -> ErrorAnswer:
    """Anthropic's format on its routes, OpenAI's on all others."""
    if path.removeprefix("/v1") in _ANTHROPIC:
        return ErrorAnswer(http_status(error), error_body(error))
    return ErrorAnswer(http_status(error), error.as_body())
