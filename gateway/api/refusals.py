"""Error responses outside the endpoints, in the format of the address's dialect."""

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
    """The dialect's error object. Unknown addresses below `/messages` get Anthropic's."""
    return error_on("/messages" if _BELOW_MESSAGES.fullmatch(path) else path, error).body


def refusal(path: str, error: GatewayError) -> Response:
    """The error as a response, with its status and headers."""
    return json_response(body_of(path, error), http_status(error), error.headers)
