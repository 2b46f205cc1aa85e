"""Error responses outside the endpoints, in the format of the address's dialect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import orjson
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

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


def raw_answer(error: GatewayError, path: str, more: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Status line, and all that follows the headers of every answer."""
    body = orjson.dumps(body_of(path, error))
    headers = b"".join([b"%s: %s\r\n" % header for header in more])
    kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    return STATUS_LINE[http_status(error)], headers + kind


@lru_cache(maxsize=64)
def shed_answer(error: GatewayError, url: bytes) -> tuple[bytes, bytes]:
    """The answer to a shed request, kept: under overload the same few are sent all the time."""
    return raw_answer(error, url.decode("ascii"), [(n.encode(), v.encode()) for n, v in error.headers.items()])
