"""One key, one call: what a repeated request gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    GatewayError,
    IdempotencyInFlight,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    SessionPaused,
)
from gateway.http import json_response
from gateway.ledger.types import BodyMismatch, InFlight, Replay, ReserveOutcome, SessionClosed, TenantMissing
from gateway.turn.idempotency import (
    MAX_TRANSCRIPT_BYTES,
    Transcript,
    answer_again,
    answer_or_raise,
    kept_answer,
    kept_stream,
)


def test_the_same_answer_is_given_again_and_says_that_it_is_one() -> None:
    first = json_response({"x": 1}, 200, {"x-seqroute-model": "small"})
    kept = kept_answer(first)
    again = answer_again(Replay(kept.status, kept.headers, kept.body))
    assert (again.status_code, again.body) == (200, first.body)
    assert again.headers["x-seqroute-model"] == "small"
    assert again.headers["content-type"] == "application/json"
    assert again.headers["content-length"] == first.headers["content-length"]
    assert again.headers["x-seqroute-replayed"] == "true"


def test_a_request_still_running_is_a_conflict_that_may_be_tried_again() -> None:
    with pytest.raises(IdempotencyInFlight) as refused:
        answer_again(InFlight("dec_1"))
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (409, "1")


def test_another_body_under_the_key_is_refused() -> None:
    with pytest.raises(IdempotencyMismatch) as refused:
        answer_again(BodyMismatch("dec_1"))
    assert (refused.value.status, refused.value.param) == (422, "Idempotency-Key")


@pytest.mark.parametrize(
    ("outcome", "error", "word"),
    [
        (SessionClosed("closed"), InvalidRequest, "closed"),
        (SessionClosed("paused"), SessionPaused, 'resume it with POST /v1/sessions/s-1 {"state": "open"}'),
        (SessionClosed("parent_paused"), SessionPaused, "GET /v1/sessions/s-1 names its parent"),
        (SessionClosed("max_turns"), InvalidRequest, "maximum number of turns"),
        (TenantMissing("t"), NotFound, "no such tenant"),
        (InFlight("d"), IdempotencyInFlight, "still running"),
    ],
)
def test_a_reservation_that_was_not_made_says_why(
    outcome: ReserveOutcome, error: type[GatewayError], word: str
) -> None:
    with pytest.raises(error) as refused:
        answer_or_raise(outcome, "s-1")
    assert word in refused.value.message


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_a_transcript_is_what_was_sent(frames: list[bytes]) -> None:
    transcript = Transcript()
    for frame in frames:
        transcript.add(frame)
    assert transcript.whole() == b"".join(frames)
    assert not transcript.overflowed


def test_a_stream_too_long_to_keep_keeps_nothing() -> None:
    transcript = Transcript()
    transcript.add(b"x" * MAX_TRANSCRIPT_BYTES)
    assert len(transcript.whole()) == MAX_TRANSCRIPT_BYTES
    transcript.add(b"y")
    transcript.add(b"z")
    assert transcript.overflowed
    assert transcript.whole() == b""


def test_a_stream_is_kept_as_its_client_saw_it_and_of_one_too_long_only_that() -> None:
    transcript = Transcript()
    transcript.add(b"data: {}\n\n")
    kept = kept_stream(transcript, b"data: [DONE]\n\n", {"x-seqroute-model": "small"})
    assert (kept.status, kept.body) == (200, b"data: {}\n\ndata: [DONE]\n\n")
    assert kept.headers == {"x-seqroute-model": "small", "content-type": "text/event-stream; charset=utf-8"}
    transcript.add(b"x" * MAX_TRANSCRIPT_BYTES)
    kept = kept_stream(transcript, b"data: [DONE]\n\n", {})
    assert kept.status == 400
    assert b"use a new key" in kept.body
