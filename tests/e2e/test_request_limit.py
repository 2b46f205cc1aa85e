"""`X-Route-Max-USD`: one request never costs more than its client said."""

from __future__ import annotations

from pathlib import Path

from tests.harness.scenario import playing, seqroute, session, turn


async def test_a_request_is_held_within_its_own_limit_and_clamped_to_it(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        free = await turn(http, headers=session("s"))
        limit = f"{float(seqroute(free, 'reserved-usd')) * 0.6:.9f}"
        limited = await turn(http, headers=session("s") | {"X-Route-Max-USD": limit})
        assert limited.status_code == 200
        assert float(seqroute(limited, "reserved-usd")) <= float(limit) < float(seqroute(free, "reserved-usd"))
        assert float(seqroute(limited, "cost-usd")) <= float(limit)


async def test_a_limit_that_no_model_fits_is_refused_before_any_call(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        refused = await turn(http, headers=session("s") | {"X-Route-Max-USD": "0.000000001"})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (402, "request_budget_exceeded")
        assert "X-Route-Max-USD" in error["message"]
        assert play.provider.bill == []
        for wrong in ("-1", "nan", "ten", "1e400"):
            answer = await turn(http, headers={"X-Route-Max-USD": wrong})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Route-Max-USD")
