"""`POST /v1/sessions/{id}/charges`: what an agent spends elsewhere counts under the same ceiling, once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.database.tables import holds, ledger_entries
from tests.harness.gateway import Served
from tests.harness.scenario import Play, playing, session, turn


async def opened(http: httpx.AsyncClient, name: str, budget_usd: str = "0.1") -> None:
    answer = await http.post(f"/v1/sessions/{name}", json={"budget_usd": budget_usd})
    assert answer.status_code == 200


async def charge(
    http: httpx.AsyncClient, session_id: str, headers: Mapping[str, str] | None = None, /, **fields: Any
) -> Any:
    return await http.post(f"/v1/sessions/{session_id}/charges", json=fields, headers=dict(headers or {}))


async def left(http: httpx.AsyncClient, name: str) -> tuple[int, int, int]:
    """Reserved, spent and remaining nano-USD of a session."""
    found = (await http.get(f"/v1/sessions/{name}")).json()
    return found["reserved_nano_usd"], found["spent_nano_usd"], found["remaining_nano_usd"]


async def test_reserve_settle_and_release_move_the_session_s_money(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, audited=False) as play, play.gateway.http() as http:
        await opened(http, "s")
        held = await charge(http, "s", action="reserve", charge_id="c1", amount_usd="0.04", name="web-search")
        assert (held.status_code, held.json()["state"], held.json()["name"]) == (200, "reserved", "web-search")
        assert await left(http, "s") == (40_000_000, 0, 60_000_000)
        settled = await charge(http, "s", action="settle", charge_id="c1", amount_usd="0.03")
        assert (settled.json()["state"], settled.json()["spent_usd"]) == ("settled", "0.03")
        assert settled.json()["session_remaining_usd"] == "0.07"
        await charge(http, "s", action="reserve", charge_id="c2", amount_usd=0.05)
        released = await charge(http, "s", action="release", charge_id="c2")
        assert released.json()["state"] == "released"
        at_once = await charge(http, "s", charge_id="c3", amount_usd="0.0099999999999")  # rounded up: it is spent
        assert (at_once.json()["state"], at_once.json()["spent_usd"]) == ("settled", "0.01")
        assert await left(http, "s") == (0, 40_000_000, 60_000_000)
        kinds = [row["kind"] for row in play.rows(ledger_entries, session_id="s") if row["hold_id"]]
        assert kinds == ["reserve", "settle", "reserve", "release", "reserve", "settle"]
        assert (await turn(http, headers=session("s"))).status_code == 200
        found = (await http.get("/v1/sessions/s")).json()
        assert (found["turns"], found["spent_nano_usd"] > 40_000_000) == (1, True)


async def test_a_repeated_request_changes_nothing(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, audited=False) as play, play.gateway.http() as http:
        await opened(http, "s")
        for _ in range(2):
            assert (await charge(http, "s", {"Idempotency-Key": "k"}, amount_usd="0.02")).json()["charge_id"] == "k"
        crowd = [charge(http, "s", action="reserve", charge_id="c", amount_usd="0.05") for _ in range(8)]
        assert {answer.status_code for answer in await asyncio.gather(*crowd)} == {200}
        assert await left(http, "s") == (50_000_000, 20_000_000, 30_000_000)
        crowd = [charge(http, "s", action="settle", charge_id="c", amount_usd="0.04") for _ in range(8)]
        assert {answer.json()["state"] for answer in await asyncio.gather(*crowd)} == {"settled"}
        assert await left(http, "s") == (0, 60_000_000, 40_000_000)
        for changed in ({"amount_usd": "0.01"}, {"amount_usd": "0.05", "name": "another"}):
            other = await charge(http, "s", action="reserve", charge_id="c", **changed)
            assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
        for fields in ({"action": "settle", "amount_usd": "0.01"}, {"action": "release"}):
            again = await charge(http, "s", charge_id="c", **fields)
            assert (again.status_code, again.json()["error"]["code"]) == (409, "charge_resolved")
        await charge(http, "s", action="reserve", charge_id="r", amount_usd="0.01")
        for _ in range(2):
            assert (await charge(http, "s", action="release", charge_id="r")).json()["state"] == "released"
        gone = await charge(http, "s", action="settle", charge_id="r")
        assert (gone.status_code, gone.json()["error"]["code"]) == (409, "charge_resolved")


async def test_charges_and_turns_together_never_pass_the_ceiling(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, audited=False) as play, play.gateway.http() as http:
        await opened(http, "s", "0.01")
        crowd = [charge(http, "s", charge_id=f"c{n}", amount_usd="0.0007") for n in range(20)]
        turns = [turn(http, headers=session("s"), max_tokens=100) for _ in range(10)]
        answers = await asyncio.gather(*crowd, *turns)
        assert {answer.status_code for answer in answers} <= {200, 402, 429}
        assert any(answer.status_code == 402 for answer in answers[:20])
        reserved, spent, remaining = await left(http, "s")
        assert (reserved, spent + remaining) == (0, 10_000_000)
        assert remaining >= 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"amount_usd": "-0.01"}, "amount_usd"),
        ({"amount_usd": -1}, "amount_usd"),
        ({"amount_usd": "NaN"}, "amount_usd"),
        ({"amount_usd": "many"}, "amount_usd"),
        ({"amount_usd": True}, "amount_usd"),
        ({"amount_usd": [1]}, "amount_usd"),
        ({"amount_usd": "1e400"}, "amount_usd"),
        ({}, "amount_usd"),
        ({"amount_usd": "0.01", "action": "steal"}, "action"),
        ({"amount_usd": "0.01", "charge_id": "a b"}, "charge_id"),
        ({"amount_usd": "0.01", "charge_id": 7}, "charge_id"),
        ({"amount_usd": "0.01", "name": "a\nb"}, "name"),
        ({"amount_usd": "0.01", "expires_in_seconds": 0}, "expires_in_seconds"),
        ({"action": "settle"}, "charge_id"),
        ({"action": "release", "charge_id": "c", "amount_usd": "0.01"}, "amount_usd"),
        ({"amount_usd": "0.01", "amount": 1}, "amount"),
    ],
)
async def test_a_malformed_charge_is_400_with_its_field(
    tmp_path: Path, sqlite_url: str, fields: dict[str, Any], param: str
) -> None:
    async with playing(tmp_path, sqlite_url, audited=False) as play, play.gateway.http() as http:
        await opened(http, "s")
        answer = await charge(http, "s", **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert await left(http, "s") == (0, 0, 100_000_000)


async def test_too_much_is_402_and_an_unknown_or_foreign_session_404(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, audited=False) as play, play.gateway.http() as http:
        await opened(http, "s")
        much = await charge(http, "s", amount_usd="0.11")
        error = much.json()["error"]
        assert (much.status_code, error["code"], error["remaining_usd"]) == (402, "session_budget_exceeded", "0.1")
        assert error["message"].endswith("; raise it with X-Session-Budget-USD or POST /v1/sessions/s")
        await charge(http, "s", action="reserve", charge_id="c", amount_usd="0.09")
        assert (await charge(http, "s", amount_usd="0.02")).status_code == 402
        above = await charge(http, "s", action="settle", charge_id="c", amount_usd="0.095")
        assert (above.status_code, above.json()["error"]["param"]) == (400, "amount_usd")
        assert (await charge(http, "s", action="settle", charge_id="unknown")).status_code == 404
        assert (await charge(http, "nowhere", amount_usd="0.01")).status_code == 404
        stranger = await _other_tenant(play.gateway, http)
        assert (await charge(http, "s", stranger, amount_usd="0.01")).status_code == 404
        assert (await charge(http, "s", stranger, action="settle", charge_id="c")).status_code == 404
        poor = await http.post("/v1/sessions/theirs", json={"budget_usd": "0.2"}, headers=stranger)
        assert poor.status_code == 200
        tenant = await charge(http, "theirs", stranger, amount_usd="0.06")
        assert (tenant.status_code, tenant.json()["error"]["code"]) == (402, "tenant_budget_exceeded")


async def test_a_closed_session_takes_no_charges(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, audited=False) as play, play.gateway.http() as http:
        await opened(http, "s")
        await charge(http, "s", action="reserve", charge_id="before", amount_usd="0.01")
        await http.post("/v1/sessions/s", json={"state": "closed"})
        refused = await charge(http, "s", amount_usd="0.01")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Session-Id")
        # What was reserved before is settled all the same.
        assert (await charge(http, "s", action="settle", charge_id="before")).json()["state"] == "settled"


async def test_a_charge_that_expires_gives_its_money_back_and_a_late_settle_is_posted(
    tmp_path: Path, database_url: str
) -> None:
    general = {"sweep_seconds": 0.2, "hold_ttl_seconds": 2}
    async with playing(tmp_path, database_url, general=general, audited=False) as play, play.gateway.http() as http:
        await opened(http, "s")
        await charge(http, "s", action="reserve", charge_id="c", amount_usd="0.04", expires_in_seconds=1)
        await expired(play, "s")
        assert await left(http, "s") == (0, 0, 100_000_000)
        assert (await charge(http, "s", action="release", charge_id="c")).json()["state"] == "expired"
        for _ in range(2):
            late = await charge(http, "s", action="settle", charge_id="c", amount_usd="0.03")
            assert (late.json()["state"], late.json()["spent_usd"]) == ("settled", "0.03")
        assert await left(http, "s") == (0, 30_000_000, 70_000_000)
        kinds = [row["kind"] for row in play.rows(ledger_entries, session_id="s") if row["hold_id"]]
        assert kinds == ["reserve", "expire", "late_post"]


async def expired(play: Play, name: str) -> None:
    """Wait until the sweeper resolved the session's holds."""
    for _ in range(200):
        if all(row["state"] != "open" for row in play.rows(holds, session_id=name)):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the hold never expired")


async def _other_tenant(gateway: Served, http: httpx.AsyncClient) -> dict[str, str]:
    """The headers of a key of another tenant with 0.05 USD."""
    made = await http.post("/v1/admin/tenants", json={"name": "other", "budget_usd": "0.05"})
    key = await http.post("/v1/admin/keys", json={"tenant_id": made.json()["id"]})
    return {"Authorization": f"Bearer {key.json()['key']}"}
