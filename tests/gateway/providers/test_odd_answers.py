"""One tolerant reader: an answer that a client can use is passed on, and what was reported is what is billed.

Each case is a kind that real providers have sent. Whole answers and streams are read by the same rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import itertools
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import brotli
import orjson
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.catalog.usage import PartialUsage, Usage
from gateway.dialects import loose_json
from gateway.dialects.assembly import Assembly
from gateway.dialects.loose_json import check_depth
from gateway.dialects.repair import repair_whole
from gateway.providers.answers import UpstreamStream
from gateway.providers.decoding import UnpackingError, decoder_for
from gateway.providers.errors import (
    BrokenFault,
    CredentialFault,
    FailedFault,
    RejectedFault,
    ThrottledFault,
    TimeoutFault,
    UpstreamFault,
)
from gateway.providers.exchange import EncodingUnread, Exchange
from gateway.providers.exchange_faults import exchange_fault
from gateway.providers.replies import Reply, native_reply
from gateway.providers.wire_source import WireSource

U = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
STOP = {"index": 0, "delta": {}, "finish_reason": "stop"}
FACE = "\N{GRINNING FACE}"


def exchange(content_type: str, *, streaming: bool, body: bytes = b"") -> Exchange:
    numbers = itertools.count(1)
    made = Exchange(streaming=streaming, new_id=lambda prefix: f"{prefix}_{next(numbers)}")
    made.status, made.path, made.headers = 200, "/v1/chat/completions", {"content-type": content_type}
    made.body += body
    made.whole = True
    return made


async def whole(answer: Any, content_type: str = "application/json") -> Reply:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return await native_reply(exchange(content_type, streaming=False, body=body))


class Pieces:
    """The body of an answer, as it comes off the wire."""

    begun = True

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    async def _read(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._read()

    async def aclose(self) -> None:
        return None


def opened(answer: bytes, content_type: str = "text/event-stream", step: int = 0) -> UpstreamStream:
    step = step or len(answer) or 1
    pieces = Pieces(iter([answer[start : start + step] for start in range(0, len(answer), step)]))
    made = exchange(content_type, streaming=True)
    return UpstreamStream(WireSource(pieces, made, idle_timeout_s=5.0, deadline=float("inf")), made)


async def streamed(answer: bytes, content_type: str = "text/event-stream", step: int = 0) -> list[dict[str, Any]]:
    """Every chunk of a stream that ends properly; each can be written again."""
    stream = opened(answer, content_type, step)
    chunks = [orjson.loads(orjson.dumps(chunk)) async for chunk in stream]
    assert stream.ended_properly
    return chunks


def events(*payloads: Any, end: bytes = b"data: [DONE]\n\n") -> bytes:
    blocks = [p if isinstance(p, bytes) else b"data: " + json.dumps(p).encode() + b"\n\n" for p in payloads]
    return b"".join(blocks) + end


def delta(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


def finish(reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **more}


def completion(message: Any = None, **more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": "hi"} if message is None else message
    return {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "usage": U} | more


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def usages_of(chunks: list[dict[str, Any]]) -> list[Any]:
    return [chunk["usage"] for chunk in chunks if "usage" in chunk]


# -- signs of life, null deltas, what stands between chunks -----------------------------------------------------------

BETWEEN = {
    "null delta": {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
    "no delta": {"choices": [{"index": 0, "finish_reason": None}]},
    "null choices": {"id": "x", "choices": None},
    "no choices": {"id": "x", "object": "chat.completion.chunk"},
    "null choice": {"choices": [None]},
    "null usage": {"choices": [], "usage": None},
    "empty data": b"data:\n\n",
    "empty data with a space": b"data: \n\n",
    "ping with empty data": b"event: ping\ndata:\n\n",
    "ping with an object": b'event: ping\ndata: {"type": "ping"}\n\n',
    "ping in the data": {"type": "ping"},
    "heartbeat in words": b"data: keep-alive\n\n",
    "comment": b": OPENROUTER PROCESSING\n\n",
    "retry and id": b"retry: 500\nid: 7\n\n",
    "empty object": {},
    "null": b"data: null\n\n",
    "empty error": delta("", error=None),
    "error of no content": delta("", error={"code": 0, "message": ""}),
    "empty finish": {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": ""}]},
}


@pytest.mark.parametrize("kind", BETWEEN)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
async def test_what_stands_between_chunks_does_not_end_a_stream(kind: str, place: int) -> None:
    payloads: list[Any] = [delta("a"), delta("b"), finish(usage=U)]
    payloads.insert(place, BETWEEN[kind])
    chunks = await streamed(events(*payloads))
    assert text_of(chunks) == "ab"
    assert usages_of(chunks) == [U]
    finishes = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in finishes if reason is not None] == ["stop"]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("step", [1, 3, 0])
async def test_line_ends_marks_and_cuts_do_not_matter(line_end: bytes, step: int) -> None:
    answer = b"\xef\xbb\xbf: hello\n\n" + events(delta(FACE), finish(usage=U))
    chunks = await streamed(answer.replace(b"\n", line_end), step=step)
    assert (text_of(chunks), usages_of(chunks)) == (FACE, [U])


async def test_events_without_blank_lines_between_them_are_read() -> None:
    answer = events(delta("a"), delta("b"), finish(usage=U)).replace(b"\n\n", b"\n")
    chunks = await streamed(answer)
    assert (text_of(chunks), usages_of(chunks)) == ("ab", [U])


async def test_a_picture_in_one_event_passes_as_it_does_in_a_whole_answer() -> None:
    picture = "data:image/png;base64," + "A" * (3 * 2**20)
    chunks = await streamed(events(delta(picture), finish(usage=U)), step=2**16)
    assert text_of(chunks) == picture


@pytest.mark.parametrize("garbage", [b'data: {"choices": [{"del\n\n', b"data: \x00\x00\n\n", b"data: [1, 2]\n\n"])
async def test_what_is_no_chunk_breaks_the_stream(garbage: bytes) -> None:
    with pytest.raises(BrokenFault):
        await streamed(events(delta("a"), garbage, finish(usage=U)))


def printed(*payloads: Any, field: bytes = b"data: ", behind: bytes = b"\n\n") -> bytes:
    """Chunks over several lines, of which only the first has the field's name."""
    return b"".join(field + json.dumps(payload, indent=2).encode() + behind for payload in payloads)


def bare(*payloads: Any) -> bytes:
    return b"".join(json.dumps(payload).encode() + b"\n\n" for payload in payloads)


FIRST, SECOND, LAST = delta("h"), delta("i"), finish(usage=U)
PRINTED = {
    "each": printed(FIRST, SECOND, LAST) + events(),
    "each without the end": printed(FIRST, SECOND, LAST),
    "named": printed(FIRST, SECOND, LAST, field=b"event: chunk\ndata: "),
    "no blank lines": printed(FIRST, SECOND, LAST, behind=b"\n") + events(),
    "first": printed(FIRST) + bare(SECOND, LAST),
    "others": events(FIRST, end=b"") + printed(SECOND, LAST, field=b""),
    "after a comment": b": hi\n\n" + printed(FIRST, SECOND, LAST, field=b""),
    "first, without the name": printed(FIRST, field=b"") + events(SECOND, b": still here\n\n", LAST),
    "first, in one line, without the name": bare(FIRST) + events(SECOND, b"event: ping\ndata: {}\n\n", LAST),
    "with a comment inside": printed(FIRST).replace(b"[\n", b"[\n: still here\nid: 4\n", 1) + events(SECOND, LAST),
}


@pytest.mark.parametrize("kind", PRINTED)
@pytest.mark.parametrize("step", [0, 7])
async def test_json_over_several_lines_is_read_where_only_the_first_has_its_field(kind: str, step: int) -> None:
    chunks = await streamed(PRINTED[kind], step=step)
    assert (text_of(chunks), usages_of(chunks)) == ("hi", [U])
    reply = await whole(PRINTED[kind], "text/event-stream")
    assert (reply.body["choices"][0]["message"]["content"], reply.usage) == ("hi", Usage(10, 5))


@pytest.mark.parametrize(
    "cut", [printed(FIRST, SECOND, LAST)[:-30], printed(FIRST)[:-12] + b"\n\n" + events(SECOND, LAST)]
)
async def test_json_over_several_lines_that_is_cut_is_no_answer(cut: bytes) -> None:
    with pytest.raises(BrokenFault):
        await streamed(cut)


# -- text that strict JSON does not know ------------------------------------------------------------------------------


def deltas(*texts: bytes) -> bytes:
    parts = [b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text for text in texts]
    return b"".join(parts) + events(finish(usage=U))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ((b"\\ud83d", b"\\ude00"), FACE),
        ((b"a\\ud83d", b"\\ude00b"), "a" + FACE + "b"),
        ((b"\\ud83d", b"", b"\\ude00"), FACE),
        ((b"\\ud83d", b"x"), "\N{REPLACEMENT CHARACTER}x"),
        ((b"x\\ude00", b"y"), "x\N{REPLACEMENT CHARACTER}y"),
        ((b"x\\ud83d",), "x\N{REPLACEMENT CHARACTER}"),
        ((b"\\ud83d\\ude00",), FACE),
        ((b"\xed\xa0\xbd\xed\xb8\x80",), FACE),
        ((b"caf\xe9",), "caf\N{REPLACEMENT CHARACTER}"),
        ((b"a\x01b",), "a\x01b"),
    ],
)
async def test_half_characters_are_joined_over_chunks_or_replaced(texts: tuple[bytes, ...], said: str) -> None:
    chunks = await streamed(deltas(*texts))
    assert text_of(chunks) == said
    assert usages_of(chunks) == [U]


