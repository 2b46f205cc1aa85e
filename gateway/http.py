"""HTTP helpers: bounded bodies, headers and parameters, JSON responses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.config.settings import LimitSettings
from gateway.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType
from gateway.money import MoneyError, nanousd_from_usd
from gateway.wording import did_you_mean


async def read_body(request: Request, limits: LimitSettings, headers: Mapping[str, str] | None = None) -> bytes:
    """Read a JSON body up to the size limit; `headers` are the request's, if known.

    Raises RequestTooLarge, UnsupportedMediaType, InvalidRequest.
    """
    headers = request.headers if headers is None else headers
    content_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaType(
            "Content-Type: expected application/json (curl's -d needs -H 'Content-Type: application/json')",
            param="Content-Type",
        )
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise UnsupportedMediaType(
            "Content-Encoding: expected none: send the body uncompressed", param="Content-Encoding"
        )
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise RequestTooLarge(f"body: expected at most {limits.body_bytes} bytes")
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                raise RequestTooLarge(f"body: expected at most {limits.body_bytes} bytes")
            chunks.append(chunk)
    except ClientDisconnect:
        raise InvalidRequest("body: the connection closed before the body was complete") from None
    return b"".join(chunks)


OnLeave = Callable[[], None]
Watch = Callable[[OnLeave], Callable[[], object]]
"""Calls back once when the client of a request disconnects; what it returns ends the watch."""
WATCH = "seqroute.watch"
"""The server's own `Watch` of a request, an extension of its scope: it needs no task that waits for messages."""


ONCE = frozenset(
    (
        "authorization", "x-api-key", "x-tenant-id", "x-tenant-budget-usd", "x-session-id", "x-session-budget-usd",
        "x-session-budget-share", "x-parent-session-id", "x-route-max-usd", "idempotency-key", "content-type",
    )
)  # fmt: skip
"""Headers that decide who pays and how much; a proxy may have checked the other of two values."""


def header_map(request: Request) -> dict[str, str]:
    """The headers by lower-case name. Raises InvalidRequest when one of ONCE is repeated."""
    raw = request.scope["headers"]
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(raw)}
    if len(found) < len(raw):
        _refuse_doubles(raw)
    return found


def _refuse_doubles(raw: Iterable[tuple[bytes, bytes]]) -> None:
    seen: set[str] = set()
    for name in (name.decode("latin-1") for name, _ in raw):
        if name in seen and name in ONCE:
            raise InvalidRequest(f"{name}: expected this header once", param=name)
        seen.add(name)


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(content), status, dict(headers or {}), media_type="application/json")


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raise InvalidRequest for a name, of a field or a filter, that is not among the known ones."""
    unknown = sorted(set(given).difference(known))
    if unknown:
        name, listed = unknown[0][:64], sorted(known)
        hint = did_you_mean(name, listed)
        expected = f"one of {', '.join(listed)}" if len(listed) > 1 else listed[0]
        raise InvalidRequest(f"{name}: expected {expected}{hint and f'; {hint}'}", param=name)


IGNORED_PARAMETERS = frozenset({"api-version", "beta"})
"""What clients of Azure and Anthropic append to every address."""


def query_values(request: Request, *known: str) -> Mapping[str, str]:
    """The query parameters of a route that takes exactly the known ones.

    Raises InvalidRequest for another one and for a repeated one: an ignored filter would answer with too much.
    """
    given = [pair for pair in request.query_params.multi_items() if pair[0] not in IGNORED_PARAMETERS]
    refuse_unknown((name for name, _ in given), known)
    values = dict(given)
    if len(values) < len(given):
        name = next(name for name in values if [other for other, _ in given].count(name) > 1)
        raise InvalidRequest(f"{name}: expected this parameter once", param=name)
    return values


def query_limit(values: Mapping[str, str], default: int, high: int) -> int:
    """The query parameter `limit`. Raises InvalidRequest."""
    value = values.get("limit")
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and 1 <= int(value) <= high):
        raise InvalidRequest(f"limit: expected an integer from 1 to {high}", param="limit")
    return int(value)


def read_budget(headers: Mapping[str, str], name: str) -> int | None:
    """A decimal USD amount in a header in nano-USD, or None. Raises InvalidRequest."""
    value = headers.get(name.lower())
    if value is None:
        return None
    try:
        return nanousd_from_usd(value)
    except MoneyError as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from error
