"""Who decides, changed at one replica and followed by the other: promoted, pinned, rolled back, without a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from gateway.database.database import transaction
from gateway.policies.registry import champion_of
from tests.harness.gateway import config, serving
from tests.harness.scenario import HELLO, playing, turn
from tests.harness.upstream import FaultUpstream

WITHIN_S = 5.0


async def decides(http: httpx.AsyncClient) -> str:
    """The policy that would decide a turn now, by a dry run."""
    answer = await http.post("/v1/route", json={"model": "auto", "messages": HELLO})
    policy: str = answer.json()["policy"]
    return policy


async def follows(http: httpx.AsyncClient, policy_id: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await decides(http) != policy_id:  # noqa: ASYNC110 - it is on the other side of a socket
            await asyncio.sleep(0.05)


@pytest.mark.faults
async def test_a_rollback_at_one_replica_reaches_the_other_within_five_seconds(
    tmp_path: Path, postgres_url: str
) -> None:
    async with FaultUpstream() as provider:
        paths = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            paths.append(config(tmp_path / name, provider.url, database_url=postgres_url))
        async with serving(paths[0]) as one, serving(paths[1]) as two, one.http() as here, two.http() as there:
            for policy_id in ("rule:cheapest", "rule:strongest"):
                assert (await here.post(f"/admin/policies/{policy_id}/promote")).status_code == 200
                await follows(here, policy_id)
                await follows(there, policy_id)
            assert (await here.post("/admin/policies/rollback")).json()["champion"]["policy_id"] == "rule:cheapest"
            await follows(here, "rule:cheapest")
            await follows(there, "rule:cheapest")


async def test_a_rule_is_pinned_shown_and_unpinned_over_http(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        pinned = (await http.post("/admin/policies/rule:cheapest/pin")).json()
        assert (pinned["stage"], pinned["pinned"]) == ("champion", True)
        assert (await turn(http, "auto")).headers["x-seqroute-policy"] == "rule:cheapest"
        shown = (await http.get("/admin/policies/rule:cheapest")).json()
        assert [event["action"] for event in shown["events"]] == ["pin", "promote"]
        assert shown["trial"] is None
        assert not (await http.post("/admin/policies/rule:cheapest/unpin")).json()["pinned"]
        assert (await http.get("/admin/policies/nope")).status_code == 404
        assert (await http.post("/admin/policies/rule:cheapest/rollback")).json() == {"champion": None}
        with transaction(play.url, read_only=True) as connection:
            assert champion_of(connection) is None


async def test_a_canary_s_sessions_stay_with_it_and_its_trial_is_shown(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, policy={"canary_fraction": 0.5}) as play, play.gateway.http() as http:
        await http.post("/admin/policies/rule:strongest/canary")
        met: dict[str, set[str]] = {}
        for number in range(24):
            name = f"s{number % 8}"
            answer = await turn(http, "auto", headers={"X-Session-Id": name})
            met.setdefault(name, set()).add(answer.headers["x-seqroute-policy"])
        assert all(len(policies) == 1 for policies in met.values())
        assert set.union(*met.values()) == {"rule:strongest", "pretrained-1"}
        trial = (await http.get("/admin/policies/rule:strongest")).json()["trial"]
        sessions = sum(policies == {"rule:strongest"} for policies in met.values())
        assert trial["outcome"] == "on trial"
        assert trial["reasons"] == [f"not enough data: {sessions} of at least 30 sessions"]