async def test_half_characters_of_tool_arguments_and_of_reasoning_are_joined_too() -> None:
    def call(arguments: bytes, name: bytes = b"null") -> bytes:
        return (
            b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"%b","tool_calls":[{"index":0,"id":"c",'
            b'"function":{"name":%b,"arguments":"%b"}}]}}]}\n\n' % (arguments, name, arguments)
        )

    chunks = await streamed(call(b"\\ud83d", b'"f"') + call(b"\\ude00") + events(finish("tool_calls")))
    found = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(d.get("reasoning_content") or "" for d in found) == FACE
    assert "".join(c["function"]["arguments"] for d in found for c in d.get("tool_calls", ())) == FACE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'"x\\ud83d"', "x\N{REPLACEMENT CHARACTER}"),
        (b'"\xed\xa0\xbd\xed\xb8\x80"', FACE),
        (b'"a\nb"', "a\nb"),
        (b'"caf\xe9"', "caf\N{REPLACEMENT CHARACTER}"),
    ],
)
async def test_a_whole_answer_s_text_is_read_too(content: bytes, said: str) -> None:
    body = b'{"choices":[{"index":0,"message":{"role":"assistant","content":%b},"finish_reason":"stop"}],"usage":%b}'
    reply = await whole(body % (content, json.dumps(U).encode()))
    assert reply.body["choices"][0]["message"]["content"] == said
    assert reply.usage == Usage(10, 5)


NUMBERS = [
    (b"-Infinity", -9999.0),
    (b"-inf", -9999.0),
    (b"-1e999", -9999.0),
    (b"NaN", None),
    (b"nan", None),
    (b"Infinity", None),
    (b"1e999", None),
    (b"+0.5", 0.5),
    (b".5", 0.5),
    (b"-1.", -1.0),
    (b"1" + b"0" * 400, None),
    (b"123456789012345678901234567890", 1.2345678901234568e29),
]


@pytest.mark.parametrize(("written", "read"), NUMBERS)
async def test_numbers_that_json_does_not_know_are_read_or_null(written: bytes, read: float | None) -> None:
    entry = b'{"content": [{"token": "-Infinity, NaN", "logprob": %b, "bytes": null}]}' % written
    body = b'{"choices":[{"index":0,"%b":{"content":"x"},"logprobs":%b,"finish_reason":"stop"}],"usage":%b}'
    reply = await whole(body % (b"message", entry, json.dumps(U).encode()))
    chunks = await streamed(events(b"data: " + body % (b"delta", entry, json.dumps(U).encode()) + b"\n\n"))
    for choice in (reply.body["choices"][0], chunks[0]["choices"][0]):
        assert choice["logprobs"]["content"][0] == {"token": "-Infinity, NaN", "logprob": read, "bytes": None}
        orjson.dumps(choice)
    assert reply.usage == Usage(10, 5)
    assert usages_of(chunks) == [U]


@pytest.mark.parametrize("levels", [260, 2_000, 100_000])
async def test_nesting_that_cannot_be_written_again_is_a_fault_and_not_a_crash(levels: int) -> None:
    body = b'{"choices":[{"index":0,"message":{"content":"x"},"x":%b%b}]}' % (b"[" * levels, b"]" * levels)
    with pytest.raises(BrokenFault):
        await whole(body)
    with pytest.raises(BrokenFault):
        await streamed(b"data: " + body + b"\n\n")


# -- answers of the other kind, labelled in any way -------------------------------------------------------------------

LABELS = ["application/json", "text/event-stream", "text/plain", "text/html", "", "application/octet-stream"]


