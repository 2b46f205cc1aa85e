"""`X-Route-Max-USD`: one request never costs more than its client said, in any dialect."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.routes import ROUTES, ask, error_of
from tests.harness.scenario import playing, seqroute, session, turn

REFUSED = {"/v1/messages": (402, "billing_error"), "/v1/responses": (400, "insufficient_quota")}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_held_within_its_own_limit_and_clamped_to_it(
    tmp_path: Path, database_url: str, stream: bool
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        for route in ROUTES:
            longest = {"max_output_tokens" if route == "/v1/responses" else "max_tokens": 4_000}
            free = await ask(http, route, session("s"), stream=stream, **longest)
            limit = f"{float(seqroute(free, 'reserved-usd')) * 0.6:.9f}"
            limited = await ask(http, route, session("s") | {"X-Route-Max-USD": limit}, stream=stream, **longest)
            assert limited.status_code == 200
            assert float(seqroute(limited, "reserved-usd")) <= float(limit) < float(seqroute(free, "reserved-usd"))
            assert int(seqroute(limited, "max-tokens")) < 4_000
            if not stream:
                assert float(seqroute(limited, "cost-usd")) <= float(limit)


async def test_a_limit_that_no_model_fits_is_refused_before_any_call(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        for route in ROUTES:
            refused = await ask(http, route, session("s") | {"X-Route-Max-USD": "0.000000001"}, model="auto")
            error = error_of(refused)
            assert (refused.status_code, error["type"]) == REFUSED.get(route, (402, "insufficient_quota"))
            assert "X-Route-Max-USD" in error["message"]
            assert "the cheapest capable model needs" in error["message"]
            if route != "/v1/messages":
                assert error["code"] == "request_budget_exceeded"
            for wrong in ("-1", "nan", "ten", "1e400", ""):
                answer = await ask(http, route, {"X-Route-Max-USD": wrong})
                assert answer.status_code == 400
                assert "X-Route-Max-USD" in error_of(answer)["message"]
        assert play.provider.bill == []


async def test_a_limit_above_the_answer_s_worst_case_shortens_nothing(tmp_path: Path, sqlite_url: str) -> None:
    """A quarter of the session is a turn's share; the request's own limit is spent on this request alone."""
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        free = await turn(http, headers=session("s"), max_tokens=2_000)
        limit = f"{float(seqroute(free, 'reserved-usd')) * 1.01:.9f}"
        limited = await turn(http, headers=session("s") | {"X-Route-Max-USD": limit}, max_tokens=2_000)
        assert "x-seqroute-max-tokens" not in limited.headers
        assert seqroute(limited, "reserved-usd") == seqroute(free, "reserved-usd")


async def test_a_limit_above_what_the_session_has_changes_nothing(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        poor = session("s", budget_usd="0.00001") | {"X-Route-Max-USD": "5"}
        refused = await turn(http, headers=poor)
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "session_budget_exceeded")


async def test_a_server_that_ends_no_answer_by_itself_never_exceeds_a_budget(tmp_path: Path, sqlite_url: str) -> None:
    """It writes 20,000 tokens, five times its `max_output_tokens`, unless it is told a limit."""
    async with playing(tmp_path, sqlite_url, modes={"small": "ok:tokens=20000"}) as play, play.gateway.http() as http:
        await turn(http, headers=session("s", budget_usd="0.034"))
        crowd = await asyncio.gather(*(turn(http, headers=session("s")) for _ in range(20)))
        assert {answer.status_code for answer in crowd} <= {200, 402, 429}
        for n in range(20):
            await turn(http, headers=session("s"), messages=[{"role": "user", "content": f"again {n}"}])
        spent = (await http.get("/v1/sessions/s")).json()
        assert 0.5 * 0.034 < float(spent["spent_usd"]) <= 0.034
        for stream in (False, True):
            limited = await turn(http, headers=session("t") | {"X-Route-Max-USD": "0.009"}, stream=stream)
            assert limited.status_code == 200
        twice = (await http.get("/v1/sessions/t")).json()
        assert 0 < float(twice["spent_usd"]) <= 2 * 0.009
