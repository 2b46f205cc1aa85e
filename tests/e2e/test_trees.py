"""`X-Parent-Session-Id`: sub-agents spend their parent's money, over HTTP, in every dialect and on three replicas."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import sqlalchemy as sa

from gateway.clock import time_ordered_ids
from gateway.database import tables
from gateway.database.database import transaction
from gateway.webhooks import crossings
from tests.e2e.test_dashboard import signed_in
from tests.harness.gateway import config, serving
from tests.harness.routes import ROUTES, ask, error_of
from tests.harness.scenario import HELLO, playing, seqroute, session, turn
from tests.harness.upstream import FaultUpstream


def child(name: str, parent: str, **more: str) -> dict[str, str]:
    return session(name, **more) | {"X-Parent-Session-Id": parent}


async def show(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"/v1/sessions/{name}")).json()
    return found


async def test_one_policy_serves_a_whole_tree(tmp_path: Path, database_url: str) -> None:
    """Half of the trees are a canary's; the decisions tell the topmost session of each."""
    trees = ["oak", "elm", "yew", "fir"]
    async with playing(tmp_path, database_url, policy={"mode": "canary", "canary_fraction": 0.5}) as play:
        async with play.gateway.http() as http:
            for tree in trees:
                await turn(http, "auto", headers=session(tree, budget_usd="0.5"))
                for number in range(4):
                    await turn(http, "auto", headers=child(f"{tree}-{number}", tree))
                    await turn(http, "auto", headers=child(f"{tree}-{number}-below", f"{tree}-{number}"))
                    await turn(http, "auto", headers=session(f"{tree}-{number}-below"))
        await play.gateway.settled()
        d = tables.decisions.c
        with transaction(database_url, read_only=True) as connection:
            found = connection.execute(sa.select(d.session_id, d.root_session_id, d.policy_id)).all()
    assert {root for name, root, _ in found if name in trees} == {None}
    assert all(root == name.partition("-")[0] for name, root, _ in found if name not in trees)
    served = {tree: {policy for name, _, policy in found if name.partition("-")[0] == tree} for tree in trees}
    assert all(len(policies) == 1 for policies in served.values())
    assert len(set.union(*served.values())) == 2


