from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.train.rollout.scenes import caller, completion, gateway
from train.rollout.client import WAITS_S, CallFailed, OutOfMoney, RolloutCall
from train.rollout.journal import Journal

CALL = RolloutCall("n1", "a", [{"role": "user", "content": "hi"}], {"temperature": 0})


def refused(status: int, message: str = "no") -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message}})


async def test_a_call_is_pinned_named_and_counted(tmp_path: Path) -> None:
    seen: list[tuple[httpx.Request, dict[str, Any]]] = []

    def answer(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        seen.append((request, body))
        return completion("a", "good")

    with Journal(tmp_path, "x") as journal:
        async with gateway(answer) as http:
            got = await caller(http, journal).ask(CALL)
    assert (got.text, got.input_tokens, got.output_tokens, got.cached_tokens) == ("good", 10, 2, 0)
    assert got.billed_nanousd == 10_000
    ((request, body),) = seen
    assert request.headers["Idempotency-Key"] == "n1.0"
    assert request.headers["X-Session-Budget-USD"] == "1"
    assert body == {"model": "a", "messages": CALL.messages, "temperature": 0, "max_tokens": 100}


async def test_what_waiting_helps_is_sent_again_under_the_same_key(tmp_path: Path) -> None:
    keys: list[str] = []

    def answer(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadError("gone", request=request)
        return refused((409, 429, 503)[len(keys) - 2]) if len(keys) < 5 else completion("a", "good")

    with Journal(tmp_path, "x") as journal:
        async with gateway(answer) as http:
            await caller(http, journal).ask(CALL)
    assert keys == ["n1.0"] * 5


async def test_a_failure_begins_a_new_attempt_and_the_next_run_goes_on_numbering(tmp_path: Path) -> None:
    keys: list[str] = []

    def failing(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        return refused(502, "provider down")

    attempts = len(WAITS_S) + 1
    for _ in range(2):
        with Journal(tmp_path, "x") as journal:
            async with gateway(failing) as http:
                with pytest.raises(CallFailed, match="a: 502 provider down"):
                    await caller(http, journal).ask(CALL)
    assert keys == [f"n1.{attempt}" for attempt in range(2 * attempts)]


async def test_a_verdict_on_the_request_is_final(tmp_path: Path) -> None:
    for response, message in (
        (refused(400, "context too small"), "a: 400 context too small"),
        (completion("b", "good"), "b answered in its place"),
        (httpx.Response(200, json={"choices": []}, headers={"x-seqroute-model": "a"}), "got one without"),
    ):
        calls: list[str] = []

        def answer(request: httpx.Request, body: dict[str, Any], said: httpx.Response = response,
                   calls: list[str] = calls) -> httpx.Response:  # fmt: skip
            calls.append(request.headers["Idempotency-Key"])
            return said

        with Journal(tmp_path / message[:1], "x") as journal:
            async with gateway(answer) as http:
                with pytest.raises(CallFailed, match=message):
                    await caller(http, journal).ask(CALL)
        assert len(calls) == 1


async def test_without_money_and_no_one_under_way_nothing_more_is_asked(tmp_path: Path) -> None:
    calls: list[str] = []

    def answer(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        calls.append(request.headers["Idempotency-Key"])
        return refused(402, "0.0001 left")

    with Journal(tmp_path, "x") as journal:
        async with gateway(answer) as http:
            asking = caller(http, journal)
            for _ in range(3):
                with pytest.raises(OutOfMoney, match=r"402 0\.0001 left"):
                    await asking.ask(CALL)
    assert len(calls) == 1
    assert asking.out_of_money == "402 0.0001 left"


async def test_refused_calls_do_not_keep_one_another_asking(tmp_path: Path) -> None:
    """While the first holds the budget the others ask once; what they end gives no money back. Then no one is left."""
    sent: list[str] = []
    before_the_first_ended = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal before_the_first_ended
        sent.append(request.headers["Idempotency-Key"])
        if sent[-1] == "n0.0":
            for _ in range(200):
                await asyncio.sleep(0)
            before_the_first_ended = len(sent)
            return completion("a", "good")
        await asyncio.sleep(0)
        return refused(402, "0.0001 left")

    with Journal(tmp_path, "x") as journal:
        async with httpx.AsyncClient(base_url="http://gateway", transport=httpx.MockTransport(answer)) as http:
            asking = caller(http, journal)
            asked = [asking.ask(RolloutCall(f"n{n}", "a", CALL.messages, {})) for n in range(3)]
            first, *others = await asyncio.gather(*asked, return_exceptions=True)
    assert before_the_first_ended == 3
    assert not isinstance(first, BaseException)
    assert [type(one) for one in others] == [OutOfMoney] * 2


async def test_money_that_another_call_only_holds_is_waited_for(tmp_path: Path) -> None:
    """The second call is refused while the first holds the budget, and served when the first has settled."""
    first_ends = asyncio.Event()
    holding = asyncio.Event()
    sent: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["Idempotency-Key"])
        if sent[-1] == "n1.0":
            holding.set()
            await first_ends.wait()
            return completion("a", "good")
        if not first_ends.is_set():
            first_ends.set()
            return refused(402)
        return completion("a", "good")

    with Journal(tmp_path, "x") as journal:
        async with httpx.AsyncClient(base_url="http://gateway", transport=httpx.MockTransport(answer)) as http:
            asking = caller(http, journal)
            first = asyncio.create_task(asking.ask(CALL))
            await holding.wait()
            await asking.ask(RolloutCall("n2", "a", CALL.messages, {}))
            await first
    assert sent == ["n1.0", "n2.0", "n2.0"]


async def test_an_answer_that_the_cap_cut_off_is_no_answer_and_gets_a_new_key_later(tmp_path: Path) -> None:
    keys: list[str] = []

    def cut(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        response = completion("a", "goo", **{"x-seqroute-max-tokens": "50"})
        return httpx.Response(200, text=response.text.replace('"stop"', '"length"'), headers=response.headers)

    def whole(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        return completion("a", "good")

    with Journal(tmp_path, "x") as journal:
        async with gateway(cut) as http:
            with pytest.raises(OutOfMoney, match="limited to what the cap leaves"):
                await caller(http, journal).ask(CALL)
    with Journal(tmp_path, "x") as journal:
        async with gateway(whole) as http:
            assert (await caller(http, journal).ask(CALL)).text == "good"
    assert keys == ["n1.0", "n1.1"]


async def test_an_answer_that_ended_by_itself_counts_although_it_was_limited(tmp_path: Path) -> None:
    with Journal(tmp_path, "x") as journal:
        limited = completion("a", "good", **{"x-seqroute-max-tokens": "50"})
        async with gateway(lambda request, body: limited) as http:
            assert (await caller(http, journal).ask(CALL)).text == "good"


async def test_no_more_calls_than_allowed_are_under_way(tmp_path: Path) -> None:
    running, most = 0, 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return completion("a", "good")

    with Journal(tmp_path, "x") as journal:
        async with httpx.AsyncClient(base_url="http://gateway", transport=httpx.MockTransport(answer)) as http:
            asking = caller(http, journal, parallel=3)
            await asyncio.gather(*(asking.ask(RolloutCall(f"n{i}", "a", CALL.messages, {})) for i in range(12)))
    assert most == 3
