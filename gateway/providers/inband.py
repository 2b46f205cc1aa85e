"""Errors inside an answer of status 200: what they mean, as if the provider had sent the status.

The words of a provider are read for their meaning only; none of them enters a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.providers.errors import FailedFault, UpstreamFault, fault_from_status
from gateway.providers.exchange import retry_after_s
from gateway.providers.told import Told, told_of

_CONTEXT, _FILTER, _QUOTA, _MODEL = (
    "context_length_exceeded", "content_filter", "insufficient_quota", "model_not_found",
)  # fmt: skip
"""The codes that clients act on."""

# What is found in an error's code, type or status; the first that matches holds. Words are compared without separators.
_NAMED: tuple[tuple[str, int, str], ...] = (
    (r"contextlength|contextwindow|prompttoolong|inputtoolong|stringabovemaxlength", 400, _CONTEXT),
    (r"contentfilter|contentpolicy|contentviolation|moderation|safety|sensitive|datainspection", 400, _FILTER),
    (r"insufficientquota|quotaexceeded|exceededquota", 429, _QUOTA),
    (r"ratelimit|toomanyrequest|resourceexhausted|throttl|concurrency", 429, ""),
    (r"insufficientbalance|insufficientcredit|insufficientfund|billing|payment|arrear", 402, ""),
    (r"modelnotfound|nosuchmodel|modelnotexist|unknownmodel", 404, _MODEL),
    (r"authentic|apikey|unauthor|invalidtoken|credential", 401, ""),
    (r"permission|forbidden|accessdenied", 403, ""),
    (r"requesttoolarge|payloadtoolarge", 413, ""),
    (r"notfound", 404, ""),
    (r"invalidrequest|invalidargument|invalidparam|badrequest|validation|unprocessable|unsupported", 400, ""),
    (r"timeout|deadline|timedout", 504, ""),
    (r"overload|unavailable|capacity|busy", 503, ""),
    (r"internal|servererror|apierror", 500, ""),
)  # fmt: skip

# What is found in the words of an error that has neither code nor type.
_SAID: tuple[tuple[str, int, str], ...] = (
    (r"context (length|window)|maximum context|prompt is too long|reduce the length", 400, _CONTEXT),
    (r"content (filter|management|policy)|flagged", 400, _FILTER),
    (r"rate.?limit|too many requests|requests per (minute|day)|tokens per (minute|day)", 429, ""),
    (r"model .{0,100}(does not exist|not found)|no such model", 404, _MODEL),
    (r"insufficient (balance|credit|funds)", 402, ""),
    (r"api.?key|unauthori[sz]ed|authentication", 401, ""),
    (r"overloaded|temporarily unavailable|try again later", 503, ""),
)

# MiniMax answers everything with 200 and a number of its own.
_MINIMAX = {
    1002: 429, 1004: 401, 1008: 402, 1026: 400, 1027: 400, 1039: 429, 1041: 429, 2013: 400, 2049: 401, 2056: 429,
}  # fmt: skip
_MINIMAX_FILTERED = (1026, 1027)
_MAX_WORDS = 2_000
_FINE = (None, "", 0, 200, "0", "200", "ok", "success")
"""What a field of an error holds when there is none."""


def fault_in(
    payload: Mapping[str, Any], headers: Mapping[str, str], *, named_error: bool = False
) -> UpstreamFault | None:
    """What went wrong, when `payload` is an error instead of an answer; `named_error`: its event says so."""
    base = payload.get("base_resp")
    if isinstance(base, Mapping) and (number := _number(base.get("status_code"))):
        code = _FILTER if number in _MINIMAX_FILTERED else ""
        return _fault(_MINIMAX.get(number, 502), code, headers, told_of(payload))
    for error in _errors(payload, named_error):
        if _says_something(error):
            return _fault(*_meaning(error), headers, told_of({"error": error}))
    return None


def _errors(payload: Mapping[str, Any], named_error: bool) -> Iterator[object]:
    yield payload.get("error")
    errors = payload.get("errors")
    if isinstance(errors, list) and errors and not payload.get("choices"):
        yield errors[0]
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and "error" in choice:
            yield choice["error"]
    if named_error or payload.get("object") == "error" or payload.get("type") == "error":
        yield payload
    bare = "choices" not in payload and any(isinstance(payload.get(name), str) for name in ("message", "msg"))
    if bare and payload.get("code") not in _FINE:
        yield payload


def _says_something(error: object) -> bool:
    """False for the empty errors that some providers send with every answer."""
    if isinstance(error, Mapping):
        return any(value not in _FINE for value in error.values() if not isinstance(value, dict | list) or value)
    return bool(error)


def _meaning(error: object) -> tuple[int, str]:
    """Status and known code of an error object."""
    if not isinstance(error, Mapping):
        return _matched(_SAID, str(error)[:_MAX_WORDS].lower()) or (502, "")
    values = [error.get(name) for name in ("code", "type", "status", "status_code", "http_code", "name")]
    named = [re.sub(r"[^a-z]", "", value[:_MAX_WORDS].lower()) for value in values if isinstance(value, str)]
    said = next((error[name] for name in ("message", "msg", "detail") if isinstance(error.get(name), str)), "")
    words = said[:_MAX_WORDS].lower()
    known = next((found for name in named if name and (found := _matched(_NAMED, name))), None)
    status = next((number for value in values if 400 <= (number := _number(value)) < 600), 0)
    # An OpenAI-compatible server's own type says less than the words about the length: "BadRequestError".
    told = _matched(_SAID, words)
    if told is not None and told[1] and (status or (known or (400, ""))[0]) in (400, 404, 413, 422):
        return status or 400, told[1]
    if status:
        return status, known[1] if known is not None and known[0] == status else ""
    return known or told or (502, "")


def _matched(table: tuple[tuple[str, int, str], ...], text: str) -> tuple[int, str] | None:
    return next(((status, code) for pattern, status, code in table if re.search(pattern, text)), None)


def _fault(status: int, code: str, headers: Mapping[str, str], told: Told) -> UpstreamFault:
    if status in (500, 502) and not told.overflows:
        return FailedFault("the provider reported an error instead of an answer", status=502, told=told)
    return fault_from_status(status, retry_after_s(headers), code, told)


def _number(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