@pytest.mark.parametrize("label", LABELS)
async def test_a_whole_answer_is_read_whatever_its_label_says(label: str) -> None:
    reply = await whole(b"\xef\xbb\xbf \n" + json.dumps(completion()).encode(), label)
    assert reply.body["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    assert reply.usage == Usage(10, 5)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("step", [1, 0])
async def test_a_stream_is_read_whatever_its_label_says(label: str, step: int) -> None:
    chunks = await streamed(events(delta("a"), finish(usage=U)), label, step)
    assert (text_of(chunks), usages_of(chunks)) == ("a", [U])


BEHIND = [b"\n\0\0", b"<!-- served by a proxy -->", b"\n\ndata: [DONE]\n\n", b"}"]


@pytest.mark.parametrize("behind", BEHIND)
async def test_what_comes_behind_a_whole_answer_does_not_matter(behind: bytes) -> None:
    reply = await whole(json.dumps(completion()).encode() + behind)
    assert (reply.body["choices"][0]["message"]["content"], reply.usage) == ("hi", Usage(10, 5))


async def test_a_whole_answer_in_another_encoding_is_read() -> None:
    for encoding in ("utf-16", "utf-8-sig"):
        assert (await whole(json.dumps(completion()).encode(encoding))).usage == Usage(10, 5)
    chunks = await streamed(json.dumps(completion()).encode("utf-16"))
    assert (text_of(chunks), usages_of(chunks)) == ("hi", [U])


TEXT_CHUNK, END_CHUNK = json.dumps(delta("hi")).encode(), json.dumps(finish()).encode()
LISTS = {
    "commas behind": b"data: %b,\n\ndata: %b , \n\ndata: [DONE],\n\n" % (TEXT_CHUNK, END_CHUNK),
    "commas before": b"data: %b\n\ndata: ,%b\n\ndata: [DONE]\n\n" % (TEXT_CHUNK, END_CHUNK),
    "semicolons": b"data: %b;\n\ndata: %b;\n\ndata: [DONE].\n\n" % (TEXT_CHUNK, END_CHUNK),
    "no blank lines": b"data: %b,\ndata: %b,\ndata: [DONE]\n\n" % (TEXT_CHUNK, END_CHUNK),
    "a list in events": b"data: [%b,\n\ndata: %b]\n\n" % (TEXT_CHUNK, END_CHUNK),
    "brackets alone": b"data: [\n\ndata: %b,\n\ndata: %b\n\ndata: ]\n\n" % (TEXT_CHUNK, END_CHUNK),
    "JSON lines": b"%b,\n%b,\n" % (TEXT_CHUNK, END_CHUNK),
    "before a bracket": b"data: %b,}\n\ndata: %b,]}\n\n" % (TEXT_CHUNK[:-1], END_CHUNK[:-2]),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("step", [0, 1])
async def test_stray_commas_and_the_brackets_of_a_list_do_not_matter(kind: str, step: int) -> None:
    chunks = await streamed(LISTS[kind], step=step)
    assert text_of(chunks) == "hi"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


INTEGERS = [
    (b'{"index":1,"b":[2,],}', {"index": 1, "b": [2]}),
    (b'{"created":1700000000,"p":.5}', {"created": 1700000000, "p": 0.5}),
    (b"[+1, -07, 1_000, 1., 1e2, -9223372036854775807,]", [1, -7, 1000, 1.0, 100.0, -9223372036854775807]),
]


@pytest.mark.parametrize(("written", "read"), INTEGERS)
def test_an_integer_beside_what_json_does_not_know_stays_one(written: bytes, read: Any) -> None:
    assert repr(loose_json.read_loosely(written)) == repr(read)


def with_commas(*payloads: Any) -> bytes:
    return b"".join(b"data: %b,}\n\n" % json.dumps(payload).encode()[:-1] for payload in payloads)


def with_float_numbers(*payloads: Any) -> bytes:
    return events(*payloads).replace(b'"index": 1', b'"index": 1.0').replace(b'"index":1', b'"index":1.0')


@pytest.mark.parametrize("written", [with_commas, with_float_numbers])
async def test_pieces_of_parallel_calls_and_of_two_choices_stay_apart(written: Callable[..., bytes]) -> None:
    begun = called(piece("", "f", index=0, id="a"), piece("", "g", index=1, id="b"))
    pieces = [called(piece(text, index=place)) for place, text in ((0, "[0"), (1, "[1"), (0, ",0]"), (1, ",1]"))]
    calls = Assembly()
    for chunk in await streamed(written(begun, *pieces, finish("tool_calls", created=1_700_000_000))):
        calls.add(chunk)
    arguments = [call["function"]["arguments"] for call in calls.body()["choices"][0]["message"]["tool_calls"]]
    assert arguments == ["[0,0]", "[1,1]"]

    said = Assembly()
    choices = [delta("A"), delta("B"), finish(), finish()]
    for number, payload in enumerate(choices):
        payload["choices"][0]["index"] = number % 2
    for chunk in await streamed(written(*choices)):
        said.add(chunk)
    assert [choice["message"]["content"] for choice in said.body()["choices"]] == ["A", "B"]


async def test_chunks_without_anything_between_them_are_read() -> None:
    chunks = b"".join(json.dumps(chunk).encode() for chunk in (delta("h"), delta("i"), finish(usage=U)))
    assert (await whole(chunks)).body["choices"][0]["message"]["content"] == "hi"
    assert text_of(await streamed(chunks)) == "hi"


BEGUN = b'{"choices":[{"index":0,"delta":{"content":"Hello"}}]}'
CUT = [
    BEGUN,
    BEGUN + b"\n",
    BEGUN + b'\n{"choices":[{"index":0,"delta":{"content":" wor',
    BEGUN + b'{"choices":[{"index":0,"delta":{"content":" wor',
    BEGUN + b"\n\0\0",
    BEGUN + b"\n" + BEGUN + b"\n[1, ",
    b'{"object":"chat.completion.chunk","choices":[{"index":0,"message":{"content":"Hello"}}]}\n{"choices":[{',
    b'{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"}}]}',
    json.dumps([json.loads(BEGUN)]).encode() + b"\n[{",
    json.dumps({"result": json.loads(BEGUN)}).encode() + b"\n{",
    json.dumps(completion()).encode() + b'\n{"choices":[{',
]


@pytest.mark.parametrize("cut", CUT)
async def test_json_lines_that_are_cut_are_no_answer(cut: bytes) -> None:
    """Only the provider can say that an answer has ended."""
    with pytest.raises(BrokenFault):
        await whole(cut)
    with pytest.raises(BrokenFault):
        await streamed(cut, "application/json")


@pytest.mark.parametrize("end", [b"[DONE]", b"data: [DONE]\n\n", b""])
async def test_json_lines_may_have_the_end_of_a_stream(end: bytes) -> None:
    lines = b"\n".join([BEGUN, json.dumps(finish("length", usage=U)).encode(), end])
    assert ((await whole(lines)).finish_reason, text_of(await streamed(lines))) == ("length", "Hello")


async def test_each_character_of_cut_lines_is_examined_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = 0

    def counted(data: bytes | bytearray, value: Any) -> None:
        nonlocal examined
        examined += len(data)
        check_depth(data, value)

    monkeypatch.setattr(loose_json, "check_depth", counted)
    body = (BEGUN + b"\n") * 1_000 + BEGUN[:-1]
    with pytest.raises(BrokenFault):
        await whole(body)
    assert examined <= 4 * len(body)


def test_a_string_that_is_cut_off_is_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its escaped quotes would each be the start of a search to the end."""
    tokens: list[str] = []

    def noted(token: str) -> str:
        tokens.append(token)
        return token

    monkeypatch.setattr(loose_json, "_respelled", noted)
    with pytest.raises(ValueError, match="Unterminated"):
        loose_json.read_loosely(b'{"a": "' + b'{\\"b\\": 1}, ' * 99)
    assert [token[:3] for token in tokens] == ['"a"', '"{\\']


@pytest.mark.parametrize("label", LABELS)
async def test_an_event_stream_for_a_whole_answer_is_put_together(label: str) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    more = {"index": 0, "function": {"arguments": " 1}"}}
    answer = events(
        b": OPENROUTER PROCESSING\n\n",
        {"id": "x", "model": "m", "created": 7, **delta("on")},
        {"choices": [{"index": 0, "delta": {"content": "e", "reasoning_content": "h"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "m", "tool_calls": [call]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [more]}, "logprobs": {"content": [1]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls", "logprobs": {"content": [2]}}]},
        {"choices": [], "usage": U},
    )
    reply = await whole(answer, label)
    [choice] = reply.body["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "one", "reasoning_content": "hm",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    }  # fmt: skip
    assert (choice["finish_reason"], choice["logprobs"]) == ("tool_calls", {"content": [1, 2]})
    assert (reply.body["object"], reply.body["created"], reply.body["model"]) == ("chat.completion", 7, "m")
    assert reply.body["usage"] == U
    assert reply.usage == Usage(10, 5)


async def test_chunks_in_a_list_in_a_text_sequence_in_strings_and_after_two_field_names_are_read() -> None:
    chunks = [json.dumps(chunk).encode() for chunk in (delta("one"), finish(usage=U))]
    for body in (
        b"[" + b",\n".join(chunks) + b"]",
        b"".join(b"\x1e" + chunk + b"\n" for chunk in chunks),
        b"".join(b"data: data: " + chunk + b"\n\n" for chunk in chunks),
        b"".join(b"data: " + json.dumps(chunk.decode()).encode() + b"\n\n" for chunk in chunks),
    ):
        stream = opened(body)
        assert text_of([chunk async for chunk in stream]) == "one"
        assert stream.usage == Usage(10, 5)


@pytest.mark.parametrize(
    "end",
    [
        {"choices": [{"index": 0, "delta": {"finish_reason": "stop"}}]},
        {"choices": [{"index": 0, "delta": {}, "finishReason": "stop"}]},
        {"choices": [{"index": 0, "delta": {}, "stop_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": {}}], "finish_reason": "stop"},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": ["stop"]}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": True}]},
    ],
)
async def test_a_finish_is_found_wherever_it_stands(end: dict[str, Any]) -> None:
    chunks = await streamed(events(delta("one"), end | {"usage": U}))
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]] == [None, "stop"]


async def test_one_json_line_a_chunk_is_a_stream_too() -> None:
    lines = b"".join(json.dumps(p).encode() + b"\n" for p in [delta("a"), delta("b"), finish(usage=U)])
    assert text_of(await streamed(lines, "application/x-ndjson")) == "ab"
    assert (await whole(lines)).body["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize(
    "end",
    [
        b"data: [END]\n\n",
        b"data: <|im_end|>\n\n",
        b"event: done\ndata: {}\n\n",
        b"data: [done]\n\n",
        b"data: data: [DONE]\n\n",
        b'data: "[DONE]"\n\n',
        b"data:[DONE]",
        b"",
    ],
)
async def test_a_stream_s_end_is_read_in_any_spelling(end: bytes) -> None:
    assert text_of(await streamed(events(delta("hi"), finish(usage=U), end=end))) == "hi"


async def test_a_finish_spelt_as_a_null_is_none_yet() -> None:
    early = {"choices": [{"index": 0, "delta": {"content": "h"}, "finish_reason": "null"}]}
    chunks = await streamed(events(early, early, delta("i"), finish(usage=U)))
    assert text_of(chunks) == "hhi"
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]] == [None, None, None, "stop"]


@pytest.mark.parametrize("name", ["data", "result", "response"])
async def test_an_answer_in_an_envelope_is_taken_out_of_it(name: str) -> None:
    wrapped = {"success": True, "errors": [], "message": "", name: completion()}
    reply = await whole(wrapped)
    assert (reply.body["choices"][0]["message"]["content"], reply.usage) == ("hi", Usage(10, 5))
    assert text_of(await streamed(json.dumps(wrapped).encode(), "application/json")) == "hi"
    assert text_of(await streamed(events({name: delta("hi")}, {name: finish(usage=U)}))) == "hi"


async def test_an_answer_written_as_a_json_text_is_read() -> None:
    written = json.dumps(json.dumps(completion()))
    assert (await whole(written.encode())).usage == Usage(10, 5)
    assert text_of(await streamed(written.encode(), "application/json")) == "hi"


async def test_several_choices_of_an_event_stream_are_put_together_by_their_numbers() -> None:
    answer = events(
        *({"choices": [{"index": i, "delta": {"content": c}}]} for i, c in [(1, "x"), (0, "a"), (1, "y"), (0, "b")]),
        *({"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]} for i in (0, 1)),
    )
    reply = await whole(answer)
    assert [choice["message"]["content"] for choice in reply.body["choices"]] == ["ab", "xy"]
    assert reply.usage is None


@pytest.mark.parametrize("empty", [None, {}, "", []])
async def test_an_error_that_says_nothing_is_not_passed_on(empty: Any) -> None:
    """OpenAI's SDK for Node takes an empty object for an error."""
    assert "error" not in (await whole(completion() | {"error": empty})).body
    chunks = await streamed(events(*({**each, "error": empty} for each in (delta("hi"), finish(usage=U)))))
    assert (text_of(chunks), [chunk for chunk in chunks if "error" in chunk]) == ("hi", [])


def choice_with_call(call_id: str, content: str | None = None) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {"index": 0, "message": {"content": content, "tool_calls": [call]}, "finish_reason": "tool_calls"}


def test_calls_in_choices_of_their_own_belong_to_the_one_answer_that_was_asked_for() -> None:
    said = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}

    def read(*choices: dict[str, Any], one_choice: bool = True) -> list[tuple[Any, list[str], str]]:
        body: dict[str, Any] = {"choices": json.loads(json.dumps(choices))}
        repair_whole(body, lambda: "call_x", one_choice=one_choice)
        return [
            (choice["message"]["content"], [call["id"] for call in choice["message"].get("tool_calls") or ()],
             choice["finish_reason"])
            for choice in body["choices"]
        ]  # fmt: skip

    assert read(said, choice_with_call("a")) == [("hi", ["a"], "tool_calls")]
    assert read(choice_with_call("a"), said, choice_with_call("b")) == [("hi", ["a", "b"], "tool_calls")]
    assert read(choice_with_call("a", "hi"), choice_with_call("a")) == [("hi", ["a", "a__sr_x_1"], "tool_calls")]
    assert read(choice_with_call("a"), choice_with_call("b")) == [(None, ["a", "b"], "tool_calls")]
    assert len(read(said, choice_with_call("a"), one_choice=False)) == 2
    assert len(read(said, said)) == 2  # another answer


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("step", [1, 0])
async def test_a_whole_answer_for_a_stream_becomes_one(label: str, step: int) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "hi", "tool_calls": [call]}
    chunks = await streamed(json.dumps(completion(message, id="x", model="m")).encode(), label, step)
    assert text_of(chunks) == "hi"
    assert chunks[0]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]] == [None, "stop"]
    assert usages_of(chunks) == [U]


