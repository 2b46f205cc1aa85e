"""Trees of sessions on SQLite and Postgres: a child spends its parent's money, to any depth, and never more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from gateway.accounts.sessions import change_session, get_session, list_sessions
from gateway.ledger.audit import audit
from gateway.ledger.records import Chain
from gateway.ledger.types import (
    MAX_DEPTH,
    Balance,
    ParentRefused,
    Refused,
    Release,
    Reserve,
    Reserved,
    SessionClosed,
)
from tests.harness.money import START_MS, TTL_MS, Bench, admitted, open_bench, race, replica


async def balance(bench: Bench, session: str) -> Balance:
    row = await bench.session(session)
    assert row is not None
    return row.balance


async def change(bench: Bench, session: str, **values: Any) -> None:
    def run(connection: Connection) -> None:
        change_session(connection, "acme", session, default_nanousd=0, actor="test", now_ms=bench.hands.at_ms, **values)

    await bench.database.write(run)


async def test_a_budget_is_reached_by_what_is_spent_and_not_by_what_is_held(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=10_000) as bench:
        op = await bench.held(100, session="root", ceiling=100)
        await change(bench, "root", budget_nanousd=110)
        below = await bench.held(10, session="child", parent="root")

        async def reached() -> dict[str, bool]:
            one = await bench.database.read(lambda c: get_session(c, "acme", "child"))
            listed = await bench.database.read(lambda c: list_sessions(c, "acme"))
            found = {session.session_id: session.budget_reached for session in listed}
            assert found["child"] == one.budget_reached
            return found

        assert await reached() == {"root": False, "child": False}
        await bench.ledger.settle(bench.bill(below, 10))
        assert await reached() == {"root": False, "child": False}
        await bench.ledger.settle(bench.bill(op, 100))
        assert await reached() == {"root": True, "child": True}


async def test_a_grandchild_s_turn_moves_the_money_of_every_session_above(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=10_000) as bench:
        root = await bench.held(100, session="root", ceiling=1_000)
        await bench.held(50, session="child", parent="root", ceiling=400)
        op, reserved = await bench.reserve(60, session="grandchild", parent="child")
        # Without a limit of its own it has its parent's budget, and what the sessions above have left.
        assert reserved == Reserved(0, Balance(400, 60, 0, 0, 290), Balance(10_000, 210, 0))
        assert await balance(bench, "child") == Balance(400, 110, 0)
        assert await balance(bench, "root") == Balance(1_000, 210, 0)
        resolved = await bench.ledger.settle(bench.bill(op, 45))
        assert resolved.session == Balance(400, 0, 45, 0, 305)
        assert await balance(bench, "child") == Balance(400, 50, 45)
        assert await balance(bench, "root") == Balance(1_000, 150, 45)
        await bench.ledger.release(bench.back(root))
        row = await bench.session("grandchild")
        assert row is not None
        assert (row.parent_session_id, row.chain) == ("child", Chain(305, 355, 400, 2, "root"))
        # A repeated header changes nothing, a further attempt needs none.
        await bench.held(5, session="grandchild", parent="child")
        await bench.held(5, session="grandchild")
        assert await balance(bench, "root") == Balance(1_000, 60, 45)


async def test_the_nearest_session_above_that_cannot_pay_refuses(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(0, session="root", ceiling=100)
        await bench.held(0, session="child", parent="root", ceiling=80)
        _, refused = await bench.reserve(81, session="grandchild", parent="child", ceiling=90)
        assert refused == Refused("session", Balance(80, 0, 0), pending=False)
        await bench.held(70, session="root")
        _, refused = await bench.reserve(31, session="child")
        assert refused == Refused("parent", Balance(100, 70, 0), pending=True)
        # A refused child does not exist, and moved nothing.
        assert await bench.session("grandchild") is None


async def test_a_child_s_limit_is_at_most_what_the_sessions_above_have(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(40, session="root", ceiling=100)
        _, reserved = await bench.reserve(10, session="child", parent="root", ceiling=500)
        assert isinstance(reserved, Reserved)
        assert reserved.session == Balance(60, 10, 0, 0, 50)
        # The client repeats its header: a limit that was granted is not cut by what others spend since.
        await bench.held(20, session="root")
        _, reserved = await bench.reserve(10, session="child", parent="root", ceiling=500)
        assert isinstance(reserved, Reserved)
        assert reserved.session == Balance(60, 20, 0, 0, 20)
        await bench.held(0, session="root", ceiling=1_000)
        _, reserved = await bench.reserve(0, session="child", ceiling=500)
        assert isinstance(reserved, Reserved)
        assert reserved.session.granted_nanousd == 500
        await change(bench, "child", budget_nanousd=5_000)
        assert (await balance(bench, "child")).granted_nanousd == 940


async def test_a_child_without_a_limit_follows_its_parent_s_budget(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(0, session="root", ceiling=100)
        await bench.held(90, session="child", parent="root")
        _, refused = await bench.reserve(20, session="child")
        assert isinstance(refused, Refused)
        await change(bench, "root", budget_nanousd=200)
        _, reserved = await bench.reserve(20, session="child")
        assert isinstance(reserved, Reserved)
        assert reserved.session == Balance(200, 110, 0, 0, 90)


async def test_a_raise_takes_as_many_statements_for_many_children_as_for_one(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(0, session="root", ceiling=100)

        async def statements(budget_nanousd: int) -> int:
            seen: list[str] = []

            def run(connection: Connection) -> None:
                event.listen(connection, "before_cursor_execute", lambda *told: seen.append(told[2]))
                terms: dict[str, Any] = {"default_nanousd": 0, "actor": "test", "now_ms": bench.hands.at_ms}
                change_session(connection, "acme", "root", budget_nanousd=budget_nanousd, **terms)

            await bench.database.write(run)
            return len(seen)

        await bench.held(0, session="c0", parent="root")
        one = await statements(200)
        for number in range(1, 20):
            await bench.held(0, session=f"c{number}", parent="root")
        await bench.held(0, session="below", parent="c7")
        await bench.held(0, session="limited", parent="c7", ceiling=150)
        await bench.held(0, session="its", parent="limited")
        assert await statements(300) == one
        found = {
            name: (await balance(bench, name)).granted_nanousd for name in ("c0", "c19", "below", "limited", "its")
        }
        assert found == {"c0": 300, "c19": 300, "below": 300, "limited": 150, "its": 150}


async def test_an_unknown_a_changed_and_a_too_deep_parent_are_refused(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.tenant("other")
        await bench.held(1, session="theirs", tenant="other")
        for parent in ("nowhere", "theirs"):
            _, refused = await bench.reserve(1, session="child", parent=parent)
            assert refused == ParentRefused("unknown")
        await bench.held(1, session="s0", ceiling=1_000)
        for depth in range(1, MAX_DEPTH + 1):
            await bench.held(1, session=f"s{depth}", parent=f"s{depth - 1}")
        _, refused = await bench.reserve(1, session="deeper", parent=f"s{MAX_DEPTH}")
        assert refused == ParentRefused("depth")
        # The root under a session below it would be a cycle; and no session gets another parent later.
        for session, parent in (("s0", f"s{MAX_DEPTH}"), ("s3", "s1"), ("self", "self")):
            _, refused = await bench.reserve(1, session=session, parent=parent)
            assert refused in (ParentRefused("other"), ParentRefused("unknown"))
        assert await balance(bench, "s0") == Balance(1_000, MAX_DEPTH + 1, 0)


@pytest.mark.parametrize("state", ["paused", "closed"])
async def test_a_session_above_that_takes_no_turns_stops_those_below(database_url: str, state: Any) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(0, session="root", ceiling=100)
        await bench.held(0, session="child", parent="root")
        await bench.held(0, session="grandchild", parent="child")
        running = await bench.held(10, session="grandchild")
        await change(bench, "root", state=state)
        for session in ("child", "grandchild"):
            _, refused = await bench.reserve(1, session=session)
            assert refused == SessionClosed("parent_paused" if state == "paused" else "parent_closed")
        # A turn that runs already ends, and may be tried again.
        await bench.held(1, session="grandchild", decision=running.decision_id)
        await bench.ledger.settle(bench.bill(running, 10))
        await change(bench, "root", state="open")
        await bench.held(1, session="grandchild")


async def test_late_bills_overages_and_refunds_reach_every_session_above(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=1_000) as bench:
        await bench.held(0, session="root", ceiling=100)
        await bench.held(0, session="child", parent="root")
        over = await bench.held(30, session="child")
        assert (await bench.ledger.settle(bench.bill(over, 50))).overage_nanousd == 20
        assert await balance(bench, "root") == Balance(100, 0, 50, 20)
        lost = await bench.held(20, session="child", dispatch=15)
        back = await bench.held(10, session="child", dispatch=8)
        swept = await bench.sweep(START_MS + TTL_MS)
        assert (swept.expired, swept.orphaned) == (2, 2)
        assert await balance(bench, "root") == Balance(100, 0, 73, 20)
        # 27 are left above for the 35 that the late bill has more.
        late = await bench.ledger.settle(bench.bill(lost, 50))
        assert (late.kind, late.overage_nanousd, late.session) == ("late_post", 8, Balance(100, 0, 108, 28, -8))
        refund = await bench.ledger.release(Release(back.hold_id))
        assert (refund.kind, refund.session) == ("refund", Balance(100, 0, 100, 28, 0))
        assert await balance(bench, "root") == Balance(100, 0, 100, 28)


async def test_a_refund_after_a_new_window_is_the_sessions_alone(database_url: str) -> None:
    async with open_bench(database_url, audit=True) as bench:
        await bench.tenant("windowed", 1_000, window="1h")
        await bench.held(0, session="root", tenant="windowed", ceiling=100)
        lost = await bench.held(20, session="child", parent="root", tenant="windowed", dispatch=15)
        await bench.sweep(START_MS + TTL_MS)
        await bench.sweep(START_MS + 2 * 3_600_000)
        refund = await bench.ledger.settle(bench.bill(lost, 5))
        assert (refund.kind, refund.session) == ("refund", Balance(100, 0, 5, 0, 95))
        assert refund.tenant == Balance(1_000, 0, 0)


async def test_a_crowd_of_children_never_spends_more_than_the_root_has(database_url: str) -> None:
    """Three gateways (on Postgres; one on SQLite), forty sessions four deep, all at once."""
    async with open_bench(database_url) as bench:
        await bench.held(0, session="root", ceiling=1_000)
        names = ["root"]
        for depth in range(1, 5):
            for number in range(10):
                name, parent = f"d{depth}-{number}", names[0] if depth == 1 else f"d{depth - 1}-{number}"
                await bench.held(0, session=name, parent=parent)
                names.append(name)

        async def play(ledger: Bench, name: str) -> list[tuple[Reserve, Any]]:
            made = [await ledger.reserve(7, session=name) for _ in range(6)]
            for op, outcome in made:
                if isinstance(outcome, Reserved):
                    await ledger.ledger.settle(ledger.bill(op, 7))
            return made

        if database_url.startswith("postgresql"):
            async with replica(database_url, bench.hands) as second, replica(database_url, bench.hands) as third:
                several = [bench, second, third]
                played = await race(*(play(several[n % 3], name) for n, name in enumerate(names)))
        else:
            played = await race(*(play(bench, name) for name in names))
        outcomes = [made for one in played for made in one]
        assert len(admitted(outcomes)) == 1_000 // 7
        root = await balance(bench, "root")
        assert root == Balance(1_000, 0, 1_000 // 7 * 7)
        assert (await bench.show()).balance.spent_nanousd == root.spent_nanousd


async def test_a_cancelled_reservation_of_a_child_is_undone_everywhere(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(0, session="root", ceiling=100)
        await bench.held(0, session="child", parent="root")
        for _ in range(5):
            task = asyncio.ensure_future(bench.ledger.reserve(bench.asking(10, session="child")))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for _ in range(500):
            if not bench.ledger._undoing:
                break
            await asyncio.sleep(0.01)
        assert await balance(bench, "root") == Balance(100, 0, 0)


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        ("UPDATE sessions SET spent_nanousd = spent_nanousd + 1 WHERE session_id = 'root'", "session: spent equals"),
        ("UPDATE sessions SET reserved_nanousd = reserved_nanousd - 1 WHERE session_id = 'child'", "session: reserved"),
        ("DELETE FROM session_ancestors WHERE session_id = 'grandchild' AND ancestor_id = 'root'", "session: the sess"),
    ],
)
async def test_the_audit_finds_a_tree_that_does_not_add_up(database_url: str, damage: str, invariant: str) -> None:
    async with open_bench(database_url, audit=False) as bench:
        await bench.held(0, session="root", ceiling=100)
        await bench.held(0, session="child", parent="root")
        await bench.ledger.settle(bench.bill(await bench.held(20, session="grandchild", parent="child"), 12))
        await bench.held(3, session="grandchild")
        assert await bench.database.read(audit) == []
        await bench.database.write(lambda connection: connection.execute(text(damage)))
        found = await bench.database.read(audit)
        assert any(violation.invariant.startswith(invariant) for violation in found), found
