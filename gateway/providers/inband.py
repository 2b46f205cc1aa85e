"""Errors inside a response with status 200, mapped to the status that they mean.

The provider's messages are only classified; no part of them enters a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.dialects.raw_answer import last_error
from gateway.providers import meanings
from gateway.providers.errors import BrokenMidAnswer, FailedFault, TimeoutFault, UpstreamFault, fault_from_status
from gateway.providers.exchange import AnswerTooLarge, EncodingUnread, Exchange
from gateway.providers.exchange_faults import retry_after_s, wire_fault
from gateway.providers.reported_error import WORDS, ReportedError, report_of

# MiniMax always answers with 200 and its own number.
_MINIMAX = {
    1002: 429, 1004: 401, 1008: 402, 1026: 400, 1027: 400, 1039: 429, 1041: 429, 2013: 400, 2049: 401, 2056: 429,
}  # fmt: skip
_MINIMAX_FILTERED = (1026, 1027)
_NAMES = ("code", "type", "status", "status_code", "statusCode", "http_code", "name", "Code", "__type")
"""Fields with an error's number or name."""
_PLACES = frozenset({"error", "Error", "fault", "errors", "type"})
"""Fields that hold an error, or say that the payload is one."""
_ANSWERS = frozenset({"usage", "output", "outputs", "result", "response", "data", "content", "candidates"})
"""Fields of payloads that are not errors although they have a message field."""
_FINE = (None, "", 0, 200, "0", "200", "ok", "success")
"""Values of error fields that mean success."""
_UNREAD = (AnswerTooLarge, EncodingUnread)


def fault_in(
    payload: Mapping[str, Any], headers: Mapping[str, str], *, named_error: bool = False, alone: bool = False
) -> UpstreamFault | None:
    """The fault in a payload, or None if it is not an error.

    `named_error`: it came in an error event. `alone`: the provider sent nothing else, so it is not a heartbeat.
    """
    base = payload.get("base_resp")
    if base is not None and isinstance(base, Mapping) and (number := _number(base.get("status_code"))):
        code = meanings.FILTER if number in _MINIMAX_FILTERED else ""
        return _fault(_MINIMAX.get(number, 502), code, headers, report_of(payload))
    for error in _errors(payload, named_error, alone):
        if _says_something(error):
            return _fault(*_meaning(error), headers, report_of({"error": error}))
    return None


def reported_in(exchange: Exchange) -> UpstreamFault | None:
    """The fault that an answer of status 200 reports, as a whole or in its stream's last event."""
    try:
        payload = orjson.loads(exchange.body)
    except ValueError:
        payload = last_error(exchange.body)
    if isinstance(payload, list):
        payload = next((each for each in payload if isinstance(each, dict) and each.get("error")), None)
    if not isinstance(payload, dict):
        return None
    failed = payload.get("status") == "failed" or payload.get("type") == "error"
    return fault_in(payload, exchange.headers, named_error=failed, alone=True)


def broken_off(exchange: Exchange, *, answered: bool = False) -> UpstreamFault:
    """The fault of a stream that broke off: its provider's last error, else the break.

    `answered`: content had come before.
    """
    seen = wire_fault(exchange)
    said = reported_in(exchange) if exchange.failure is None or not issubclass(exchange.failure, _UNREAD) else None
    if said is None or isinstance(seen, TimeoutFault):
        return seen
    return BrokenMidAnswer(said) if answered else said


def _errors(payload: Mapping[str, Any], named_error: bool, alone: bool) -> Iterator[object]:
    if not named_error and payload.get("choices") and _PLACES.isdisjoint(payload) and payload.get("object") != "error":
        yield from _of_choices(payload)  # of an ordinary answer or chunk
        return
    given = (payload.get(name) for name in ("error", "Error", "fault"))
    yield from (payload if error is True and not payload.get("choices") else error for error in given)
    errors = payload.get("errors")
    if isinstance(errors, list) and errors and not payload.get("choices"):
        yield errors[0]
    yield from _of_choices(payload)
    if named_error or payload.get("object") == "error" or payload.get("type") == "error":
        yield payload
    says = "choices" not in payload and any(isinstance(payload.get(name), str) and payload[name] for name in WORDS)
    if says and (payload.get("code") not in _FINE or (alone and payload.keys().isdisjoint(_ANSWERS))):
        yield payload
    if alone and not payload.get("choices"):
        yield from _within(payload)


def _of_choices(payload: Mapping[str, Any]) -> Iterator[object]:
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and "error" in choice:
            yield choice["error"]


def _within(payload: Mapping[str, Any]) -> Iterator[object]:
    """Errors one level deeper: `{"Response": {"Error": ...}}`, `{"detail": {"message": ...}}`."""
    for inner in payload.values():
        if isinstance(inner, Mapping):
            yield inner.get("Error") or inner.get("error")
            if any(isinstance(inner.get(name), str) for name in WORDS) and inner.get("code", "?") not in _FINE:
                yield inner


def _says_something(error: object) -> bool:
    """False for the empty errors that some providers send with every response."""
    if isinstance(error, Mapping):
        if any(error.get(name) in _FINE[2:] for name in ("code", "status")):
            return False
        return any(value not in _FINE for value in error.values() if not isinstance(value, dict | list) or value)
    return bool(error)


def _meaning(error: object) -> meanings.Meaning:
    """Status and client-visible code of an error object."""
    if not isinstance(error, Mapping):
        return meanings.of_words(str(error)) or (502, "")
    values = [error.get(name) for name in _NAMES]
    words = next((error[name] for name in WORDS if isinstance(error.get(name), str)), "")
    known = next((found for value in values if isinstance(value, str) and (found := meanings.of_name(value))), None)
    status = next((number for value in values if 400 <= (number := _number(value)) < 600), 0)
    # A generic type such as "BadRequestError" is less specific than a message about the length.
    by_message = meanings.of_words(words)
    refuses = (status or (known or (400, ""))[0]) in (400, 404, 413, 422)
    code = "" if by_message is None else by_message[1]
    if code == meanings.QUOTA and refuses and not meanings.of_account(words):
        code = ""  # the words may be the client's, repeated
    if by_message is not None and code and refuses:
        return status or by_message[0], code
    if status:
        return status, known[1] if known is not None and known[0] == status else ""
    return known or by_message or (502, "")


def _fault(status: int, code: str, headers: Mapping[str, str], reported: ReportedError) -> UpstreamFault:
    if status in (500, 502) and not reported.overflows:
        return FailedFault("the provider reported an error instead of an answer", status=502, reported=reported)
    return fault_from_status(status, retry_after_s(headers), code, reported)


def _number(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
