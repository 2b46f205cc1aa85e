"""Names the fault that an exchange with a provider shows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from gateway.providers.decoding import encoding_name
from gateway.providers.errors import (
    MAX_RETRY_AFTER_S,
    BrokenFault,
    ConnectFault,
    FailedFault,
    TimeoutFault,
    UpstreamFault,
    fault_from_status,
)
from gateway.providers.exchange import AnswerTooLarge, EncodingUnread, Exchange
from gateway.providers.reported_error import duration_s, report_in

_log = logging.getLogger("seqroute.providers")


def exchange_fault(exchange: Exchange, code: str = "") -> UpstreamFault | None:
    """The fault that the exchange shows, or None. `code`: as recognised by LiteLLM."""
    if exchange.status >= 400:
        name = exchange.headers.get("x-amzn-errortype", "").partition(":")[0]
        reported = report_in(exchange.body, name)
        return fault_from_status(exchange.status, retry_after_s(exchange.headers), code, reported)
    if exchange.attempts and not exchange.reached:
        return ConnectFault("the provider could not be reached", address=exchange.address)
    if exchange.failure is not None:
        return wire_fault(exchange)
    if 300 <= exchange.status < 400:
        return FailedFault("the provider redirected to another address", status=exchange.status)
    return None


def fault_of_sent(exchange: Exchange, error: Exception) -> UpstreamFault:
    """The fault of a failed call of our clients, from the exchange."""
    if isinstance(error, UpstreamFault):
        return error
    seen = exchange_fault(exchange)
    if seen is None:
        _log.error("a call failed in the gateway: %s", type(error).__name__)
    return seen or BrokenFault("the call failed in the gateway", dispatched=exchange.reached)


def wire_fault(exchange: Exchange) -> UpstreamFault:
    """The fault of a response that broke off."""
    failure = exchange.failure or httpx.ReadError
    if issubclass(failure, httpx.TimeoutException):
        return TimeoutFault("the connection to the provider timed out")
    if issubclass(failure, AnswerTooLarge):
        return BrokenFault("the provider's response was too large, or not compressed as it says")
    if issubclass(failure, EncodingUnread):
        encoding = encoding_name(exchange.headers.get("content-encoding", ""))
        return BrokenFault(f"the provider's response has the content-encoding {encoding}, which cannot be read here")
    return BrokenFault("the connection to the provider broke off")


def timeout_fault(exchange: Exchange, ours: bool) -> UpstreamFault:
    """The fault of a timeout, of our own limit (`ours`) or of the socket."""
    if not exchange.reached:
        return ConnectFault("the provider could not be reached in time", address=exchange.address)
    message = "the provider did not answer in time" if ours else "the connection to the provider timed out"
    return TimeoutFault(message, status=exchange.status)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The provider's Retry-After in seconds, at most MAX_RETRY_AFTER_S; None if unreadable."""
    milliseconds = headers.get("retry-after-ms") or headers.get("x-ms-retry-after-ms", "")
    text = headers.get("retry-after", "").strip()[:64]
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else duration_s(text)
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None