async def test_a_tree_of_agents_spends_one_budget_and_says_who_spent_what(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.5"))
        for number, route in enumerate(ROUTES):
            answer = await ask(http, route, child(f"agent-{number}", "root"))
            assert answer.status_code == 200
            below = await ask(http, route, child(f"tool-{number}", f"agent-{number}"), stream=True)
            assert below.status_code == 200
        await play.gateway.settled()
        root = await show(http, "root")
        agents = {node["session_id"]: node for node in root["children"]}
        assert sorted(agents) == [f"agent-{number}" for number in range(len(ROUTES))]
        assert root["parent_session_id"] is None
        for number in range(len(ROUTES)):
            agent = agents[f"agent-{number}"]
            (tool,) = agent["children"]
            assert tool["session_id"] == f"tool-{number}"
            assert agent["spent_nano_usd"] == agent["own_spent_nano_usd"] + tool["spent_nano_usd"]
            assert (agent["turns"], tool["turns"]) == (1, 1)
        own = root["own_spent_nano_usd"]
        assert root["tree_spent_nano_usd"] == own + sum(agent["spent_nano_usd"] for agent in agents.values())
        assert root["tree_spent_nano_usd"] == root["spent_nano_usd"] > 9 * 10_000
        leaf = await show(http, "tool-0")
        assert (leaf["parent_session_id"], leaf["children"]) == ("agent-0", [])
        assert leaf["remaining_nano_usd"] == root["remaining_nano_usd"] == leaf["above_remaining_nano_usd"]
        assert leaf["own_remaining_nano_usd"] == leaf["budget_nano_usd"] - leaf["spent_nano_usd"]
        assert root["above_remaining_nano_usd"] is None
        listed = {row["session_id"]: row for row in (await http.get("/v1/sessions")).json()["data"]}
        for name in ("tool-0", "agent-1", "root"):
            shown = await show(http, name)
            assert {field: shown[field] for field in listed[name]} == listed[name]
        async with signed_in(play, play.gateway.master_key) as seen:
            page = (await seen.get("/ui/sessions/default/root")).text
            for number in range(len(ROUTES)):
                assert f"/ui/sessions/default/agent-{number}" in page
                assert f'└ <a href="/ui/sessions/default/tool-{number}"' in page
            assert "/ui/sessions/default/agent-0" in (await seen.get("/ui/sessions/default/tool-0")).text


async def test_a_child_s_new_budget_is_clamped_and_told(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.05"))
        await turn(http, headers=child("agent", "root"))
        raised = (await http.post("/v1/sessions/agent", json={"budget_usd": "5"})).json()
        shown = await show(http, "agent")
        assert (raised["budget_clamped"], raised["asked_budget_usd"]) == (True, "5")
        assert raised["budget_nano_usd"] == shown["spent_nano_usd"] + shown["above_remaining_nano_usd"]
        within = (await http.post("/v1/sessions/agent", json={"budget_usd": "0.01"})).json()
        assert "budget_clamped" not in within


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_raised_budget_is_at_once_that_of_every_session_below_without_a_limit(
    tmp_path: Path, database_url: str, by_header: bool
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.05"))
        await turn(http, headers=child("agent", "root"))
        await turn(http, headers=child("tool", "agent"))
        await turn(http, headers=child("limited", "root", budget_usd="0.02"))
        await turn(http, headers=child("below-limited", "limited"))
        if by_header:
            await turn(http, headers=session("root", budget_usd="0.5"))
            await play.gateway.settled()
        else:
            await http.post("/v1/sessions/root", json={"budget_usd": "0.5"})
        shown = {name: await show(http, name) for name in ("agent", "tool", "limited", "below-limited")}
        assert [row["budget_usd"] for row in shown.values()] == ["0.5", "0.5", "0.02", "0.02"]
        # The ledger lets the deepest spend it, although the session between has had no turn since.
        charges, held = "/v1/sessions/tool/charges", {"charge_id": "c", "action": "reserve", "amount_usd": "0.4"}
        assert (await http.post(charges, json=held)).status_code == 200
        assert (await http.post(charges, json={"charge_id": "c", "action": "release"})).status_code == 200
        await play.gateway.audit()


async def test_a_session_that_was_opened_before_its_first_turn_can_have_a_parent(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:

        async def opened(name: str, parent: str, **fields: str) -> httpx.Response:
            return await http.post(f"/v1/sessions/{name}", json=fields, headers={"X-Parent-Session-Id": parent})

        await turn(http, headers=session("root", budget_usd="0.05"))
        first = (await opened("agent", "root")).json()
        assert (first["parent_session_id"], first["budget_usd"]) == ("root", "0.05")
        limited = (await opened("tool", "agent", budget_usd="0.01")).json()
        assert (limited["parent_session_id"], limited["budget_usd"]) == ("agent", "0.01")
        clamped = (await opened("greedy", "agent", budget_usd="5")).json()
        assert (clamped["budget_clamped"], clamped["budget_nano_usd"]) == (True, clamped["above_remaining_nano_usd"])
        assert (await opened("tool", "agent", budget_usd="0.02")).json()["budget_usd"] == "0.02"
        for name, parent, status in (
            ("tool", "root", 400), ("root", "tool", 400), ("x", "x", 400), ("y", "nobody", 404), ("z", "a b", 400)
        ):  # fmt: skip
            refused = await opened(name, parent)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, "X-Parent-Session-Id")
            assert name in ("tool", "root") or (await http.get(f"/v1/sessions/{name}")).status_code == 404
        # Opened without a parent, it gets one with its first turn, and none later.
        await http.post("/v1/sessions/early", json={"budget_usd": "0.02"})
        asked = {"model": "auto", "messages": HELLO}
        assert (await http.post("/v1/route", json=asked, headers=child("early", "agent"))).status_code == 200
        assert (await show(http, "early"))["parent_session_id"] is None
        served = await turn(http, headers=child("early", "agent"))
        assert served.status_code == 200
        early, root = await show(http, "early"), await show(http, "root")
        assert (early["parent_session_id"], early["budget_usd"]) == ("agent", "0.02")
        assert root["spent_nano_usd"] == root["own_spent_nano_usd"] + early["spent_nano_usd"]
        await http.post("/v1/sessions/alone", json={"budget_usd": "0.02"})
        assert (await turn(http, headers=session("alone"))).status_code == 200
        assert (await turn(http, headers=child("alone", "agent"))).status_code == 400
        await play.gateway.audit()


async def test_a_child_with_a_share_leaves_the_rest_of_its_parent_s_budget_to_its_siblings(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.004"))
        share = {"X-Session-Budget-Share": "25%"}
        answers = [await turn(http, headers=child("greedy", "root") | share, max_tokens=100) for _ in range(80)]
        assert {answer.status_code for answer in answers} == {200, 402}
        greedy = await show(http, "greedy")
        assert greedy["budget_nano_usd"] == 1_000_000
        assert 0 < greedy["spent_nano_usd"] <= 1_000_000
        for name in ("first", "second"):
            answer = await turn(http, headers=child(name, "root") | share, max_tokens=100)
            assert answer.status_code == 200
            below = await turn(
                http, headers=child(f"tool-of-{name}", name) | {"X-Session-Budget-Share": "50%"}, max_tokens=100
            )
            assert below.status_code == 200
            assert (await show(http, f"tool-of-{name}"))["budget_nano_usd"] == 500_000
        # A share follows its parent's budget when the child names it again.
        await http.post("/v1/sessions/root", json={"budget_usd": "0.008"})
        assert (await turn(http, headers=child("greedy", "root") | share, max_tokens=100)).status_code == 200
        assert (await show(http, "greedy"))["budget_nano_usd"] == 2_000_000
        refused = [
            {"X-Session-Budget-Share": wrong} | child("other", "root")
            for wrong in ("0%", "101%", "25", "0.25", "x%", "%", "-5%", "٥%", "0001000%")
        ]
        refused += [
            share | session("alone"), share | child("other", "root") | {"X-Session-Budget-USD": "0.1"},
            share | session("lost") | {"X-Codex-Parent-Thread-Id": "nowhere"},
        ]  # fmt: skip
        for headers in refused:
            body = {"model": "small", "messages": HELLO}
            sent = [(name.encode(), value.encode()) for name, value in headers.items()]
            answer = await http.post("/v1/chat/completions", json=body, headers=sent)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Session-Budget-Share"), headers


async def test_bad_parents_are_refused_before_anything_is_reserved(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.5"))
        billed = len(play.provider.bill)
        made = await http.post("/v1/admin/tenants", json={"name": "other", "budget_usd": "1"})
        key = await http.post("/v1/admin/keys", json={"tenant_id": made.json()["id"]})
        stranger = {"Authorization": f"Bearer {key.json()['key']}"}
        for headers, status in (
            (child("a", "nowhere"), 404),
            (child("a", "root") | stranger, 404),
            (child("a", "a"), 400),
            (child("root", "root"), 400),
            (child("a", "no id"), 400),
        ):
            refused = await turn(http, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, "X-Parent-Session-Id")
        assert len(play.provider.bill) == billed
        name = "root"
        for depth in range(1, 17):
            assert (await turn(http, headers=child(f"d{depth}", name), max_tokens=5)).status_code == 200
            name = f"d{depth}"
        deeper = await turn(http, headers=child("d17", name))
        assert (deeper.status_code, deeper.json()["error"]["param"]) == (400, "X-Parent-Session-Id")
        cycle = await turn(http, headers=child("root", "d16"))
        assert (cycle.status_code, cycle.json()["error"]["param"]) == (400, "X-Parent-Session-Id")
        moved = await turn(http, headers=child("d3", "root"))
        assert moved.status_code == 400


async def test_a_child_s_limit_is_clamped_and_told_and_the_parent_s_end_is_named(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.01"), max_tokens=10)
        left = (await show(http, "root"))["remaining_usd"]
        clamped = await turn(http, headers=child("greedy", "root", budget_usd="5"), max_tokens=10)
        assert seqroute(clamped, "session-budget-usd") == left
        within = await turn(http, headers=child("modest", "root", budget_usd="0.001"), max_tokens=10)
        assert "x-seqroute-session-budget-usd" not in within.headers
        assert (await show(http, "modest"))["budget_usd"] == "0.001"
        poor = await turn(http, headers=child("modest", "root"), max_tokens=2_000, messages=[
            {"role": "user", "content": "word " * 3_000}
        ])  # fmt: skip
        assert (poor.status_code, poor.json()["error"]["code"]) == (402, "session_budget_exceeded")
        assert poor.json()["error"]["message"].startswith("the session's budget")
        await http.post("/v1/sessions/root", json={"budget_usd": "0.00001"})
        ended = await turn(http, headers=child("free", "root"))
        assert ended.status_code == 402
        assert ended.json()["error"]["message"].startswith("the parent session's budget")


async def test_the_session_above_that_refuses_its_children_has_reached_its_budget_once(
    tmp_path: Path, database_url: str
) -> None:
    """Not the child, which has no budget of its own, and may have no row either."""
    prompt = [{"role": "user", "content": "word " * 3_000}]
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        for tree in ("oak", "elm"):
            await turn(http, headers=session(tree, budget_usd="0.001"))
            await turn(http, headers=child(f"{tree}-1", tree))
        for name in ("oak-1", "oak-2", "elm-3"):
            poor = await turn(http, headers=child(name, name.partition("-")[0]), messages=prompt)
            assert poor.json()["error"]["message"].startswith("the parent session's budget")
    told: list[dict[str, Any]] = []
    new_id = time_ordered_ids(lambda: 1.0)
    with transaction(database_url) as connection:
        for at_ms in range(2):
            crossings.record(connection, ["https://hooks.example"], since_ms=0, at_ms=at_ms, new_id=new_id)
        told += map(orjson.loads, connection.execute(sa.select(tables.webhook_events.c.body)).scalars())
    assert sorted((body["type"], body["account_id"], body["budget_usd"]) for body in told) == [
        ("budget.reached", "elm", "0.001"), ("budget.reached", "oak", "0.001"),
    ]  # fmt: skip


async def test_a_paused_parent_stops_its_children(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.5"))
        await turn(http, headers=child("agent", "root"))
        await http.post("/v1/sessions/root", json={"state": "paused"})
        for headers in (child("agent", "root"), session("agent"), child("new", "root")):
            refused = await turn(http, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_paused")
        await http.post("/v1/sessions/root", json={"state": "open"})
        assert (await turn(http, headers=session("agent"))).status_code == 200


async def test_a_charge_of_a_child_counts_above_it(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, audited=False) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="0.1"))
        await turn(http, headers=child("agent", "root"))
        before = (await show(http, "root"))["spent_nano_usd"]
        charged = await http.post("/v1/sessions/agent/charges", json={"amount_usd": "0.02"})
        assert charged.status_code == 200
        assert (await show(http, "root"))["spent_nano_usd"] == before + 20_000_000
        much = await http.post("/v1/sessions/agent/charges", json={"amount_usd": "0.09"})
        assert (much.status_code, much.json()["error"]["code"]) == (402, "session_budget_exceeded")


async def test_codex_names_its_parent_and_an_unknown_one_is_no_error(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await ask(http, "/v1/responses", {"thread-id": "main"})
        sub = {"thread-id": "helper", "x-codex-parent-thread-id": "main"}
        assert (await ask(http, "/v1/responses", sub)).status_code == 200
        assert (await show(http, "helper"))["parent_session_id"] == "main"
        lost = {"thread-id": "alone", "x-codex-parent-thread-id": "never-seen"}
        assert (await ask(http, "/v1/responses", lost)).status_code == 200
        assert (await show(http, "alone"))["parent_session_id"] is None


async def test_a_crowd_of_children_on_three_replicas_never_passes_the_root_s_budget(
    tmp_path: Path, postgres_url: str
) -> None:
    """Sixty turns of twenty sub-agents at once, for a budget that serves about a third of them."""
    async with FaultUpstream() as provider:
        path = config(tmp_path, provider.url, database_url=postgres_url)
        async with (
            serving(path) as first,
            serving(path) as second,
            serving(path) as third,
            first.http() as one,
            second.http() as two,
            third.http() as three,
        ):
            await turn(one, headers=session("root", budget_usd="0.006"), max_tokens=5)
            replicas = (one, two, three)
            crowd = [turn(replicas[n % 3], headers=child(f"agent-{n % 20}", "root"), max_tokens=100) for n in range(60)]
            answers = await asyncio.gather(*crowd)
            counted = Counter(answer.status_code for answer in answers)
            assert set(counted) <= {200, 402, 429}, counted
            assert counted[200] >= 10
            for served in (first, second, third):
                await served.settled()
            root = await show(one, "root")
            assert root["reserved_nano_usd"] == 0
            assert root["spent_nano_usd"] <= 6_000_000
            assert (
                sum(node["spent_nano_usd"] for node in root["children"]) + root["own_spent_nano_usd"]
                == (root["spent_nano_usd"])
            )
            # No sub-agent took it all: the fair share of a hold left something for most of them.
            assert len([node for node in root["children"] if node["spent_nano_usd"]]) >= 5
            await first.ledger_matches(provider)


async def test_an_error_of_a_parent_has_the_dialect_s_shape(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        for route in ROUTES:
            refused = await ask(http, route, child("a", "nowhere"))
            assert refused.status_code == 404
            assert "X-Parent-Session-Id" in error_of(refused)["message"]
        assert play.provider.bill == []