@pytest.mark.parametrize("answer", [b"", b"<html><body>Bad gateway</body></html>", b"{}", b"[]", b"nope", b"3"])
async def test_what_is_no_answer_is_a_fault(answer: bytes) -> None:
    for label in ("application/json", "text/event-stream"):
        with pytest.raises(BrokenFault):
            await whole(answer, label)
        with pytest.raises(BrokenFault):
            await streamed(answer, label)


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b""])
async def test_a_stream_without_a_finish_is_broken_in_either_place_and_its_usage_is_kept(end: bytes) -> None:
    answer = events(delta("a"), {"choices": [], "usage": U}, end=end)
    with pytest.raises(BrokenFault) as caught:
        await whole(answer)
    assert caught.value.usage == Usage(10, 5)
    stream = opened(answer)
    with pytest.raises(BrokenFault):
        [chunk async for chunk in stream]
    assert stream.usage == Usage(10, 5)


@pytest.mark.parametrize("word", ["error", "network_error", "insufficient_system_resource", "ABORT", "user-cancel"])
async def test_an_end_that_says_that_the_answer_failed_is_no_finish_and_its_usage_is_kept(word: str) -> None:
    body = completion()
    body["choices"][0]["finish_reason"] = word
    with pytest.raises(BrokenFault, match="ended with an error") as caught:
        await whole(body)
    assert caught.value.usage == Usage(10, 5)
    stream = opened(events(delta("a"), finish(word), {"choices": [], "usage": U}))
    assert (await anext(stream))["choices"][0]["delta"]["content"] == "a"
    with pytest.raises(BrokenFault) as broken:
        await anext(stream)
    assert broken.value.usage == Usage(10, 5)
    silent = opened(events(finish(word, usage=U)))
    with pytest.raises(BrokenFault):  # before a word of it has reached the client, so another model may answer
        await silent.read_ahead()
    assert silent.usage == Usage(10, 5)


async def test_one_of_several_choices_that_fails_fails_the_answer() -> None:
    ended = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    failed = {"choices": [{"index": 1, "delta": {}, "finish_reason": "error"}]}
    with pytest.raises(BrokenFault):
        await streamed(events(ended, failed))


# -- usage ------------------------------------------------------------------------------------------------------------

CACHED = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}
BOTH = {"prompt_tokens": 10, "completion_tokens": 5}
FIRST = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}

