"""What providers really send, through a served gateway on both lanes: the client's answer and the exact bill."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer, raw_answer
from tests.harness.gateway import Served, config, serving

U = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
COST = 10 * 1_000 + 5 * 2_000
NAME = "深度求索/deepseek-chat"
WORDS = "word " * 200


@dataclass(frozen=True, slots=True)
class Told:
    """What came of one turn."""

    status: int
    headers: Mapping[str, str]
    text: str
    settled: list[tuple[int, str]]
    """Amount in nano-USD and usage source of every bill."""

    @property
    def body(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.text)
        return made

    @property
    def chunks(self) -> list[dict[str, Any]]:
        lines = [line.removeprefix("data: ") for line in self.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def content(self) -> str:
        return "".join(c["delta"].get("content") or "" for chunk in self.chunks for c in chunk.get("choices", ()))

    @property
    def usages(self) -> list[dict[str, Any]]:
        return [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]


@dataclass(slots=True)
class Stage:
    gateway: Served
    provider: CannedProvider
    key: str
    turns: int = 0

    async def turn(self, answer: bytes, *, stream: bool, model: str = "small") -> Told:
        """One turn in a session of its own, the provider answering with `answer`."""
        self.provider.answer = answer
        self.turns += 1
        session = f"s-{self.turns}"
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        async with self.gateway.http(self.key) as http:
            told = await http.post("/v1/chat/completions", json=body, headers={"X-Session-Id": session})
        await self.gateway.settled()
        entries = await self.gateway.entries(session=session)
        bills = [(e["amount_nano_usd"], e["usage_source"]) for e in entries if e["kind"] in ("settle", "overage")]
        return Told(told.status_code, told.headers, told.text, bills)


@pytest.fixture(params=["auto", "litellm"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with CannedProvider(b"") as provider:
        path = config(tmp_path, provider.address + "/v1", modes={NAME: "small"}, router={"lane": request.param})
        async with serving(path) as gateway:
            _, key = await gateway.tenant("acme")
            yield Stage(gateway, provider, key)
            await gateway.settled()
            await gateway.audit()


def whole(text: str = "hi", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": U} | more


def delta(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} | more


def finish(**more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]} | more


def data(*payloads: Any) -> bytes:
    blocks = [p if isinstance(p, bytes) else b"data: " + json.dumps(p).encode() + b"\n\n" for p in payloads]
    return b"".join(blocks) + b"data: [DONE]\n\n"


def events(*payloads: Any, content_type: str = "text/event-stream") -> bytes:
    return raw_answer(data(*payloads), content_type)


async def test_odd_whole_answers_are_served_and_billed_as_reported(stage: Stage) -> None:
    plain = json.dumps(whole()).encode()
    cases = {
        "labelled as text": raw_answer(plain, "text/plain"),
        "labelled as a page": raw_answer(plain, "text/html"),
        "with a byte-order mark": raw_answer(b"\xef\xbb\xbf" + plain, "application/json"),
        "compressed": raw_answer(gzip.compress(plain), "application/json", "content-encoding: gzip"),
        "as an event stream": events(delta("h"), delta("i"), finish(usage=U)),
        "a lone surrogate": raw_answer(plain.replace(b'"hi"', b'"hi\\ud83d"'), "application/json"),
        "no finish, no index": json_answer({"choices": [{"message": {"content": "hi"}}], "usage": U}),
        "content in parts": json_answer(whole([{"type": "text", "text": "hi"}])),  # type: ignore[arg-type]
        "minus infinity": raw_answer(
            plain.replace(b'"finish_reason"', b'"logprobs": {"content": [{"logprob": -Infinity}]}, "finish_reason"'),
            "application/json",
        ),
        "usage in the choice": json_answer(
            {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop", "usage": U}]}
        ),
    }
    for kind, answer in cases.items():
        told = await stage.turn(answer, stream=False)
        assert (told.status, told.settled) == (200, [(COST, "reported")]), (kind, told.text)
        [choice] = told.body["choices"]
        assert choice["message"]["content"].startswith("hi"), kind
        assert (choice["index"], choice["message"]["role"], choice["finish_reason"]) == (0, "assistant", "stop")
        assert (told.body["usage"], told.body["object"], told.body["model"]) == (U, "chat.completion", "small")
        assert isinstance(told.body["created"], int)


async def test_odd_streams_are_served_and_billed_as_reported(stage: Stage) -> None:
    null = {"choices": [{"index": 0, "delta": None, "finish_reason": None}]}
    halves = [
        b'data: {"choices":[{"index":0,"delta":{"content":"h\\ud83d"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ude00i"}}]}\n\n',
    ]
    cases = {
        "null delta after the finish": events(delta("h"), delta("i"), finish(usage=U), null),
        "heartbeats": events(
            b": hi\n\n", b"event: ping\ndata:\n\n", delta("h"), b"data:\n\n", delta("i"), finish(usage=U)
        ),
        "labelled as text": events(delta("hi"), finish(), {"choices": [], "usage": U}, content_type="text/plain"),
        "a whole answer": json_answer(whole()),
        "compressed": raw_answer(
            gzip.compress(data(delta("hi"), finish(usage=U))), "text/event-stream", "content-encoding: gzip"
        ),
        "half a character in each chunk": events(*halves, finish(usage=U)),
        "usage in the choice": events(delta("hi"), {"choices": [{**finish()["choices"][0], "usage": U}]}),
        "usage in a trailing empty delta": events(delta("hi"), finish(), {"choices": [{"delta": {}}], "usage": U}),
        "usage in every chunk": events(delta("h", usage=U), delta("i", usage=U), finish(usage=U)),
    }
    for kind, answer in cases.items():
        told = await stage.turn(answer, stream=True)
        assert (told.status, told.settled) == (200, [(COST, "reported")]), (kind, told.text)
        assert told.content.replace("\N{GRINNING FACE}", "") == "hi", kind
        assert told.usages == [U], kind
        assert "error" not in told.chunks[-1], kind
        # Decoders that take every blank line for an event find data in each block.
        blocks = told.text.strip().split("\n\n")
        assert all("data: " in block for block in blocks), kind
        assert blocks[-1].startswith(": seqroute {")
        assert blocks[-1].endswith("}\ndata: [DONE]")
        assert {chunk["object"] for chunk in told.chunks} == {"chat.completion.chunk"}


async def test_a_picture_of_some_megabytes_streams_as_it_comes_whole(stage: Stage) -> None:
    picture = "data:image/png;base64," + "A" * (3 * 2**20)
    told = await stage.turn(events(delta(picture), finish(usage=U)), stream=True)
    assert (told.content, told.settled) == (picture, [(COST, "reported")])
    told = await stage.turn(json_answer(whole(picture)), stream=False)
    assert told.body["choices"][0]["message"]["content"] == picture


async def test_half_a_usage_is_estimated_and_marked(stage: Stage) -> None:
    for usage in ({"prompt_tokens": 10, "completion_tokens": None}, {"prompt_tokens": 10}):
        for stream, answer in (
            (False, json_answer(whole(WORDS, usage=usage))),
            (True, events(delta(WORDS), finish(usage=usage))),
        ):
            told = await stage.turn(answer, stream=stream)
            [(amount, source)] = told.settled
            assert source == "estimated"
            [shown] = told.usages if stream else [told.body["usage"]]
            assert shown["estimated"] is True
            assert shown["prompt_tokens"] == 10
            assert 190 <= shown["completion_tokens"] <= 210
            assert amount == 10 * 1_000 + shown["completion_tokens"] * 2_000


async def test_an_answer_without_choices_is_a_502_at_the_reported_price(stage: Stage) -> None:
    for stream in (False, True):
        told = await stage.turn(json_answer({"id": "x", "choices": None, "usage": U}), stream=stream)
        assert (told.status, told.body["error"]["code"]) == (502, "upstream_error")
        assert told.settled == [(COST, "reported")]


async def test_an_error_inside_a_200_keeps_its_meaning(stage: Stage) -> None:
    for error, status in [
        ({"code": "rate_limit_exceeded", "message": "x"}, 429),
        ({"code": "context_length_exceeded", "message": "x"}, 400),
        ({"type": "authentication_error", "message": "x"}, 502),
        ({"type": "server_error", "message": "x"}, 502),
    ]:
        for stream, answer in (
            (False, json_answer({"error": error})),
            (True, event_answer({"error": error})),
            (True, json_answer({"error": error})),
        ):
            told = await stage.turn(answer, stream=stream)
            assert (told.status, told.settled) == (status, []), (error, told.text)


async def test_an_error_in_mid_stream_is_told_and_billed_as_reported(stage: Stage) -> None:
    told = await stage.turn(events(delta("h"), {"error": {"code": 429}, "usage": U}), stream=True)
    assert (told.status, told.settled) == (200, [(COST, "reported")])
    assert told.chunks[-1]["error"]["code"] == "rate_limited"
    assert "[DONE]" not in told.text


async def test_a_model_whose_name_no_header_can_carry_is_served(stage: Stage) -> None:
    for stream, answer in ((False, json_answer(whole())), (True, events(delta("hi"), finish(usage=U)))):
        told = await stage.turn(answer, stream=stream, model=NAME)
        assert (told.status, told.settled) == (200, [(COST, "reported")])
        assert unquote(told.headers["x-seqroute-model"]) == NAME
        assert {chunk["model"] for chunk in told.chunks} == {NAME} if stream else told.body["model"] == NAME


async def test_a_remainder_below_zero_is_told_as_it_is(stage: Stage) -> None:
    dear = {"prompt_tokens": 10, "completion_tokens": 150_000, "total_tokens": 150_010}
    session = {"X-Session-Id": "owes", "X-Session-Budget-USD": "0.05"}
    stage.provider.answer = json_answer(whole(usage=dear))
    body = {"model": "small", "messages": [{"role": "user", "content": "x"}]}
    async with stage.gateway.http(stage.key) as http:
        first = await http.post("/v1/chat/completions", json=body, headers=session)
        assert first.status_code == 200
        refused = await http.post("/v1/chat/completions", json=body, headers=session)
    assert refused.status_code == 402
    assert "has -0.25 USD left" in refused.json()["error"]["message"]
    assert refused.json()["error"]["remaining_nano_usd"] == -250_010_000
