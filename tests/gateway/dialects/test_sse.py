"""Reading server-sent events in whatever pieces they come."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.sse import DONE_FRAME, Event, EventReader, EventTooLarge, billed_frame, data_frame


def read(*pieces: bytes, max_event_bytes: int = 1_000) -> list[bytes]:
    reader = EventReader(max_event_bytes)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [event.data for event in events + reader.finish()]


def test_events_are_separated_by_blank_lines() -> None:
    assert read(b"data: a\n\ndata: b\n\n") == [b"a", b"b"]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_every_line_ending_of_the_standard_works_also_when_cut_in_two(line_end: bytes) -> None:
    whole = b"".join(b"data: " + word + line_end * 2 for word in (b"a", b"b", b"c"))
    for at in range(len(whole)):
        assert read(whole[:at], whole[at:]) == [b"a", b"b", b"c"]


def test_comments_ids_and_blank_lines_are_no_events() -> None:
    assert read(b": hello\n\nid: 7\nretry: 3\n\n\n\ndata: a\n\n") == [b"a"]


def test_data_lines_of_one_event_are_joined_and_its_name_is_kept() -> None:
    assert EventReader().feed(b"event: error\ndata: a\ndata:b\n\n") == [Event(b"error", b"a\nb")]


def test_a_name_without_data_does_not_stick_to_the_next_event() -> None:
    assert EventReader().feed(b"event: ping\n\ndata: a\n\n") == [Event(b"", b"a")]


def test_a_byte_order_mark_is_skipped_also_in_pieces() -> None:
    assert read(b"\xef", b"\xbb\xbf", b"data: a\n\n") == [b"a"]


def test_the_last_event_needs_no_blank_line() -> None:
    assert read(b"data: a\n\ndata: [DONE]") == [b"a", b"[DONE]"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(EventTooLarge):
        read(b"data: ", b"x" * 600, b"x" * 600)


def test_an_event_of_many_lines_is_refused_too() -> None:
    with pytest.raises(EventTooLarge):
        read(b"data: " + b"x" * 300 + b"\n", *[b"data: " + b"x" * 300 + b"\n"] * 4)


def test_comments_are_signs_of_life_and_single_bytes_are_not() -> None:
    reader = EventReader()
    reader.feed(b"dat")
    assert reader.lines == 0
    reader.feed(b": still here\n")
    assert reader.lines == 1


payloads = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=6)


@given(payloads=payloads, cuts=st.lists(st.integers(0, 2_000), max_size=12), line_end=st.sampled_from(["\n", "\r\n"]))
def test_what_was_framed_is_read_back_however_it_is_cut(
    payloads: list[dict[str, str]], cuts: list[int], line_end: str
) -> None:
    whole = b"".join(data_frame(payload) for payload in payloads).replace(b"\n\n", line_end.encode() * 2)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    assert [json.loads(data) for data in read(*pieces, max_event_bytes=10_000)] == payloads


@given(pieces=st.lists(st.binary(max_size=200), max_size=10))
def test_no_bytes_break_the_reader(pieces: list[bytes]) -> None:
    reader = EventReader(300)
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.finish()
    except EventTooLarge:
        pass


def test_the_bill_is_a_comment_in_the_block_of_the_last_event() -> None:
    frame = billed_frame({"cost_usd": "0.01"}, DONE_FRAME)
    assert frame == b': seqroute {"cost_usd":"0.01"}\ndata: [DONE]\n\n'
    assert read(frame) == [b"[DONE]"]
