"""Errors before and beside the endpoints, in the shape that the client of an address reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from gateway.dialects.errors import error_on
from gateway.errors import GatewayError, http_status
from gateway.http import json_response

_BELOW_MESSAGES = re.compile(r"(/v1)?/messages/.*")


def body_of(path: str, error: GatewayError) -> Mapping[str, Any]:
    """The dialect's error object; Anthropic's also for addresses below its own that lead nowhere."""
    return error_on("/messages" if _BELOW_MESSAGES.fullmatch(path) else path, error).body


def refusal(path: str, error: GatewayError) -> Response:
    return json_response(body_of(path, error), http_status(error), error.headers)
