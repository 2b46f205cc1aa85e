"""Balanced groups over HTTP: strategies, sessions that stay, limits of deployments and the answer when all are full."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.database.tables import decisions, holds
from tests.harness.gateway import config, serving
from tests.harness.scenario import Play, session, turn
from tests.harness.upstream import FaultUpstream

COPIES = ("copy-a", "copy-b")


@contextlib.asynccontextmanager
async def group(
    folder: Path, url: str, router: Mapping[str, Any], *, mode: str = "ok:tokens=5", **of: Mapping[str, Any]
) -> AsyncIterator[tuple[Play, httpx.AsyncClient]]:
    """A gateway whose `small` is two deployments; `of` are further litellm_params by `a` and `b`."""
    async with FaultUpstream(modes=dict.fromkeys(COPIES, mode)) as provider:
        path = config(folder, provider.url, database_url=url, router=router)
        tree = yaml.safe_load(path.read_text())
        small, big = tree["model_list"]
        tree["model_list"] = [
            small | {"litellm_params": small["litellm_params"] | {"model": f"openai/{name}"} | dict(of.get(letter, {}))}
            for letter, name in zip("ab", COPIES, strict=True)
        ] + [big]  # fmt: skip
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway, gateway.http() as http:
            play = Play(gateway, provider, url, path)
            yield play, http
            await gateway.settled()
            await gateway.audit()


def calls(play: Play) -> Counter[str]:
    return Counter(received.body["model"] for received in play.provider.received)


async def together(play: Play, http: httpx.AsyncClient, turns: int, served: int) -> list[httpx.Response]:
    """Turns at once, each in a session of its own; those that are served get their answers when all have come."""
    asking = [asyncio.create_task(turn(http, headers=session(f"s{n}"), max_tokens=100)) for n in range(turns)]
    async with asyncio.timeout(60):
        while calls(play).total() + sum(task.done() for task in asking) < turns:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
    assert calls(play).total() == served
    play.provider.gate.set()
    return list(await asyncio.gather(*asking))


async def test_least_busy_spreads_calls_that_come_together(tmp_path: Path, sqlite_url: str) -> None:
    router = {"routing_strategy": "least-busy"}
    async with group(tmp_path, sqlite_url, router, mode="ok:tokens=5,gate=1") as (play, http):
        answers = await together(play, http, 8, served=8)
        assert {answer.status_code for answer in answers} == {200}
        assert calls(play) == {"copy-a": 4, "copy-b": 4}


async def test_a_session_stays_on_its_deployment_whatever_the_strategy_says(tmp_path: Path, sqlite_url: str) -> None:
    router = {"routing_strategy": "usage-based-routing-v2"}
    async with group(tmp_path, sqlite_url, router) as (play, http):
        for n in range(6):
            await turn(http, headers=session("stays"), stream=bool(n % 2))
        assert sorted(calls(play).values()) == [6]
        first = set(calls(play))
        await turn(http, headers=session("another"))
        assert set(calls(play)) - first
        await turn(http, headers=session("stays"))
        assert play.provider.received[-1].body["model"] in first


async def test_a_session_moves_when_its_deployment_fails_and_stays_where_it_went(
    tmp_path: Path, sqlite_url: str
) -> None:
    router = {"routing_strategy": "least-busy", "num_retries": 1, "allowed_fails": 100}
    async with group(tmp_path, sqlite_url, router) as (play, http):
        await turn(http, headers=session("s"))
        (first,) = calls(play)
        play.provider.modes[first] = "e503"
        assert (await turn(http, headers=session("s"))).status_code == 200
        play.provider.modes[first] = "ok:tokens=5"
        assert (await turn(http, headers=session("s"))).status_code == 200
        assert play.provider.received[-1].body["model"] != first


@pytest.mark.parametrize(
    ("limits", "served"),
    [({"rpm": 2}, 4), ({"tpm": 120}, 2), ({"max_parallel_requests": 1}, 2)],
    ids=["rpm", "tpm", "parallel"],
)
async def test_full_deployments_are_passed_over_and_then_the_answer_is_429(
    tmp_path: Path, sqlite_url: str, limits: dict[str, Any], served: int
) -> None:
    async with group(tmp_path, sqlite_url, {}, mode="ok:tokens=5,gate=1", a=limits, b=limits) as (play, http):
        answers = await together(play, http, 8, served)
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses == {200: served, 429: 8 - served}
        assert calls(play) == {"copy-a": served // 2, "copy-b": served // 2}
        for refused in (answer for answer in answers if answer.status_code == 429):
            assert 1 <= int(refused.headers["retry-after"]) <= 61
            assert refused.json()["error"]["code"] == "rate_limited"
        await play.gateway.settled()
        assert Counter(row["state"] for row in play.rows(holds)) == {"settled": served}
        assert len(play.rows(decisions)) == served


async def test_a_full_model_is_passed_over_by_auto_and_has_its_fallback_when_named(
    tmp_path: Path, sqlite_url: str
) -> None:
    router = {"fallbacks": [{"small": ["big"]}]}
    full = {"rpm": 1}
    async with group(tmp_path, sqlite_url, router, a=full, b=full) as (_, http):
        # Together: some see room while they prepare, and lose it to another turn before they reserve.
        named = await asyncio.gather(*(turn(http, headers=session(f"s{n}")) for n in range(8)))
        assert Counter((a.headers["x-seqroute-model"], a.headers["x-seqroute-reason"]) for a in named) == {
            ("small", "pinned"): 2, ("big", "fallback"): 6,
        }  # fmt: skip
        chosen = [await turn(http, "auto", headers=session(f"t{n}"), stream=bool(n % 2)) for n in range(4)]
        assert {answer.headers["x-seqroute-model"] for answer in chosen} == {"big"}


async def test_a_place_is_free_again_after_every_end_of_a_call(tmp_path: Path, sqlite_url: str) -> None:
    """Success, failure, a stream to its end and a client that leaves."""
    router = {"default_max_parallel_requests": 1, "allowed_fails": 100}
    async with group(tmp_path, sqlite_url, router, b={"weight": 0}) as (play, http):
        body = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        for mode, status in (("ok:tokens=5", 200), ("e503", 502), ("ok:tokens=5", 200)):
            play.provider.modes |= dict.fromkeys(COPIES, mode)
            for stream in (False, True):
                answers = [await turn(http, headers=session(f"{mode[:2]}{n}{stream}"), stream=stream) for n in range(3)]
                assert {answer.status_code for answer in answers} == {status}
        play.provider.modes |= dict.fromkeys(COPIES, "ok:tokens=400,delay=0.02")
        for _ in range(3):
            async with http.stream("POST", "/v1/chat/completions", json=body) as leaving:
                assert leaving.status_code == 200
                await anext(leaving.aiter_bytes())
            await play.gateway.settled()
