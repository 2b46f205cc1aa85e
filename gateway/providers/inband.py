"""Errors inside an answer of status 200: what they mean, as if the provider had sent the status.

The words of a provider are read for their meaning only; none of them enters a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.providers import meanings
from gateway.providers.errors import FailedFault, UpstreamFault, fault_from_status
from gateway.providers.exchange import retry_after_s
from gateway.providers.told import Told, told_of

# MiniMax answers everything with 200 and a number of its own.
_MINIMAX = {
    1002: 429, 1004: 401, 1008: 402, 1026: 400, 1027: 400, 1039: 429, 1041: 429, 2013: 400, 2049: 401, 2056: 429,
}  # fmt: skip
_MINIMAX_FILTERED = (1026, 1027)
_WORDS = ("message", "msg", "detail", "error_message", "errorMessage", "error_msg", "Message", "faultstring")
"""The fields that hold an error's sentence."""
_ANSWERS = frozenset({"usage", "output", "outputs", "result", "response", "data", "content", "candidates"})
"""Fields of what is no error, though it has a sentence too."""
_FINE = (None, "", 0, 200, "0", "200", "ok", "success")
"""What a field of an error holds when there is none."""


def fault_in(
    payload: Mapping[str, Any], headers: Mapping[str, str], *, named_error: bool = False, alone: bool = False
) -> UpstreamFault | None:
    """What went wrong, when `payload` is an error instead of an answer.

    `named_error`: its event says so. `alone`: it is all that the provider sent, so no heartbeat.
    """
    base = payload.get("base_resp")
    if isinstance(base, Mapping) and (number := _number(base.get("status_code"))):
        code = meanings.FILTER if number in _MINIMAX_FILTERED else ""
        return _fault(_MINIMAX.get(number, 502), code, headers, told_of(payload))
    for error in _errors(payload, named_error, alone):
        if _says_something(error):
            return _fault(*_meaning(error), headers, told_of({"error": error}))
    return None


def _errors(payload: Mapping[str, Any], named_error: bool, alone: bool) -> Iterator[object]:
    yield from (payload.get(name) for name in ("error", "Error", "fault"))
    errors = payload.get("errors")
    if isinstance(errors, list) and errors and not payload.get("choices"):
        yield errors[0]
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and "error" in choice:
            yield choice["error"]
    if named_error or payload.get("object") == "error" or payload.get("type") == "error":
        yield payload
    says = "choices" not in payload and any(isinstance(payload.get(name), str) and payload[name] for name in _WORDS)
    if says and (payload.get("code") not in _FINE or (alone and payload.keys().isdisjoint(_ANSWERS))):
        yield payload


def _says_something(error: object) -> bool:
    """False for the empty errors that some providers send with every answer."""
    if isinstance(error, Mapping):
        return any(value not in _FINE for value in error.values() if not isinstance(value, dict | list) or value)
    return bool(error)


def _meaning(error: object) -> meanings.Meaning:
    """Status and known code of an error object."""
    if not isinstance(error, Mapping):
        return meanings.of_words(str(error)) or (502, "")
    values = [error.get(name) for name in ("code", "type", "status", "status_code", "statusCode", "http_code", "name")]
    words = next((error[name] for name in _WORDS if isinstance(error.get(name), str)), "")
    known = next((found for value in values if isinstance(value, str) and (found := meanings.of_name(value))), None)
    status = next((number for value in values if 400 <= (number := _number(value)) < 600), 0)
    # An OpenAI-compatible server's own type says less than the words about the length: "BadRequestError".
    told = meanings.of_words(words)
    if told is not None and told[1] and (status or (known or (400, ""))[0]) in (400, 404, 413, 422):
        return status or told[0], told[1]
    if status:
        return status, known[1] if known is not None and known[0] == status else ""
    return known or told or (502, "")


def _fault(status: int, code: str, headers: Mapping[str, str], told: Told) -> UpstreamFault:
    if status in (500, 502) and not told.overflows:
        return FailedFault("the provider reported an error instead of an answer", status=502, told=told)
    return fault_from_status(status, retry_after_s(headers), code, told)


def _number(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
