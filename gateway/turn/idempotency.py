"""Idempotency keys: stored responses, and the response to a repeated request."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

from gateway.accounts.sessions import session_refuses
from gateway.dialects.dialect import Dialect
from gateway.errors import (
    GatewayError,
    IdempotencyInFlight,
    IdempotencyMismatch,
    InvalidRequest,
    RateLimited,
)
from gateway.http import json_response
from gateway.ledger.rates import Limited
from gateway.ledger.types import (
    Answer,
    BodyMismatch,
    InFlight,
    ParentRefused,
    Replay,
    ReserveOutcome,
    SessionClosed,
    TenantMissing,
)

KEPT_MS = 24 * 3600 * 1000
MAX_TRANSCRIPT_BYTES = 4 * 2**20


class Transcript:
    """The bytes of a stream for replay under its idempotency key; dropped if too long."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._size = 0
        self.overflowed = False

    def add(self, frame: bytes) -> None:
        """Append a frame, or drop everything beyond the limit."""
        self._size += len(frame)
        if self._size > MAX_TRANSCRIPT_BYTES:
            self.overflowed = True
            self._frames.clear()
        elif not self.overflowed:
            self._frames.append(frame)

    def whole(self) -> bytes:
        """All frames."""
        return b"".join(self._frames)


def kept_answer(response: Response) -> Answer:
    """A complete response for replay."""
    return Answer(response.status_code, {**response.headers}, bytes(response.body))


def kept_stream(transcript: Transcript, last: bytes, headers: Mapping[str, str]) -> Answer:
    """A stream for replay, closed by `last`; an error if it was too long to store."""
    if transcript.overflowed:
        too_long = InvalidRequest(
            f"Idempotency-Key: the answer was longer than the {MAX_TRANSCRIPT_BYTES} bytes kept; use a new key",
            param="Idempotency-Key",
        )
        return Answer(too_long.status, {"content-type": "application/json"}, orjson.dumps(too_long.as_body()))
    kept = {**headers, "content-type": "text/event-stream; charset=utf-8"}
    return Answer(200, kept, transcript.whole() + last)


def error_answer(dialect: Dialect, error: GatewayError) -> Response:
    """An error response in this dialect."""
    shown = dialect.error(error)
    return json_response(shown.body, shown.status, error.headers)


def answer_again(found: Replay | InFlight | BodyMismatch) -> Response:
    """Replay the stored response of a key. Raises if none is stored yet, or on mismatch."""
    if isinstance(found, Replay):
        kept = {name: value for name, value in found.headers.items() if name.lower() != "content-length"}
        return Response(found.body, found.status, kept | {"x-seqroute-replayed": "true"})
    if isinstance(found, InFlight):
        raise IdempotencyInFlight(
            "a request with this Idempotency-Key is still running",
            headers={"Retry-After": "1"},
            param="Idempotency-Key",
        )
    raise IdempotencyMismatch("this Idempotency-Key was used with another body; use a new key", param="Idempotency-Key")


def answer_or_raise(outcome: ReserveOutcome, session_id: str) -> Response:
    """The replay or error of a reservation that was refused for reasons other than money."""
    if isinstance(outcome, Replay | InFlight | BodyMismatch):
        return answer_again(outcome)
    if isinstance(outcome, Limited):
        raise _rate_limited(outcome)
    assert isinstance(outcome, SessionClosed | TenantMissing | ParentRefused)
    raise session_refuses(outcome, session_id)


_LIMIT_WORDS = {
    "requests": "{limit} requests per minute",
    "tokens": "{limit} tokens per minute",
    "parallel": "{limit} concurrent requests",
}


def _rate_limited(found: Limited) -> RateLimited:
    """429 with the time to try again; no retry of a request larger than the limit itself."""
    limit = _LIMIT_WORDS[found.resource].format(limit=found.limit)
    if found.never:
        words, again = (
            f"this {found.account}'s limit is {limit}, and this request alone needs more; shorten it",
            {"x-should-retry": "false"},
        )
    else:
        words, again = f"this {found.account}'s limit of {limit} is reached; try again in {found.retry_after_s} s", {}
    headers = {"Retry-After": str(found.retry_after_s)} | found.reading.as_headers() | again
    details = {"account": found.account, "limit": found.resource}
    return RateLimited(words, headers=headers, details=details)
