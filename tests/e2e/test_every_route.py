"""Every route that spends, whole and streamed: one chain of holds, settled to the provider's bill."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from gateway.database.tables import decisions, holds
from tests.harness.money import until
from tests.harness.spending import BODIES, NANOUSD_IN, NANOUSD_OUT, NANOUSD_SEARCH, OTHERS, WAYS, Routes, routes

pytestmark = pytest.mark.asyncio(loop_scope="module")

FREE = {
    "/feedback", "/forecast", "/messages/count_tokens", "/responses/compact", "/responses/{response_id}/cancel",
    "/route", "/router/outcomes", "/sessions/{session_id}", "/sessions/{session_id}/charges", "/tools/check_budget",
}  # fmt: skip
"""Posts that call no provider. Charges spend money elsewhere: tests/e2e/test_charges.py."""
SERVERS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "same deployment": {"retries": 1},
    "other deployment": {"retries": 1, "copies": 2},
    "fallback": {"fallbacks": True},
}
"""One gateway of each configuration serves all cases."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mapping[str, Routes]]:
    async with contextlib.AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(routes(tmp_path_factory.mktemp("gateway"), **options))
            for name, options in SERVERS.items()
        }


async def test_every_route_that_takes_a_post_is_walked_here_or_spends_nothing(servers: Mapping[str, Routes]) -> None:
    """A new route that spends has to be added to the bodies of the harness."""
    async with servers["plain"].case() as case:
        paths = (await case.http.get("/openapi.json")).json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    turns = {path for path in posts if not path.removeprefix("/v1").startswith(("/admin/", "/ui"))}
    assert turns == {prefix + path for prefix in ("/v1", "") for path in {path for path, _ in BODIES.values()} | FREE}


@pytest.mark.parametrize(("way", "stream"), WAYS)
async def test_an_answer_is_one_hold_settled_to_the_bill(servers: Mapping[str, Routes], way: str, stream: bool) -> None:
    async with servers["plain"].case("ok") as case:
        answer = await case.post(way, stream, prefix="" if stream else "/v1")
        assert answer.status_code == 200
        assert await case.chain(["settled"]) == case.bill_nanousd > 0


@pytest.mark.parametrize(("way", "stream"), WAYS)
@pytest.mark.parametrize("again", ["same deployment", "other deployment"])
async def test_a_second_attempt_is_a_second_hold_of_the_same_turn(
    servers: Mapping[str, Routes], way: str, stream: bool, again: str
) -> None:
    """The same deployment again, or the other one of a balanced group."""
    async with servers[again].case("e500", "ok") as case:
        answer = await case.post(way, stream)
        assert answer.status_code == 200
        assert await case.chain(["released", "settled"]) == case.bill_nanousd > 0
        assert len({attempt.model for attempt in case.attempts}) == (1 if again == "same deployment" else 2)


@pytest.mark.parametrize(("way", "stream"), WAYS)
async def test_a_fallback_is_a_second_hold_of_the_same_turn(
    servers: Mapping[str, Routes], way: str, stream: bool
) -> None:
    async with servers["fallback"].case("e500", "ok") as case:
        answer = await case.post(way, stream)
        assert answer.status_code == 200
        assert await case.chain(["released", "settled"]) == case.bill_nanousd > 0
        (decision,) = case.rows(decisions)
        assert (decision["model"], decision["reason"]) == (OTHERS[BODIES[way][1]["model"]], "fallback")
        assert answer.headers["x-seqroute-reason"] == "fallback"


@pytest.mark.parametrize(("way", "stream"), WAYS)
async def test_a_failure_is_one_hold_given_back(servers: Mapping[str, Routes], way: str, stream: bool) -> None:
    async with servers["plain"].case("e503") as case:
        answer = await case.post(way, stream)
        assert answer.status_code >= 500
        assert [(row["state"], row["posted_nanousd"] or 0) for row in await case.resolved()] == [("released", 0)]
        assert case.bill_nanousd == 0


@pytest.mark.parametrize("way", [way for way, stream in WAYS if stream])
async def test_a_client_that_leaves_a_stream_pays_no_less_than_what_came(
    servers: Mapping[str, Routes], way: str
) -> None:
    async with servers["plain"].case("ok:tokens=400,delay=0.02") as case:
        path, body = BODIES[way]
        async with case.http.stream("POST", f"/v1{path}", json={**body, "stream": True}) as leaving:
            async for _ in leaving.aiter_bytes():
                break
        posted = await case.chain(["settled"])
        assert len(case.attempts) == 1
        await until(lambda: case.attempts[0].cut, seconds=10)  # the provider may hear of it after the bill
        # Without a report, a hosted tool counts as called once: at most what was held for it.
        held = sum(row["amount_nanousd"] for row in case.rows(holds))
        assert 0 < posted < (held if "hosted" in way else 400 * NANOUSD_OUT)
        assert "hosted" not in way or posted >= NANOUSD_SEARCH


@pytest.mark.parametrize(("way", "stream"), WAYS)
async def test_a_client_that_leaves_before_its_answer_is_one_hold_that_is_resolved(
    servers: Mapping[str, Routes], way: str, stream: bool
) -> None:
    async with servers["plain"].case("ok:first=60") as case:
        leaving = asyncio.create_task(case.post(way, stream))
        async with asyncio.timeout(20):
            while not case.attempts:  # noqa: ASYNC110 - the provider has no event for it
                await asyncio.sleep(0.01)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        posted = await case.chain(["settled"])
        (attempt,) = case.attempts
        await until(lambda: case.attempts[0].cut, seconds=10)  # the provider may hear of it after the bill
        assert posted >= attempt.prompt_tokens * NANOUSD_IN
