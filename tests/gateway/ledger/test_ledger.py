"""The ledger's contract, on SQLite and on Postgres: every outcome has a name, and a test with hand-worked numbers."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from msgspec import structs
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from gateway.accounts.keys import get_key
from gateway.accounts.tenants import grant_to_tenant
from gateway.database.tables import decisions
from gateway.dialects.message_digests import MessageDigests
from gateway.errors import LedgerUnavailable
from gateway.ledger.leases import BATCH
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import UnknownHold, merge_memory
from gateway.ledger.types import (
    Answer,
    Balance,
    BodyMismatch,
    Checkpoint,
    IdempotencyClaim,
    InFlight,
    Refused,
    Replay,
    Reserved,
    SessionClosed,
    TenantMissing,
)
from gateway.routing import session as sessions
from tests.harness.auditor import assert_ledger_sound
from tests.harness.ledger_rows import list_entries
from tests.harness.money import START_MS, TTL_MS, Bench, admitted, open_bench, race, replica
from tests.harness.window_resets import reset_together

SHA_A, SHA_B = b"\xaa" * 32, b"\xbb" * 32


async def kinds(bench: Bench, hold_id: str | None = None) -> list[tuple[str, int]]:
    entries = await bench.database.read(lambda connection: list_entries(connection, hold_id=hold_id))
    return [(entry.kind, entry.amount_nanousd) for entry in entries if hold_id is not None or entry.scope == "turn"]


def execute(statement: str, connection: Connection) -> None:
    connection.execute(text(statement))


async def decision(bench: Bench, decision_id: str) -> dict[str, object]:
    query = select(decisions).where(decisions.c.decision_id == decision_id)
    return dict((await bench.database.read(lambda c: c.execute(query).one()))._mapping)


async def test_reserve_then_settle_moves_the_bill_and_returns_the_rest(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=10_000) as bench:
        op, reserved = await bench.reserve(600, ceiling=1_000)
        assert reserved == Reserved(0, Balance(1_000, 600, 0), Balance(10_000, 600, 0))
        resolved = await bench.ledger.settle(bench.bill(op, 250))
        assert (resolved.kind, resolved.overage_nanousd) == ("settle", 0)
        assert resolved.session == Balance(1_000, 0, 250)
        assert resolved.tenant == Balance(10_000, 0, 250)
        assert await kinds(bench, op.hold_id) == [("reserve", 600), ("settle", 250)]


async def test_the_decision_is_logged_with_the_reservation_and_completed_with_the_bill(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        first = await bench.held(600, ceiling=1_000)
        await bench.ledger.settle(bench.bill(first, 250, decision={"output_tokens": 12, "error_code": None}))
        second = await bench.held(100)
        row = await decision(bench, first.decision_id)
        assert (row["turn"], row["previous_decision_id"], row["status"]) == (0, None, "completed")
        assert (row["session_budget_nanousd"], row["remaining_before_nanousd"]) == (1_000, 1_000)
        assert (row["remaining_after_nanousd"], row["cost_nanousd"], row["usage_source"]) == (750, 250, "reported")
        assert (row["features"], row["propensity"], row["output_tokens"]) == (b"\x00\x01\xff\x80", 0.25, 12)
        assert (row["completed_at_ms"], row["finish_reason"]) == (START_MS, "stop")
        row = await decision(bench, second.decision_id)
        assert (row["turn"], row["previous_decision_id"], row["status"]) == (1, first.decision_id, "pending")
        assert (row["remaining_before_nanousd"], row["reserved_nanousd"]) == (750, 100)


async def test_release_gives_the_hold_back_whole(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(600, ceiling=1_000)
        resolved = await bench.ledger.release(bench.back(op))
        assert (resolved.kind, resolved.session) == ("release", Balance(1_000, 0, 0))
        assert await kinds(bench, op.hold_id) == [("reserve", 600), ("release", 600)]
        assert (await decision(bench, op.decision_id))["status"] == "failed"


async def test_a_bill_above_the_hold_is_an_overage_that_blocks_the_next_turn(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(600, ceiling=1_000)
        resolved = await bench.ledger.settle(bench.bill(op, 1_500))
        assert (resolved.kind, resolved.overage_nanousd) == ("settle", 900)
        assert resolved.session == Balance(1_000, 0, 1_500, 900)
        assert resolved.session.available_nanousd == -500
        assert await kinds(bench, op.hold_id) == [("reserve", 600), ("settle", 600), ("overage", 900)]
        _, refused = await bench.reserve(0)
        assert refused == Refused("session", Balance(1_000, 0, 1_500, 900), pending=False)


async def test_the_second_resolution_is_told_so_and_changes_nothing(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        settled, released = await bench.held(100), await bench.held(100)
        await bench.ledger.settle(bench.bill(settled, 40))
        await bench.ledger.release(bench.back(released))
        for op in (settled, released):
            assert (await bench.ledger.settle(bench.bill(op, 90))).kind == "already"
            assert (await bench.ledger.release(bench.back(op))).kind == "already"
        assert (await bench.show()).balance.spent_nanousd == 40


async def test_each_account_refuses_by_name_and_says_whether_money_may_come_back(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=1_000) as bench:
        _, refused = await bench.reserve(501, ceiling=500)
        assert refused == Refused("session", Balance(500, 0, 0), pending=False)
        key = await bench.key(budget_nanousd=300)
        _, refused = await bench.reserve(301, key=key.key_id)
        assert refused == Refused("key", Balance(300, 0, 0), pending=False)
        await bench.held(900, session="other")
        _, refused = await bench.reserve(101)
        assert refused == Refused("tenant", Balance(1_000, 900, 0), pending=True)
        assert await bench.session("s1") is None


async def test_a_key_with_a_budget_is_charged_beside_its_tenant(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        key = await bench.key(budget_nanousd=300)
        free = await bench.key()
        op = await bench.held(200, key=key.key_id)
        await bench.held(5_000, key=free.key_id)
        await bench.ledger.settle(bench.bill(op, 250))
        charged = await bench.database.read(lambda connection: get_key(connection, key.key_id))
        assert charged.balance == Balance(300, 0, 250, 50)


async def test_unknown_tenants_and_closed_sessions_hold_nothing(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        assert (await bench.reserve(1, tenant="nobody"))[1] == TenantMissing("nobody")
        op = await bench.held(100)
        assert (await bench.reserve(1, max_turns=1))[1] == SessionClosed("max_turns")
        await bench.ledger.settle(bench.bill(op, 10, close_session=True))
        assert (await bench.reserve(1))[1] == SessionClosed("closed")
        with pytest.raises(UnknownHold):
            await bench.ledger.settle(bench.bill(bench.asking(1), 1))


async def test_a_further_attempt_belongs_to_the_same_turn(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        first = await bench.held(100)
        await bench.ledger.settle(bench.bill(first, 30, decision={"status": "pending"}))
        second = await bench.held(200, decision=first.decision_id)
        await bench.ledger.settle(bench.bill(second, 50))
        session = await bench.session("s1")
        assert session is not None
        assert (session.turns, session.last_decision_id) == (1, first.decision_id)
        assert (await decision(bench, first.decision_id))["cost_nanousd"] == 80


async def test_the_client_s_ceiling_moves_both_ways_within_the_law(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.tenant("small", 10_000, max_session_nanousd=2_000)
        op = await bench.held(600, tenant="small", default=5_000)
        assert (await bench.session("s1", tenant="small")).balance.granted_nanousd == 2_000  # type: ignore[union-attr]
        await bench.ledger.settle(bench.bill(op, 400))
        outcomes = [(await bench.reserve(100, tenant="small", ceiling=ceiling))[1] for ceiling in (700, 9_999)]
        assert [outcome.session.granted_nanousd for outcome in outcomes if isinstance(outcome, Reserved)] == [
            700,
            2_000,
        ]
        # 400 spent and 200 reserved: a lower ceiling stops there, and so there is nothing left.
        _, refused = await bench.reserve(1, tenant="small", ceiling=50)
        assert refused == Refused("session", Balance(600, 200, 400), pending=True)


async def test_a_ceiling_below_what_was_overspent_forgives_nothing(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(1_000, ceiling=1_000)
        await bench.ledger.settle(bench.bill(op, 1_200))
        _, refused = await bench.reserve(0, ceiling=1_000)
        assert refused == Refused("session", Balance(1_000, 0, 1_200, 200), pending=False)


async def test_the_session_remembers_what_the_last_bill_told_it(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(100, default=1_000)
        bench.hands.at_ms += 5
        await bench.ledger.settle(bench.bill(op, 60, session_memory='{"last_model":"small"}'))
        session = await bench.session("s1")
        assert session is not None
        assert (session.balance, session.tenant.spent_nanousd) == (Balance(1_000, 0, 60), 60)
        assert (session.memory, session.turns, session.state) == ('{"last_model":"small"}', 1, "open")
        assert (session.created_at_ms, session.updated_at_ms) == (START_MS, START_MS + 5)


async def test_turns_of_one_session_beside_each_other_are_all_remembered(database_url: str) -> None:
    """Each brings only its own update; both databases merge them by the same rule, the newest last."""
    async with open_bench(database_url) as bench:
        merged = "{}"
        for number in range(25):
            op = await bench.held(100)
            update = sessions.memory_update(
                model=f"m{number % 3}", prompt_tokens=10,
                digests=MessageDigests([{"role": "user", "content": f"helper {number}"}]),
                output_tokens=number, failed=number % 5 == 0, regenerated=number == 1, tool_error=number == 2,
                at_ms=number,
            )  # fmt: skip
            merged = merge_memory(merged, update)
            await bench.ledger.settle(bench.bill(op, 1, session_memory=update))
        session = await bench.session("s1")
        assert session is not None
        assert sessions.SessionMemory.from_json(session.memory) == sessions.SessionMemory.from_json(merged)
        memory = sessions.SessionMemory.from_json(session.memory)
        # 0 to 24: 25 prompts of 10 tokens, 300 tokens of answers; every fifth failed; of 20 answered, 16 are kept.
        assert (memory.tokens_so_far, memory.failures, memory.regenerations, memory.tool_errors) == (550, 5, 1, 1)
        assert (len(memory.answered), memory.last_at_ms, set(memory.warm)) == (16, 24, {"m0", "m1", "m2"})


async def test_text_that_a_database_cannot_hold_is_made_to_fit(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(100, row={"request_text": "nul \x00, half a pair \ud800, percent %s, quote ' \\ \u2028"})
        await bench.ledger.settle(bench.bill(op, 1, decision={"response_text": "naïve 😀 \\u0000"}))
        row = await decision(bench, op.decision_id)
        assert row["request_text"] == "nul , half a pair ?, percent %s, quote ' \\ \u2028"
        assert row["response_text"] == "naïve 😀 \\u0000"


async def test_a_wrong_operation_fails_alone_and_not_its_group(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        good = [bench.asking(10) for _ in range(20)]
        bad = bench.asking(10, row={"propensity": 2.0})
        results = await asyncio.gather(*(bench.ledger.reserve(op) for op in (*good, bad)), return_exceptions=True)
        assert [type(result) for result in results[:-1]] == [Reserved] * 20
        assert not isinstance(results[-1], Reserved)
        assert (await bench.show()).balance.reserved_nanousd == 200


async def test_entries_can_neither_be_changed_nor_deleted(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(100)
        for verb in ("UPDATE ledger_entries SET amount_nanousd = 0", "DELETE FROM ledger_entries"):
            with pytest.raises(DBAPIError, match="immutable"):
                await bench.database.write(partial(execute, verb))


# -- the sweeper --------------------------------------------------------------------------------------------------


async def test_what_was_never_dispatched_expires_and_costs_nothing(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(600)
        assert (await bench.sweep(START_MS + TTL_MS - 1)).expired == 0
        swept = await bench.sweep(START_MS + TTL_MS)
        assert (swept.expired, swept.orphaned) == (1, 0)
        assert await kinds(bench, op.hold_id) == [("reserve", 600), ("expire", 600)]
        row = await decision(bench, op.decision_id)
        assert (row["status"], row["error_code"], row["cost_nanousd"]) == ("orphaned", "expired", 0)
        assert (await bench.ledger.settle(bench.bill(op, 70))).kind == "late_post"
        assert (await bench.show()).balance.spent_nanousd == 70


async def test_an_orphan_costs_its_last_checkpoint_and_a_late_bill_the_difference_once(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(600, ceiling=1_000, dispatch=100)
        await bench.ledger.checkpoint([Checkpoint(op.hold_id, 250, 2 * TTL_MS)])
        await bench.ledger.checkpoint([Checkpoint(op.hold_id, 200, 2 * TTL_MS)])
        assert (await bench.sweep(START_MS + TTL_MS)).orphaned == 0
        assert (await bench.sweep(START_MS + 2 * TTL_MS)).orphaned == 1
        row = await decision(bench, op.decision_id)
        assert (row["status"], row["usage_source"], row["cost_nanousd"]) == ("orphaned", "estimated", 250)
        late = await bench.ledger.settle(bench.bill(op, 330))
        assert (late.kind, late.overage_nanousd, late.session) == ("late_post", 0, Balance(1_000, 0, 330))
        assert (await bench.ledger.settle(bench.bill(op, 330))).kind == "already"
        assert await kinds(bench, op.hold_id) == [("reserve", 600), ("orphan_post", 250), ("late_post", 80)]
        row = await decision(bench, op.decision_id)
        assert (row["status"], row["usage_source"], row["cost_nanousd"]) == ("completed", "reported", 330)


async def test_a_late_bill_that_no_longer_fits_is_an_overage(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(600, ceiling=1_000, dispatch=100)
        await bench.sweep(START_MS + TTL_MS)
        await bench.held(850)
        late = await bench.ledger.settle(bench.bill(op, 330))
        # 1000 - 850 reserved - 100 posted leaves 50 of the 230 that are owed.
        assert (late.kind, late.overage_nanousd, late.session) == ("late_post", 180, Balance(1_000, 850, 330, 180))


async def test_a_call_may_not_leave_once_its_lease_ran_out(database_url: str) -> None:
    """The process was stopped between the commit and its answer; nothing is charged for a call that did not go."""
    async with open_bench(database_url) as bench:
        slept_ms = iter((START_MS, START_MS + TTL_MS))
        slow = Ledger(bench.database, clock=lambda: next(slept_ms, START_MS + TTL_MS) / 1000)
        await slow.start()
        with pytest.raises(LedgerUnavailable, match="expired"):
            await slow.reserve(bench.asking(600, dispatch=50))
        await slow.close()
        assert (await bench.show()).balance == Balance(10**12, 0, 0)


async def test_a_turn_that_died_between_two_attempts_is_closed_by_the_sweeper(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        claim = IdempotencyClaim("k", SHA_A, 86_400_000)
        op = await bench.held(100, claim=claim)
        release = bench.back(op, drop=False)
        await bench.ledger.release(structs.replace(release, decision=None))
        assert (await bench.sweep(START_MS + 10 * 60_000)).abandoned == 0
        swept = await bench.sweep(START_MS + 15 * 60_000)
        assert (swept.abandoned, swept.forgotten) == (1, 1)
        assert (await decision(bench, op.decision_id))["error_code"] == "abandoned"


async def test_three_sweepers_and_late_bills_resolve_each_hold_once(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        ops = [await bench.held(100, session=f"s{n % 7}", dispatch=60 if n % 2 else None) for n in range(60)]
        at_ms = START_MS + TTL_MS
        bench.hands.at_ms = at_ms
        results = await race(
            *(bench.ledger.sweep() for _ in range(3)), *(bench.ledger.settle(bench.bill(op, 80)) for op in ops)
        )
        settled = [result.kind for result in results[3:]]
        assert set(settled) <= {"settle", "late_post"}
        swept = sum(result.expired + result.orphaned for result in results[:3])
        assert swept == settled.count("late_post")
        assert (await bench.show()).balance == Balance(10**12, 0, 60 * 80)
        await assert_ledger_sound(bench.database, at_ms=at_ms, grace_ms=0)


# -- concurrency --------------------------------------------------------------------------------------------------


async def test_two_hundred_concurrent_turns_on_money_for_twenty_dispatch_exactly_twenty(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        outcomes = await race(*(bench.reserve(50, ceiling=1_000) for _ in range(200)))
        ops = admitted(outcomes)
        assert len(ops) == 20
        assert all(outcome.pending for _, outcome in outcomes if isinstance(outcome, Refused))
        session = await bench.session("s1")
        assert session is not None
        assert session.balance == Balance(1_000, 1_000, 0)
        await race(*(bench.ledger.settle(bench.bill(op, 50)) for op in ops))
        assert admitted(await race(*(bench.reserve(1) for _ in range(20)))) == []


async def test_a_tenant_s_budget_binds_across_fifty_sessions(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=10_000) as bench:

        async def agent(name: str) -> int:
            spent = 0
            for _ in range(10):
                op, outcome = await bench.reserve(70, session=name)
                if isinstance(outcome, Reserved):
                    await bench.ledger.settle(bench.bill(op, 70))
                    spent += 70
            return spent

        spent = await race(*(agent(f"s{n}") for n in range(50)))
        assert sum(spent) == 9_940  # 142 turns of 70 fit into 10,000
        assert (await bench.show()).balance == Balance(10_000, 0, 9_940)


async def test_two_replicas_share_one_budget(postgres_url: str) -> None:
    async with open_bench(postgres_url, budget_nanousd=1_000) as one, replica(postgres_url, one.hands) as two:
        outcomes = await race(*(bench.reserve(50, session=f"s{n % 3}") for n in range(100) for bench in (one, two)))
        assert len(admitted(outcomes)) == 20


async def test_three_replicas_dispatch_exactly_twenty_of_two_hundred(postgres_url: str) -> None:
    async with (
        open_bench(postgres_url) as one,
        replica(postgres_url, one.hands) as two,
        replica(postgres_url, one.hands) as three,
    ):
        for repeat in range(5):
            session = f"s{repeat}"
            outcomes = await race(
                *((one, two, three)[n % 3].reserve(50, session=session, ceiling=1_000) for n in range(200))
            )
            assert len(admitted(outcomes)) == 20


async def test_turns_sweeps_grants_and_reports_in_every_order_never_deadlock(postgres_url: str) -> None:
    async with open_bench(postgres_url) as one, replica(postgres_url, one.hands) as two:
        names = ["acme", "bell", "cyan"]
        for name in names[1:]:
            await one.tenant(name, 10**9)

        async def turns(bench: Bench, order: list[str]) -> None:
            for n in range(30):
                op = await bench.held(10, tenant=order[n % 3], session=f"s{n % 2}", ttl_ms=0 if n % 5 == 0 else TTL_MS)
                await bench.ledger.checkpoint([Checkpoint(op.hold_id, 5, 0)])
                assert (await bench.ledger.settle(bench.bill(op, 8))).kind in ("settle", "late_post")

        async def sweeps(bench: Bench) -> None:
            for _ in range(15):
                await bench.ledger.sweep()

        async def grants(bench: Bench) -> None:
            for n in range(30):
                await bench.database.write(
                    partial(grant_to_tenant, tenant_id=names[n % 3], change_nanousd=1, actor="test", now_ms=START_MS)
                )

        await race(
            *(turns(bench, order) for bench in (one, two) for order in (names, names[::-1], names[1:] + names[:1])),
            *(work(bench) for work in (sweeps, grants) for bench in (one, two)),
        )
        deadlocks = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert await one.database.read(lambda connection: connection.execute(deadlocks).scalar_one()) == 0
        spent = [(await one.show(name)).balance for name in names]
        assert [(balance.reserved_nanousd, balance.spent_nanousd) for balance in spent] == [(0, 60 * 8)] * 3


# -- idempotency keys ---------------------------------------------------------------------------------------------


async def test_an_idempotency_key_is_claimed_answered_and_replayed(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        claim = IdempotencyClaim("order-1", SHA_A, 86_400_000)
        first = await bench.held(100, claim=claim)
        assert (await bench.reserve(100, claim=claim))[1] == InFlight(first.decision_id)
        assert await bench.ledger.idempotent("acme", "order-1", SHA_A) == InFlight(first.decision_id)
        other = IdempotencyClaim("order-1", SHA_B, 86_400_000)
        assert (await bench.reserve(100, claim=other))[1] == BodyMismatch(first.decision_id)
        answer = Answer(200, {"x-seqroute-model": "small"}, b'{"id":"\xc3\xa9"}')
        await bench.ledger.settle(bench.bill(first, 10, answer=answer))
        replay = Replay(200, {"x-seqroute-model": "small"}, b'{"id":"\xc3\xa9"}')
        assert (await bench.reserve(100, claim=claim))[1] == replay
        assert await bench.ledger.idempotent("acme", "order-1", SHA_A) == replay
        assert await bench.ledger.idempotent("acme", "order-2", SHA_A) is None
        assert (await bench.show()).balance == Balance(10**12, 0, 10)


async def test_of_two_hundred_requests_with_one_key_one_is_held(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        claim = IdempotencyClaim("k", SHA_A, 1_000)
        outcomes = await race(*(bench.reserve(1, claim=claim) for _ in range(200)))
        assert sum(isinstance(outcome, Reserved) for _, outcome in outcomes) == 1
        assert sum(isinstance(outcome, InFlight) for _, outcome in outcomes) == 199


async def test_a_claim_is_free_again_after_a_release_a_crash_or_its_day(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        claim = IdempotencyClaim("k", SHA_A, 10 * TTL_MS)
        released = await bench.held(100, claim=claim)
        await bench.ledger.release(bench.back(released))
        crashed = await bench.held(100, claim=claim)
        await bench.sweep(START_MS + TTL_MS)
        answered = await bench.held(100, claim=claim)
        await bench.ledger.settle(bench.bill(answered, 5, answer=Answer(200, {}, b"x")))
        bench.hands.at_ms = START_MS + 11 * TTL_MS
        assert await bench.ledger.idempotent("acme", "k", SHA_A) is None
        assert isinstance((await bench.reserve(100, claim=claim))[1], Reserved)
        assert crashed.decision_id != answered.decision_id


async def test_budgets_whose_windows_end_together_begin_anew_once_each_whichever_gateway_sweeps(
    database_url: str,
) -> None:
    """More than one batch of the sweeper; `make soak PARTS=resets SIZE=100` does it with 10,000."""
    if database_url.startswith("sqlite"):
        figures = await reset_together(database_url, budgets=60, turns=5)
    else:
        figures = await reset_together(database_url, budgets=BATCH + 60, turns=20)
    assert figures.resets == sum(figures.by_each) > 0