PLACES: dict[str, tuple[list[dict[str, Any]], Usage]] = {
    "in meta": ([delta("a"), finish(), {"meta": {"usage": U, "region": "x"}}], Usage(10, 5)),
    "bare counts": ([delta("a"), finish(), {"prompt_tokens": 10, "completion_tokens": 5}], Usage(10, 5)),
    "in a list": ([delta("a"), finish(usage=[U])], Usage(10, 5)),
    "as fractions": (
        [delta("a"), finish(usage={"prompt_tokens": 10.0, "completion_tokens": 5.0, "total_tokens": 15.0})],
        Usage(10, 5),
    ),
    "beside the finish": ([delta("a"), finish(usage=U)], Usage(10, 5)),
    "chunk of its own": ([delta("a"), finish(), {"choices": [], "usage": U}], Usage(10, 5)),
    "before the finish": ([delta("a"), {"choices": [], "usage": U}, finish()], Usage(10, 5)),
    "chunk without choices": ([delta("a"), finish(), {"usage": U}], Usage(10, 5)),
    "trailing empty delta": ([delta("a"), finish(), {"choices": [{"delta": {}}], "usage": U}], Usage(10, 5)),
    "in the choice": (
        [delta("a"), {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": U}]}],
        Usage(10, 5),
    ),
    "in the delta": (
        [delta("a"), {"choices": [{"index": 0, "delta": {"usage": U}, "finish_reason": "stop"}]}],
        Usage(10, 5),
    ),
    "in x_groq": ([delta("a"), finish(x_groq={"id": "r", "usage": U})], Usage(10, 5)),
    "in every chunk, the last is whole": (
        [delta("a", usage=FIRST), delta("b", usage=FIRST), finish(usage=U)],
        Usage(10, 5),
    ),
    "cumulative": (
        [delta("a", usage={**U, "completion_tokens": 1, "total_tokens": 11}), finish(usage=U)],
        Usage(10, 5),
    ),
    "zeros after it": (
        [delta("a"), finish(usage=U), {"choices": [], "usage": dict.fromkeys(U, 0)}],
        Usage(10, 5),
    ),
    "twice the same": ([delta("a"), finish(usage=U), {"choices": [], "usage": U}], Usage(10, 5)),
    "null until the end": ([delta("a", usage=None), finish(usage=None), {"choices": [], "usage": U}], Usage(10, 5)),
    "one half at the start, one at the end": (
        [delta("a", usage={"input_tokens": 10, "output_tokens": 1}), finish(usage={"output_tokens": 5})],
        Usage(10, 5),
    ),
    "gemini's": (
        [delta("a"), finish(usageMetadata={"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15})],
        Usage(10, 5),
    ),
    "ollama's": ([delta("a"), finish(prompt_eval_count=10, eval_count=5)], Usage(10, 5)),
    "moonshot's cache": (
        [delta("a"), finish(usage={**CACHED, "cached_tokens": 900})],
        Usage(1000, 10, cached_tokens=900),
    ),
    "moonshot's cache in the choice": (
        [delta("a"), {"choices": [{**STOP, "usage": {**CACHED, "cached_tokens": 900}}]}],
        Usage(1000, 10, cached_tokens=900),
    ),
    "cache beside the usage": (
        [delta("a"), finish(usage=CACHED, cached_tokens=900)],
        Usage(1000, 10, cached_tokens=900),
    ),
    "deepseek's cache": (
        [delta("a"), finish(usage={**CACHED, "prompt_cache_hit_tokens": 900, "prompt_cache_miss_tokens": 100})],
        Usage(1000, 10, cached_tokens=900),
    ),
    "anthropic's names": (
        [delta("a"), finish(usage={"input_tokens": 100, "output_tokens": 10, "cache_read_input_tokens": 900})],
        Usage(1000, 10, cached_tokens=900),
    ),
    "cohere's billed units": (
        [
            delta("a"),
            finish(usage={"billed_units": {"input_tokens": 10, "output_tokens": 5}, "tokens": {"input_tokens": 90}}),
        ],
        Usage(10, 5),
    ),
    "cohere's meta": (
        [delta("a"), finish(meta={"billed_units": {"input_tokens": 10, "output_tokens": 5}})],
        Usage(10, 5),
    ),
    "token_usage": ([delta("a"), finish(token_usage={"prompt_tokens": 10, "completion_tokens": 5})], Usage(10, 5)),
    "token_usage in metadata": (
        [delta("a"), finish(response_metadata={"token_usage": {"prompt_tokens": 10, "completion_tokens": 5}})],
        Usage(10, 5),
    ),
    "bedrock's metrics": (
        [
            delta("a"),
            finish("stop", **{"amazon-bedrock-invocationMetrics": {"inputTokenCount": 10, "outputTokenCount": 5}}),
        ],
        Usage(10, 5),
    ),
    "bedrock's converse": (
        [delta("a"), finish(), {"metadata": {"usage": {"inputTokens": 10, "outputTokens": 5}, "metrics": {"l": 9}}}],
        Usage(10, 5),
    ),
    "watsonx's names": (
        [delta("a"), finish(usage={"input_token_count": 10, "generated_token_count": 5})],
        Usage(10, 5),
    ),
    "llama.cpp's timings": (
        [delta("a"), finish(timings={"prompt_n": 100, "cache_n": 900, "predicted_n": 10, "predicted_ms": 3.5})],
        Usage(1000, 10, cached_tokens=900),
    ),
    "under a name of its own": ([delta("a"), finish(x_stats={"v": 1, "run": {"tokens": 3} | BOTH})], Usage(10, 5)),
    "in camel case": (
        [
            delta("a"),
            finish(usage={"promptTokens": 1000, "completionTokens": 10, "promptTokensDetails": {"cachedTokens": 900}}),
        ],
        Usage(1000, 10, cached_tokens=900),
    ),
    "short names": ([delta("a"), finish(usage={"input": 10, "output": 5, "total": 0.0004})], Usage(10, 5)),
    "in a usage in the usage": ([delta("a"), finish(usage={"usage": BOTH})], Usage(10, 5)),
    "JSON as text": ([delta("a"), finish(usage=json.dumps(BOTH))], Usage(10, 5)),
    "details beside the usage": (
        [delta("a"), finish(usage=CACHED, prompt_tokens_details={"cached_tokens": 900})],
        Usage(1000, 10, cached_tokens=900),
    ),
    "details in a list, and one that was not counted": (
        [delta("a"), finish(usage={**CACHED, "prompt_tokens_details": [{"cached_tokens": 900, "audio_tokens": -1}]})],
        Usage(1000, 10, cached_tokens=900),
    ),
    "unknown after it": (
        [delta("a"), finish(usage=U), {"choices": [], "usage": dict.fromkeys(U, -1)}],
        Usage(10, 5),
    ),
    "fractions as text": (
        [delta("a"), finish(usage={"prompt_tokens": "10.0", "completion_tokens": " 5"})],
        Usage(10, 5),
    ),
    "digits as text": ([delta("a"), finish(usage={"prompt_tokens": "10", "completion_tokens": "5"})], Usage(10, 5)),
}


@pytest.mark.parametrize("place", PLACES)
async def test_usage_is_found_wherever_a_stream_has_it_and_shown_once_at_the_end(place: str) -> None:
    payloads, usage = PLACES[place]
    stream = opened(events(*payloads))
    chunks = [chunk async for chunk in stream]
    assert stream.usage == usage
    [shown] = usages_of(chunks)
    assert chunks[-1]["choices"] == []
    assert (shown["prompt_tokens"], shown["completion_tokens"]) == (usage.prompt_tokens, usage.output_tokens)
    assert "estimated" not in shown
    assert "usage" not in json.dumps(chunks[:-1])


async def test_counts_in_texts_reach_the_client_as_numbers_and_labels_as_they_are() -> None:
    told = {
        "prompt_tokens": "1000", "completion_tokens": 10.0, "total_tokens": " 1010 ", "cost": "0.5", "version": "3",
        "prompt_tokens_details": {"cached_tokens": "900", "audio_tokens": None, "tier": "7"},
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": "1000"}],
        "server_tool_use": {"web_search_requests": "2"},
    }  # fmt: skip
    expected = {
        "prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010, "cost": "0.5", "version": "3",
        "prompt_tokens_details": {"cached_tokens": 900, "audio_tokens": None, "tier": "7"},
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1000}],
        "server_tool_use": {"web_search_requests": 2},
    }  # fmt: skip
    assert usages_of(await streamed(events(delta("a"), finish(usage=told)))) == [expected]
    reply = await whole({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": told})
    assert reply.body["usage"] == expected


async def test_a_usage_that_comes_with_the_end_and_behind_it_counts() -> None:
    answer = events(delta("a"), finish(), b"data: [DONE]\n\n", {"choices": [], "usage": U}, {"choices": []}, b": x\n\n")
    assert usages_of(await streamed(answer)) == [U]


async def test_a_usage_beside_the_envelope_of_an_answer_is_its_usage() -> None:
    inner = {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}
    for body in ({"usage": U, "result": inner}, {"usage": U, "data": [inner]}):
        assert (await whole(body)).usage == Usage(10, 5)
    assert (await whole({"usage": U, "result": inner | {"usage": None}})).usage == Usage(10, 5)
    assert (await whole({"usage": U, "result": {"usage": {}, **inner}})).usage == Usage(10, 5)
    assert (await whole({"usage": {}, "result": inner | {"usage": U}})).usage == Usage(10, 5)


async def test_what_a_model_writes_is_no_usage() -> None:
    said = {"content": "a", "parsed": {"input_tokens": 1, "output_tokens": 1}}
    reply = await whole({"choices": [{"message": said, "finish_reason": "stop"}]})
    assert reply.usage is None


ONE = {"prompt_tokens": 1, "completion_tokens": 1}
ECHOES = [
    {"metadata": {"usage": json.dumps(ONE)}},
    {"metadata": {"usage": {"prompt_tokens": "1", "completion_tokens": "1"}}},
    {"metadata": ONE},
    {"metadata": {"prompt_tokens": "1", "completion_tokens": "1"}},
    {"request": {"metadata": ONE}},
    {"chat_template_kwargs": {"input_tokens": 1, "output_tokens": 1}},
    {"response_format": {"json_schema": {"schema": {"default": ONE}}}},
    {"x_stats": {"labels": {"prompt_tokens": "1", "completion_tokens": "1"}}},
    {"x_stats": {"prompt_tokens": True, "completion_tokens": True}},
    {"meta": {"usage": json.dumps(ONE)}},
    {"response_metadata": {"usage": {"prompt_tokens": "1", "completion_tokens": "1"}}},
]


@pytest.mark.parametrize("echo", ECHOES)
async def test_what_a_caller_writes_is_no_usage(echo: dict[str, Any]) -> None:
    assert (await whole({"choices": [{"message": {"content": "a"}}]} | echo)).usage is None
    stream = opened(events(delta("a", **echo), finish()))
    assert text_of([chunk async for chunk in stream]) == "a"
    assert stream.usage is None
    stream = opened(events(delta("a", **echo), finish(usage=U), {"choices": [], **echo}))
    assert [chunk async for chunk in stream]
    assert stream.usage == Usage(10, 5)


@pytest.mark.parametrize("place", PLACES)
async def test_usage_is_found_in_the_same_places_of_a_whole_answer(place: str) -> None:
    payloads, usage = PLACES[place]
    body: dict[str, Any] = {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}
    for payload in payloads:
        body |= {name: value for name, value in payload.items() if name != "choices" and value is not None}
    for choice in payloads[-1].get("choices", ()):
        body["choices"][0] |= {name: value for name, value in choice.items() if name == "usage"}
        body["choices"][0]["message"] |= choice["delta"]
    if place in ("zeros after it", "unknown after it", "before the finish", "one half at the start, one at the end"):
        body["usage"] = U
    reply = await whole(body)
    assert reply.usage == usage
    assert reply.body["usage"]["completion_tokens"] == usage.output_tokens
    beside = {name: value for name, value in reply.body.items() if name != "x_stats"}
    assert json.dumps(beside).count("completion_tokens") == 1


async def test_the_provider_s_own_details_stay_in_what_the_client_sees() -> None:
    usage = {**CACHED, "prompt_tokens_details": {"cached_tokens": 900}, "cost": 0.1}
    assert usages_of(await streamed(events(delta("a"), finish(usage=usage)))) == [usage]
    assert (await whole(completion(usage=usage))).body["usage"] == usage


HALVES: list[tuple[dict[str, Any], PartialUsage]] = [
    ({"prompt_tokens": 10, "completion_tokens": None}, PartialUsage(Usage(10, 0), has_prompt=True, has_output=False)),
    ({"prompt_tokens": 10}, PartialUsage(Usage(10, 0), has_prompt=True, has_output=False)),
    ({"prompt_tokens": 10, "total_tokens": 10}, PartialUsage(Usage(10, 0), has_prompt=True, has_output=False)),
    ({"completion_tokens": 5, "prompt_tokens": None}, PartialUsage(Usage(0, 5), has_prompt=False, has_output=True)),
    ({"output_tokens": 5}, PartialUsage(Usage(0, 5), has_prompt=False, has_output=True)),
    (
        {"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 5},
        PartialUsage(Usage(0, 5), has_prompt=False, has_output=True),
    ),
]


@pytest.mark.parametrize(("usage", "read"), HALVES)
async def test_half_a_usage_is_no_whole_one(usage: dict[str, Any], read: PartialUsage) -> None:
    assert (await whole(completion(usage=usage))).usage == read
    stream = opened(events(delta("a"), finish(usage=usage)))
    assert [chunk async for chunk in stream]
    assert stream.usage == read


async def test_a_half_that_the_total_tells_is_told() -> None:
    assert (await whole(completion(usage={"prompt_tokens": 10, "total_tokens": 15}))).usage == Usage(10, 5)
    assert (await whole(completion(usage={"completion_tokens": 5, "total_tokens": 15}))).usage == Usage(10, 5)


async def test_an_output_of_nothing_beside_words_is_no_output() -> None:
    nothing = {"prompt_tokens": 10, "completion_tokens": 0}
    half = PartialUsage(Usage(10, 0), has_prompt=True, has_output=False)
    begun = {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "usage": nothing}
    for payloads in (
        [begun, delta("hi"), finish()],
        [delta("h", usage=nothing), delta("i", usage=nothing), finish()],
        [delta("hi"), finish(usage=nothing)],
        [delta("hi"), finish(), {"choices": [], "usage": nothing}],
    ):
        stream = opened(events(*payloads))
        [chunk async for chunk in stream]
        assert stream.usage == half
    assert (await whole(completion(usage=nothing))).usage == half


async def test_an_output_of_nothing_is_reported_where_nothing_was_generated_and_zeros_beside_words_are_none() -> None:
    nothing, zeros = {"prompt_tokens": 10, "completion_tokens": 0}, {"prompt_tokens": 0, "completion_tokens": 0}
    none = PartialUsage(Usage(0, 0), has_prompt=False, has_output=False)
    cases: list[tuple[list[dict[str, Any]], Usage | PartialUsage]] = [
        ([delta("", usage=nothing), finish(usage=nothing)], Usage(10, 0)),
        ([delta("", usage=zeros), finish(usage=zeros)], Usage(0, 0)),
        ([delta("I cannot"), finish("content_filter", usage=nothing)], Usage(10, 0)),
        ([delta("hi"), finish(usage=zeros)], none),
    ]
    for payloads, read in cases:
        stream = opened(events(*payloads))
        [chunk async for chunk in stream]
        assert stream.usage == read
    assert (await whole(completion(usage=zeros))).usage == none


async def test_counts_from_before_the_last_words_of_a_cut_answer_are_only_a_part() -> None:
    early = {"prompt_tokens": 10, "completion_tokens": 1}
    for payloads in ([delta("a", usage=early), delta("b")], [delta("a", usage={**early, "completion_tokens": 0})]):
        stream = opened(events(*payloads, end=b""))
        with pytest.raises(BrokenFault):
            [chunk async for chunk in stream]
        assert isinstance(stream.usage, PartialUsage)
        assert (stream.usage.has_prompt, stream.usage.has_output) == (True, False)
        assert stream.usage.completed(99, 7) == Usage(10, 7)
    running = opened(events(delta("a", usage=early), end=b""))
    with pytest.raises(BrokenFault):
        [chunk async for chunk in running]
    assert running.usage == Usage(10, 1)


# -- form -------------------------------------------------------------------------------------------------------------

MESSAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "parts of text": (
        {"content": [{"type": "text", "text": "on"}, {"type": "output_text", "text": "e"}, "!"]},
        {"content": "one!"},
    ),
    "thinking in parts": (
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "one"},
            ]
        },
        {"content": "one", "reasoning_content": "hm"},
    ),
    "a picture among the parts": (
        {"content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"content": "see", "images": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
    ),
    "one part": ({"content": {"type": "text", "text": "one"}}, {"content": "one"}),
    "an object for a text": ({"content": {"a": 1}}, {"content": '{"a":1}'}),
    "arguments as an object": (
        {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
    ),
    "a call without id, type and arguments": (
        {"tool_calls": [{"function": {"name": "f"}}]},
        {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    ),
    "a call without its function": (
        {"tool_calls": [{"id": "c", "name": "f", "arguments": {"a": 1}}]},
        {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
    ),
    "one call without a list": (
        {"tool_calls": {"id": 7, "function": {"name": "f", "arguments": ""}}},
        {"tool_calls": [{"id": "7", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    ),
    "no text but false": ({"content": False, "reasoning": "hm"}, {"content": None, "reasoning": "hm"}),
    "null calls": ({"content": "x", "tool_calls": None}, {"content": "x"}),
    "no calls": ({"content": "x", "tool_calls": []}, {"content": "x"}),
    "another role": ({"role": "model", "content": "x"}, {"content": "x"}),
    "no content": ({"reasoning_content": "hm"}, {"reasoning_content": "hm"}),
    "a custom call": (
        {"tool_calls": [{"id": "c", "custom": {"name": "f", "input": "x"}}]},
        {"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
    ),
}


@pytest.mark.parametrize("kind", MESSAGES)
async def test_a_message_is_given_the_form_that_clients_read(kind: str) -> None:
    sent, read = MESSAGES[kind]
    reply = await whole({"choices": [{"message": json.loads(json.dumps(sent))}], "usage": U})
    [choice] = reply.body["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == ("tool_calls" if "tool_calls" in read else "stop")
    assert choice["message"] == {"role": "assistant", "content": None} | read
    assert reply.usage == Usage(10, 5)

    chunks = await streamed(events({"choices": [{"delta": sent}]}, finish(usage=U)))
    found = chunks[0]["choices"][0]["delta"]
    expected = json.loads(json.dumps(read))
    for number, call in enumerate(expected.get("tool_calls", ())):
        call["index"] = number
        if call.get("function", {}).get("arguments") == "{}":
            call["function"]["arguments"] = ""
    assert found == {"role": "assistant"} | expected


@pytest.mark.parametrize(
    "choice",
    [
        {"message": "hi"},
        {"text": "hi"},
        {"delta": "hi"},
        {"delta": {"content": "hi"}, "finish_reason": "stop"},
        {"message": None, "text": "hi"},
        {"message": {"content": "hi"}, "finish_reason": None},
        {"message": {"content": "hi"}, "index": None, "finish_reason": ""},
    ],
)
async def test_a_choice_says_what_it_says_under_any_name(choice: dict[str, Any]) -> None:
    reply = await whole({"choices": [choice]})
    said = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    assert reply.body["choices"] == [said]
    chunks = await streamed(events({"choices": [choice]}, finish(usage=U)))
    assert text_of(chunks) == "hi"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        *((name, name) for name in ("stop", "length", "tool_calls", "function_call", "content_filter", "X_Y")),
        ("eos", "stop"), ("end_turn", "stop"), ("STOP", "stop"), ("max_tokens", "length"), ("MAX_TOKENS", "length"),
        ("model_length", "length"), ("tool-calls", "tool_calls"), ("tool_use", "tool_calls"),
        ("SAFETY", "content_filter"), ("content-filter", "content_filter"), ("sensitive", "content_filter"),
    ],
)  # fmt: skip
async def test_a_finish_is_told_in_openai_s_words_and_an_unknown_one_as_it_is(reason: str, told: str) -> None:
    native = {"native_finish_reason": reason} if told != reason else {}
    body = completion()
    body["choices"][0]["finish_reason"] = reason
    reply = await whole(body)
    assert reply.finish_reason == told
    for chunks in ([reply.body], await streamed(events(delta("a"), delta("b"), finish(reason)))):
        choice = chunks[-1]["choices"][0]
        assert choice["finish_reason"] == told
        assert {name: choice[name] for name in native} == native == {
            name: value for name, value in choice.items() if name == "native_finish_reason"
        }  # fmt: skip


async def test_a_filtered_answer_without_a_message_is_an_answer() -> None:
    reply = await whole({"choices": [{"index": 0, "finish_reason": "content_filter"}], "usage": U})
    assert reply.body["choices"][0]["message"] == {"role": "assistant", "content": None}
    assert reply.finish_reason == "content_filter"


@pytest.mark.parametrize(
    "choices",
    [
        None,
        [],
        [None],
        "x",
        [{}],
        {},
        [{"message": {"role": "assistant", "content": None}}],
        [{"delta": {"tool_calls": 5}}],
    ],
)
async def test_an_answer_without_a_choice_is_broken_and_billed_as_reported(choices: Any) -> None:
    body = {"id": "x", "object": "chat.completion", "choices": choices, "usage": U}
    with pytest.raises(BrokenFault) as caught:
        await whole(body)
    assert (caught.value.usage, caught.value.dispatched, caught.value.retryable) == (Usage(10, 5), True, False)
    with pytest.raises(BrokenFault) as caught:
        await opened(json.dumps(body).encode(), "application/json").read_ahead()
    assert caught.value.usage == Usage(10, 5)


def called(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": list(calls)}}]}


async def placed(*payloads: dict[str, Any]) -> dict[int, tuple[str, str, str]]:
    """The calls of a stream as a client gathers them: id, name, arguments by index."""
    made: dict[int, list[str]] = {}
    for chunk in await streamed(events(*payloads, finish("tool_calls"))):
        for choice in chunk["choices"]:
            for call in choice["delta"].get("tool_calls", ()):
                parts = made.setdefault(call["index"], [call.get("id", ""), "", ""])
                parts[1] += call["function"].get("name") or ""
                parts[2] += call["function"].get("arguments") or ""
    return {index: (parts[0], parts[1], parts[2]) for index, parts in made.items()}


def piece(arguments: Any, name: str | None = None, **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"function": function, **more}


async def test_tool_calls_are_numbered_where_the_provider_does_not() -> None:
    two = {0: ("a", "f", "{1}"), 1: ("b", "g", "{2}")}
    well = [called(piece("{", "f", id="a", index=0)), called(piece("1}", index=0))]
    well += [called(piece("{", "g", id="b", index=1)), called(piece("2}", index=1))]
    assert await placed(*well) == two
    without = [
        called(piece("{", "f", id="a")),
        called(piece("1}")),
        called(piece("{", "g", id="b")),
        called(piece("2}")),
    ]
    assert await placed(*without) == two
    by_id = [called(piece("{", "f", id="a")), called(piece("{", "g", id="b"))]
    by_id += [called(piece("1}", id="a")), called(piece("2}", id="b"))]
    assert await placed(*by_id) == two
    one_number = [called(piece("{1}", "f", id="a", index=0)), called(piece("{2}", "g", id="b", index=0))]
    assert await placed(*one_number) == two
    at_once = [called(piece("{1}", "f", id="a"), piece("{2}", "g", id="b"))]
    assert await placed(*at_once) == two
    crossed = [called(piece("{", "f", id="a", index=0), piece("{", "g", id="b", index=1))]
    crossed += [called(piece("2}", index=1)), called(piece("1}", index=0))]
    assert await placed(*crossed) == two
    shifted = [called(piece("{1}", "f", id="a", index=1)), called(piece("{", "g", id="b", index=2))]
    assert await placed(*shifted, called(piece("2}", index=2))) == two


async def test_the_only_answer_is_the_first_whatever_its_number_is() -> None:
    shifted = [
        {"choices": [{"index": 1, "delta": {"content": text}, "finish_reason": end}]}
        for text, end in (("h", None), ("i", "stop"))
    ]
    made = Exchange(one_choice=True)
    source = WireSource(Pieces(iter([events(*shifted)])), made, idle_timeout_s=5.0, deadline=float("inf"))
    chunks = [chunk async for chunk in UpstreamStream(source, made)]
    assert (text_of(chunks), {choice["index"] for chunk in chunks for choice in chunk["choices"]}) == ("hi", {0})
    several = [choice["index"] for chunk in await streamed(events(*shifted)) for choice in chunk["choices"]]
    assert several == [1, 1]
    reply = await whole({"choices": [{"index": 1, "message": {"content": "hi"}, "finish_reason": "stop"}]})
    assert reply.body["choices"][0]["index"] == 0


async def test_parallel_calls_with_one_id_stay_two() -> None:
    """Some servers use the function's name as the id, or "0" for each call."""
    for name in ("f", "0"):
        two = {0: (name, "f", "{1}"), 1: (f"{name}__sr_1_1", "f", "{2}")}
        numbered = [called(piece("{1}", "f", id=name, index=0)), called(piece("{2}", "f", id=name, index=1))]
        assert await placed(*numbered) == two
        in_pieces = [called(piece("{", "f", id=name, index=0)), called(piece("1}", id=name, index=0))]
        in_pieces += [called(piece("{", "f", id=name, index=1)), called(piece("2}", id=name, index=1))]
        assert await placed(*in_pieces) == two
        assert await placed(called(piece("{1}", "f", id=name), piece("{2}", "f", id=name))) == two
        crossed = [called(piece("{", "f", id=name, index=0), piece("{", "f", id=name, index=1))]
        crossed += [called(piece("1}", id=name, index=0), piece("2}", id=name, index=1))]
        assert await placed(*crossed) == two
        sent = await streamed(events(*crossed, finish("tool_calls")))
        later = [choice["delta"].get("tool_calls", ()) for chunk in sent[1:] for choice in chunk["choices"]]
        assert not any("id" in call for calls in later for call in calls)
        answer = {"choices": [{"index": 0, "message": {"tool_calls": [
            {"id": name, "function": {"name": "f", "arguments": text}} for text in ("{1}", "{2}")
        ]}}]}  # fmt: skip
        calls = (await whole(answer)).body["choices"][0]["message"]["tool_calls"]
        assert {at: (call["id"], "f", call["function"]["arguments"]) for at, call in enumerate(calls)} == two


async def test_a_call_without_an_id_is_given_one_and_keeps_it() -> None:
    assert await placed(called(piece("{", "f")), called(piece("}"))) == {0: ("call_1", "f", "{}")}
    again = [called(piece("{", "f", id="a", index=0)), called(piece("}", "f", id="a", index=0))]
    assert await placed(*again) == {0: ("a", "f", "{}")}
    more = (await streamed(events(*again, finish("tool_calls"))))[1]["choices"][0]["delta"]["tool_calls"]
    assert more == [{"index": 0, "function": {"arguments": "}"}}]
    repeated = [called(piece("{", "f", id="a", index=0)), called(piece("}", "", id="other", index=0))]
    assert (await placed(*repeated))[0] == ("a", "f", "{}")


# -- errors inside a 200 ----------------------------------------------------------------------------------------------

ERRORS: list[tuple[dict[str, Any], type[UpstreamFault], int, str]] = [
    ({"error": {"code": 429, "message": "slow"}}, ThrottledFault, 429, ""),
    ({"error": {"code": "429", "message": "slow"}}, ThrottledFault, 429, ""),
    ({"error": {"code": "rate_limit_exceeded", "message": "x"}}, ThrottledFault, 429, "rate_limit_exceeded"),
    ({"error": {"type": "rate_limit_error", "message": "x"}}, ThrottledFault, 429, ""),
    ({"error": {"status": "RESOURCE_EXHAUSTED", "code": 429}}, ThrottledFault, 429, ""),
    ({"error": "Rate limit reached for requests"}, ThrottledFault, 429, ""),
    ({"error": {"message": "Too many requests"}}, ThrottledFault, 429, ""),
    ({"error": {"type": "insufficient_quota", "code": None}}, ThrottledFault, 429, "insufficient_quota"),
    ({"error": {"code": "context_length_exceeded", "message": "x"}}, RejectedFault, 400, "context_length_exceeded"),
    (
        {"error": {"type": "invalid_request_error", "message": "This model's maximum context length is 8192 tokens"}},
        RejectedFault, 400, "context_length_exceeded",
    ),
    (
        {"object": "error", "type": "BadRequestError", "code": 400, "message": "maximum context length is 8192"},
        RejectedFault, 400, "context_length_exceeded",
    ),
    ({"error": {"code": "content_filter", "status": 400}}, RejectedFault, 400, "content_filter"),
    ({"error": {"type": "invalid_request_error", "message": "bad"}}, RejectedFault, 400, ""),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, FailedFault, 503, ""),
    ({"error": {"code": "invalid_api_key", "message": "x"}}, CredentialFault, 401, ""),
    ({"error": {"type": "authentication_error"}}, CredentialFault, 401, ""),
    ({"error": {"type": "permission_error"}}, CredentialFault, 403, ""),
    ({"error": {"message": "insufficient balance", "code": 402}}, CredentialFault, 402, "insufficient_quota"),
    ({"error": {"code": "model_not_found", "message": "x"}}, RejectedFault, 404, "model_not_found"),
    ({"error": {"code": 504, "message": "upstream timed out"}}, TimeoutFault, 504, ""),
    ({"error": {"code": 500, "message": "x"}}, FailedFault, 502, ""),
    ({"error": {"message": "something"}}, FailedFault, 502, ""),
    ({"error": "something"}, FailedFault, 502, ""),
    ({"error": True}, FailedFault, 502, ""),
    ({"errors": [{"code": 429, "message": "x"}], "success": False}, ThrottledFault, 429, ""),
    ({"base_resp": {"status_code": 1002, "status_msg": "x"}, "choices": None}, ThrottledFault, 429, ""),
    ({"base_resp": {"status_code": 1004, "status_msg": "x"}, "choices": None}, CredentialFault, 401, ""),
    ({"error": True, "message": "Too many requests", "code": 429}, ThrottledFault, 429, ""),
    ({"code": "Throttling.RateQuota", "message": "x", "request_id": "r"}, ThrottledFault, 429, ""),
    ({"code": "InvalidParameter", "message": "x", "request_id": "r"}, RejectedFault, 400, ""),
    ({"choices": [{"index": 0, "delta": {"content": ""}, "error": {"code": 429}}]}, ThrottledFault, 429, ""),
]  # fmt: skip


ALONE: list[tuple[dict[str, Any], type[UpstreamFault]]] = [
    ({"detail": "Not authenticated"}, CredentialFault),
    ({"Message": "internal"}, FailedFault),
    ({"statusCode": 429, "message": "Rate limit is exceeded. Try again in 2 seconds."}, ThrottledFault),
    ({"success": False, "message": "the model is overloaded"}, FailedFault),
    ({"error_code": 18, "error_msg": "too many requests"}, ThrottledFault),
    ({"Response": {"Error": {"Code": "RequestLimitExceeded.RateLimit", "Message": "x"}}}, ThrottledFault),
    ({"detail": {"code": "context_length_exceeded", "message": "too long"}}, RejectedFault),
    ({"message": "Too many tokens, please wait before trying again.", "__type": "ThrottlingException"}, ThrottledFault),
    ({"detail": "`inputs` must have less than 1024 tokens. Given: 1500"}, RejectedFault),
]


@pytest.mark.parametrize(("error", "kind"), ALONE)
async def test_a_sentence_without_an_answer_is_an_error_and_between_chunks_a_sign_of_life(
    error: dict[str, Any], kind: type[UpstreamFault]
) -> None:
    for answer in (
        whole(error),
        opened(json.dumps(error).encode(), "application/json").read_ahead(),
        opened(events(error)).read_ahead(),
        opened(events(error, end=b"")).read_ahead(),
    ):
        with pytest.raises(kind) as caught:
            await answer
        assert not caught.value.dispatched
    assert text_of(await streamed(events(delta("h"), error, delta("i"), finish(usage=U)))) == "hi"


@pytest.mark.parametrize(("error", "kind", "status", "code"), ERRORS)
async def test_an_error_inside_a_200_means_what_its_status_would(
    error: dict[str, Any], kind: type[UpstreamFault], status: int, code: str
) -> None:
    for answer in (
        whole(error),
        whole([error]),
        opened(events(error)).read_ahead(),
        opened(events({"choices": []}, error)).read_ahead(),
        opened(json.dumps(error).encode(), "application/json").read_ahead(),
        opened(b"event: error\n" + events(error)).read_ahead(),
    ):
        with pytest.raises(kind) as caught:
            await answer
        assert (caught.value.status, caught.value.code) == (status, code)


async def test_an_error_event_without_an_error_object_is_one() -> None:
    for data, kind in [(b'{"type": "rate_limit_error", "message": "x"}', ThrottledFault), (b"overloaded", FailedFault)]:
        with pytest.raises(kind):
            await opened(b"event: error\ndata: " + data + b"\n\n").read_ahead()


async def test_an_error_in_mid_stream_breaks_it_with_its_own_meaning() -> None:
    stream = opened(events(delta("a"), {"error": {"code": "rate_limit_exceeded"}, "usage": U}))
    with pytest.raises(BrokenFault) as caught:
        [chunk async for chunk in stream]
    assert caught.value.answer().code == "rate_limited"
    assert (caught.value.dispatched, caught.value.retryable, caught.value.usage) == (True, False, Usage(10, 5))
    bare = opened(events(delta("a"), b'{"error": {"message": "x"}}\n\n', end=b""))
    with pytest.raises(BrokenFault) as caught:
        [chunk async for chunk in bare]
    assert caught.value.answer().code == "upstream_error"


@pytest.mark.parametrize("step", [0, 7])
async def test_a_usage_behind_an_error_in_mid_stream_is_billed(step: int) -> None:
    error = {"error": {"message": "x"}}
    for behind in (({"choices": [], "usage": U},), (b"data: not JSON\n\n", finish(usage=U))):
        stream = opened(events(delta("a"), error, *behind), step=step)
        with pytest.raises(BrokenFault) as caught:
            [chunk async for chunk in stream]
        assert (caught.value.usage, stream.usage) == (Usage(10, 5), Usage(10, 5))


async def test_the_wait_for_a_usage_behind_an_error_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = asyncio.Event()

    class Open(Pieces):
        async def _read(self) -> AsyncIterator[bytes]:
            for piece in self._pieces:
                yield piece
            await closed.wait()

    monkeypatch.setattr("gateway.providers.wire_source.LATE_S", 0.01)
    made = exchange("text/event-stream", streaming=True)
    answer = Open(iter([events(delta("a"), {"error": {"message": "x"}}, end=b"")]))
    stream = UpstreamStream(WireSource(answer, made, idle_timeout_s=60.0, deadline=float("inf")), made)
    with pytest.raises(BrokenFault) as caught:
        [chunk async for chunk in stream]
    assert caught.value.usage is None


async def test_an_error_that_was_billed_is_paid_and_not_tried_again() -> None:
    with pytest.raises(FailedFault) as caught:
        await whole({"error": {"code": 503}, "usage": U})
    assert (caught.value.usage, caught.value.dispatched, caught.value.retryable) == (Usage(10, 5), True, False)
    with pytest.raises(FailedFault) as caught:
        await whole({"error": {"code": 503}, "usage": dict.fromkeys(U, 0)})
    assert (caught.value.usage, caught.value.dispatched, caught.value.retryable) == (None, False, True)


# -- compressed answers -----------------------------------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return squeezer.compress(data) + squeezer.flush()


@pytest.mark.parametrize(
    ("encoding", "squeezed"),
    [
        ("gzip", gzip.compress(b"hello " * 99, mtime=0)),
        ("GZIP", gzip.compress(b"hello " * 50, mtime=0) + gzip.compress(b"hello " * 49, mtime=0)),
        ("x-gzip", gzip.compress(b"hello " * 99, mtime=0) + b"\0\0"),
        ("deflate", zlib.compress(b"hello " * 99)),
        ("deflate", raw_deflate(b"hello " * 99)),
        ("gzip", b"hello " * 99),  # unpacked by a proxy that left the label
        ("identity, gzip", gzip.compress(b"hello " * 99, mtime=0)),
        ("br", brotli.compress(b"hello " * 99)),
        ("ZSTD", zstandard.compress(b"hello " * 50) + zstandard.compress(b"hello " * 49)),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_compressed_answers_are_unpacked_however_they_are_cut(encoding: str, squeezed: bytes, step: int) -> None:
    decoder = decoder_for(encoding)
    assert decoder is not None
    parts = [decoder.unpacked(squeezed[at : at + step], 10_000) for at in range(0, len(squeezed), step)]
    assert b"".join(parts) == b"hello " * 99


def test_a_bomb_is_not_unpacked() -> None:
    spaces = b" " * 100_000_000
    bombs = {
        "gzip": gzip.compress(spaces),
        "br": brotli.compress(spaces, quality=1),
        "zstd": zstandard.compress(spaces),
    }
    for encoding, bomb in bombs.items():
        decoder, broken = decoder_for(encoding), decoder_for(encoding)
        assert decoder is not None
        assert broken is not None
        tracemalloc.start()
        with pytest.raises(UnpackingError, match="at most 100000 bytes"):
            decoder.unpacked(bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()
        with pytest.raises(UnpackingError):
            broken.unpacked(b"\x1f\x8bnothing of the kind", 100)
    assert decoder_for("utf-8") is None  # a charset under the wrong name


@pytest.mark.parametrize(
    ("encoding", "named"), [("compress", "compress"), ("gzip, br", "gzip, br"), ("sk-1\r\nx: y", r"\(no name of one\)")]
)
def test_an_encoding_that_cannot_be_read_is_named(encoding: str, named: str) -> None:
    with pytest.raises(UnpackingError, match=f"content-encoding of {named}$"):
        decoder_for(encoding)


@pytest.mark.parametrize("encoding", ["br", "zstd"])
def test_without_its_package_an_encoding_is_named(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnpackingError, match=f"content-encoding of {encoding}$"):
        decoder_for(encoding)


def test_the_operator_reads_which_encoding_it_was() -> None:
    seen = Exchange(
        status=200, headers={"content-encoding": "compress"}, failure=EncodingUnread, attempts=1, reached=True
    )
    fault = exchange_fault(seen)
    assert fault is not None
    assert fault.message == "the provider's response has the content-encoding compress, which cannot be read here"
    assert fault.dispatched


# -- anything at all --------------------------------------------------------------------------------------------------

NAMES = [
    "choices", "message", "delta", "content", "tool_calls", "function", "arguments", "index", "id", "usage", "type",
    "prompt_tokens", "completion_tokens", "error", "code", "finish_reason", "text", "name", "created", "x_groq",
    "logprobs",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.fixed_dictionaries({"choices": st.lists(st.dictionaries(st.sampled_from(
    ["message", "delta", "index", "finish_reason", "usage", "text"]), JSON, max_size=4), max_size=3)},
    optional={"usage": JSON, "error": JSON, "id": JSON, "model": JSON, "created": JSON},
)  # fmt: skip


LAST_NUMBER = {"choices": [{"delta": {"tool_calls": [{"index": 2**64 - 1, "function": {"name": "f"}}, {}]}}]}
LIST_ID = {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f"}}, {"index": 0, "id": [None]}]}}]}


@example(answer=float("inf"))
@example(answer=LAST_NUMBER)
@example(answer=LIST_ID)
@given(answer=JSON | ANSWERS)
async def test_no_json_breaks_the_readers(answer: Any) -> None:
    """Either an answer in the right form that can be written again, or a fault."""
    try:
        reply = await whole(answer)
    except UpstreamFault:
        pass
    else:
        orjson.dumps(reply.body)
        for choice in reply.body["choices"]:
            assert isinstance(choice["index"], int)
            assert choice["message"]["role"] == "assistant"
            assert isinstance(choice["finish_reason"], str)
    for body in (json.dumps(answer).encode(), events(answer, answer, finish())):
        stream = opened(body)
        try:
            async for chunk in stream:
                orjson.dumps(chunk)
                assert all(isinstance(choice["delta"], dict) for choice in chunk["choices"])
        except UpstreamFault:
            assert not stream.ended_properly


@given(data=st.binary(max_size=80), step=st.integers(1, 80))
async def test_no_bytes_break_the_readers(data: bytes, step: int) -> None:
    for answer in (data, b"data: " + data, b'{"choices": ' + data):
        with contextlib.suppress(UpstreamFault):
            [chunk async for chunk in opened(answer, step=step)]
        with pytest.raises(UpstreamFault):
            await whole(answer)


@pytest.mark.parametrize(
    "choice", [{"message": []}, {"text": 7}, {"delta": "", "message": {}}, {"delta": {"content": 0}}]
)
async def test_an_event_of_an_odd_choice_is_put_together_as_far_as_it_says_something(choice: dict[str, Any]) -> None:
    reply = await whole(events({"choices": [choice]}, delta("a"), finish()))
    [made] = reply.body["choices"]
    assert made["message"]["content"] in ("a", "0a")
    assert made.keys() == {"index", "message", "finish_reason"}


async def test_parts_without_a_text_stay_beside_those_that_have_one() -> None:
    cited = {"type": "reference", "reference_ids": [1]}
    parts = [{"type": "text", "text": "hi"}, cited]
    message = (await whole(completion({"role": "assistant", "content": parts}))).body["choices"][0]["message"]
    assert (message["content"], message["provider_specific_fields"]) == ("hi", {"content": [cited]})
    alone = (await whole(completion({"role": "assistant", "content": [cited]}))).body["choices"][0]["message"]
    assert alone["content"] == [cited]
