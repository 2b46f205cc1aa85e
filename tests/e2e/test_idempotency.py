"""One key, one call, one charge, one answer - streamed or whole, kept, failed or abandoned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.database.tables import decisions
from tests.harness.scenario import HELLO, playing, seqroute, session, turn

KEY = {"Idempotency-Key": "order-1"}


async def test_a_stream_is_given_again_byte_for_byte_and_called_and_charged_once(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        every_option: tuple[dict[str, Any], ...] = ({}, {"stream_options": {"include_usage": True}})
        for number, options in enumerate(every_option):
            headers = {"Idempotency-Key": f"order-{number}"} | session("s")
            first = await turn(http, headers=headers, stream=True, **options)
            again = await turn(http, headers=headers, stream=True, **options)
            assert again.status_code == 200
            assert again.headers["x-seqroute-replayed"] == "true"
            assert "x-seqroute-replayed" not in first.headers
            assert again.headers["content-type"] == first.headers["content-type"]
            for name in ("decision-id", "model", "reason", "policy", "reserved-usd", "session-id"):
                assert seqroute(again, name) == seqroute(first, name)

            def data(text: str) -> list[str]:
                return [
                    frame for frame in text.split("\n\n") if frame.startswith("data: {") and '"seqroute"' not in frame
                ]

            assert data(again.text) == data(first.text)
            assert again.text.endswith("data: [DONE]\n\n")
            assert f'"decision_id":"{seqroute(first, "decision-id")}"' in again.text
        assert len(play.provider.bill) == 2
        assert (await http.get("/v1/sessions/s")).json()["turns"] == 2


async def test_a_whole_answer_is_given_again_from_any_session_and_a_refusal_is_not_kept(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        poor = await turn(http, "big", headers=KEY | session("poor", budget_usd="0.000001"))
        assert poor.status_code == 402
        bad = await turn(http, "big", headers=KEY, temperature="hot")
        assert bad.status_code == 400
        first = await turn(http, headers=KEY | session("a"))
        again = await turn(http, headers=KEY | session("b"))
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.content == first.content
        assert len(play.provider.bill) == 1
        other = await turn(http, headers=KEY | session("a"), max_tokens=5)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"model": "small", "messages": HELLO}),
        ("/v1/messages", {"model": "small", "messages": HELLO, "max_tokens": 20}),
        ("/v1/responses", {"model": "small", "input": "hello"}),
        ("/v1/embeddings", {"model": "vectors", "input": "one two"}),
    ],
)
async def test_a_repeated_body_is_the_same_to_the_byte_and_the_first_s_headers_say_what_is_left(
    tmp_path: Path, sqlite_url: str, route: str, body: dict[str, Any]
) -> None:
    vectors = {"mode": "embedding", "input_cost_per_token": 1e-6, "output_cost_per_token": 0}
    async with (
        playing(tmp_path, sqlite_url, modes={"vectors": "ok"}, infos={"vectors": vectors}) as play,
        play.gateway.http() as http,
    ):
        first, again = [await http.post(route, json=body, headers=KEY | session("s")) for _ in range(2)]
        assert (first.status_code, again.status_code) == (200, 200), first.text
        assert again.headers["x-seqroute-replayed"] == "true"
        assert again.content == first.content
        assert seqroute(first, "cost-usd") == seqroute(again, "cost-usd") != ""
        assert seqroute(first, "session-remaining-usd")
        unkeyed = await http.post(route, json=body, headers=session("s"))
        assert ("session_remaining_usd" in unkeyed.text) is (route != "/v1/chat/completions")


async def test_of_many_at_once_one_is_called_and_the_others_wait_or_get_its_answer(
    tmp_path: Path, database_url: str
) -> None:
    async with (
        playing(tmp_path, database_url, modes={"slow": "ok:tokens=5,delay=0.05"}) as play,
        play.gateway.http() as http,
    ):
        answers = await asyncio.gather(*(turn(http, "slow", headers=KEY | session("s")) for _ in range(10)))
        assert {a.status_code for a in answers} <= {200, 409}
        assert sum(a.status_code == 200 for a in answers) >= 1
        for refused in (a for a in answers if a.status_code == 409):
            assert refused.json()["error"]["code"] == "idempotency_in_flight"
            assert refused.headers["Retry-After"] == "1"
        assert len(play.provider.bill) == 1
        assert len(play.rows(decisions)) == 1
        later = await turn(http, "slow", headers=KEY | session("s"))
        assert (later.status_code, later.headers["x-seqroute-replayed"]) == (200, "true")


async def test_a_failure_that_cost_nothing_frees_its_key_and_one_that_may_have_cost_is_the_answer(
    tmp_path: Path, database_url: str
) -> None:
    modes = {"down": "e500", "cut": "rst", "inband": "inband-mid"}
    async with playing(tmp_path, database_url, modes=modes, audited=False) as play, play.gateway.http() as http:
        for model, stream, calls in (
            ("down", False, 2), ("down", True, 2), ("cut", False, 1), ("cut", True, 1), ("inband", True, 1),
        ):  # fmt: skip
            play.provider.bill.clear()
            headers = {"Idempotency-Key": f"{model}-{stream}"} | session(model)
            first = await turn(http, model, headers=headers, stream=stream)
            await play.gateway.settled()
            # A kept connection that ends without a byte is one free new attempt: not the client's second request.
            begun = len(play.provider.bill)
            again = await turn(http, model, headers=headers, stream=stream)
            await play.gateway.settled()
            assert again.status_code == first.status_code, (model, stream, again.text)
            assert len(play.provider.bill) - begun == calls - 1, (model, stream)
            assert '"error"' in again.text
            assert "[DONE]" not in again.text


async def test_a_client_that_leaves_a_whole_answer_finds_it_under_its_key_and_pays_once(
    tmp_path: Path, database_url: str
) -> None:
    modes = {"slow": "ok:tokens=20,delay=0.05"}
    async with playing(tmp_path, database_url, modes=modes) as play, play.gateway.http() as http:
        asked = asyncio.ensure_future(turn(http, "slow", headers=KEY | session("s")))
        await until(lambda: bool(play.provider.bill) and play.provider.bill[0].output_tokens > 2)
        asked.cancel()
        await asyncio.wait([asked])
        async with asyncio.timeout(20):
            while (again := await turn(http, "slow", headers=KEY | session("s"))).status_code == 409:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (again.status_code, again.headers["x-seqroute-replayed"]) == (200, "true")
        assert again.json()["usage"]["completion_tokens"] == 20
        [attempt] = play.provider.bill
        assert (attempt.finished, attempt.cut) == (True, False)


async def test_a_client_that_leaves_a_stream_finds_what_there_was_and_that_it_was_cut(
    tmp_path: Path, database_url: str
) -> None:
    modes = {"slow": "ok:tokens=400,delay=0.02"}
    async with playing(tmp_path, database_url, modes=modes) as play, play.gateway.http() as http:
        body = {"model": "slow", "messages": HELLO, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=KEY | session("s")) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: {") and '" of"' in line:
                    break
        await until(lambda: play.provider.bill[0].cut)
        await play.gateway.settled()
        again = await turn(http, "slow", headers=KEY | session("s"), stream=True)
        assert (again.status_code, again.headers["x-seqroute-replayed"]) == (200, "true")
        assert '"content":" the"' in again.text
        assert '"error"' in again.text
        assert "[DONE]" not in again.text
        assert len(play.provider.bill) == 1
        assert (await http.get("/v1/sessions/s")).json()["turns"] == 1


async def until(happened: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not happened():  # noqa: ASYNC110 - what a provider does has no event here
            await asyncio.sleep(0.01)


async def test_nothing_is_free_by_its_key(tmp_path: Path, sqlite_url: str) -> None:
    """A second session, a second tenant's key or another header is no way to a second call or a second charge."""
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        first = await turn(http, headers=KEY | session("s"))
        spent = (await http.get("/admin/tenants/default")).json()["spent_nano_usd"]
        for number in range(5):
            again = await turn(http, headers=KEY | session(f"s{number}", budget_usd="0.1") | {"X-Route-Lambda": "9"})
            assert again.json() == first.json()
        assert (await http.get("/admin/tenants/default")).json()["spent_nano_usd"] == spent
        assert len(play.provider.bill) == 1
