"""Event streams of any framing are the same lines to a reader that takes them line by line."""

from __future__ import annotations

import json

import pytest

from gateway.dialects.event_lines import EventLines, begins_events

ONE, TWO = {"a": [1, {"b": "x"}]}, {"c": None}
PLAIN = b'data: {"a": [1, {"b": "x"}]}\n\ndata: {"c": null}\n\ndata: [DONE]\n\n'
PRINTED = [json.dumps(value, indent=1).encode() for value in (ONE, TWO)]
NAMED = b"".join(b"".join(b"data: " + line + b"\n" for line in text.split(b"\n")) + b"\n" for text in PRINTED)
BARE = b"".join(b"data: " + text + b"\n\n" for text in PRINTED)
END = b"data: [DONE]\n\n"


def read(data: bytes, size: int) -> list[object]:
    """The events as LiteLLM's readers find them: one line each."""
    lines = EventLines()
    made = b"".join(lines.feed(data[at : at + size]) for at in range(0, len(data), size)) + lines.finish()
    texts = [line.removeprefix("data: ") for line in made.decode().splitlines() if line.startswith("data: ")]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


@pytest.mark.parametrize("size", [1, 3, 7, 1_000])
@pytest.mark.parametrize(
    "data",
    [
        PLAIN, b"\xef\xbb\xbf" + PLAIN, PLAIN.replace(b"\n", b"\r\n"), PLAIN.replace(b"\n", b"\r"),
        PLAIN.replace(b"data: ", b"data:"), PLAIN.replace(b"\n\n", b"\n"), PLAIN[:-2], NAMED + END, BARE + END,
        b"\xef\xbb\xbf: hello\n\n" + NAMED.replace(b"\n", b"\r\n") + b"id: 7\n" + END,
    ],
)  # fmt: skip
def test_every_framing_reads_as_one_line_an_event(data: bytes, size: int) -> None:
    assert read(data, size) == [ONE, TWO, "[DONE]"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_characters_that_end_a_line_for_python_stay_within_their_text(end: str) -> None:
    text = f"one{end}two"
    assert read(f"data: {json.dumps({'a': text}, ensure_ascii=False)}\n\n".encode(), 5) == [{"a": text}]


def test_a_value_waits_for_no_line_behind_it() -> None:
    lines = EventLines()
    assert lines.feed(b'data: {"a": 1}\n') == b'data: {"a": 1}\n'
    assert lines.feed(b"\n: ping\n\n") == b"\n: ping\n\n"
    assert lines.feed(b"data: {\n") == b""
    assert lines.feed(b"data: }\n\n") == b"data: { }\n\n"


def test_what_is_no_json_and_other_fields_stay_as_they_are() -> None:
    odd = b"event: error\nid: 1\nretry: 5\ndata: some words\ndata: and more\n\n"
    lines = EventLines()
    assert lines.feed(odd) + lines.finish() == odd
    document = b'{\n "a": 1,\n "b": 2}'
    assert lines.feed(document) + lines.finish() == document


@pytest.mark.parametrize(
    ("label", "start", "expected"),
    [
        ("text/event-stream; charset=utf-8", b"{", True), ("text/plain", b"\xef\xbb\xbfdata: x", True),
        ("application/x-ndjson", b"{}", False), ("application/vnd.amazon.eventstream", b"\x00\x00", False),
    ],
)  # fmt: skip
def test_an_event_stream_is_known_by_its_label_or_its_start(label: str, start: bytes, expected: bool) -> None:
    assert begins_events(label, start) is expected
