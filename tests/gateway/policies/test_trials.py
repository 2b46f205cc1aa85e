"""Trials read off the log and ended in the table of policies: which sessions count, what is done, and only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from gateway.config.settings import PolicySettings
from gateway.database import tables
from gateway.database.database import Database, transaction
from gateway.policies.confidence_sequences import Arm
from gateway.policies.registry import act_on, champion_of, get_policy, holder_of, list_events
from gateway.policies.trials import ADVISORY_LOCK_KEY, act, look, look_once, read_arms, read_shadow, verdict_on
from gateway.policies.verdicts import Verdict
from tests.harness.trial_traffic import Habits, traffic

HOUR_MS = 3_600_000
SETTINGS = PolicySettings(canary_hours=1.0)
REGRESSED, HELD = Verdict("regressed", ("cost +40%",)), Verdict("held", ("fine",))


def turn(
    number: int, session: str, policy: str, *, first: bool = False, at_ms: int = 10, **changes: Any
) -> dict[str, Any]:
    """A row of the log: a completed turn of 100 nano-USD, unless told otherwise."""
    return {
        "decision_id": f"d{number}", "tenant_id": "t", "session_id": session, "turn": 0,
        "previous_decision_id": None if first else "before", "requested_model": "auto", "feature_version": 1,
        "features": b"", "candidate_features": b"", "candidates": "[]", "lambda_per_usd": 0.0,
        "session_budget_nanousd": 1, "remaining_before_nanousd": 1, "model": "m", "action": 0, "propensity": 1.0,
        "uniform": 0.5, "policy_id": policy, "reason": "policy", "status": "completed", "reserved_nanousd": 1,
        "cost_nanousd": 100, "created_at_ms": at_ms, "shadow_policy_id": None, "shadow_model": None,
        "root_session_id": None,
    } | changes  # fmt: skip


def score(number: int, session: str, value: float, at_ms: int = 20) -> dict[str, Any]:
    return {
        "feedback_id": f"f{number}", "tenant_id": "t", "session_id": session, "decision_id": f"d{number}",
        "source": "s", "name": "n", "score": value, "created_at_ms": at_ms,
    }  # fmt: skip


@contextmanager
def log(
    url: str, turns: Sequence[dict[str, Any]] = (), scores: Sequence[dict[str, Any]] = (), **staged: str
) -> Iterator[sa.Connection]:
    """The log and a table of policies, staged at 0; a connection to look at it and change it."""
    with transaction(url) as connection:
        for name, stage in staged.items():
            connection.execute(
                sa.insert(tables.policies).values(
                    policy_id=name, kind="learned", stage=stage, path=name, created_at_ms=0, staged_at_ms=0
                )
            )
        if turns:
            connection.execute(sa.insert(tables.decisions), list(turns))
        if scores:
            connection.execute(sa.insert(tables.feedback), list(scores))
        yield connection


def test_sessions_that_began_since_are_summed_by_who_decided_them(database_url: str) -> None:
    rows = [
        turn(1, "a", "new", first=True),
        turn(2, "a", "new", cost_nanousd=300, status="failed"),
        turn(3, "a", "rule:forced", reason="only-affordable", cost_nanousd=None),
        turn(4, "b", "old", first=True, cost_nanousd=50),
        turn(5, "b", "rule:forced", reason="pinned", cost_nanousd=9_999),
        turn(6, "b", "old", status="cancelled", cost_nanousd=7),
        turn(7, "c", "new"),  # began before the trial
        turn(8, "d", "rule:forced", first=True, reason="capability"),  # nobody decided anything
        turn(9, "e", "old", first=True, at_ms=-1),
        turn(10, "f", "old", first=True, reason="policy-fault", shadow_policy_id="new"),
    ]
    with log(database_url, rows, [score(1, "a", 0.5), score(2, "a", 1.0), score(4, "b", 0.25)]) as connection:
        arms = read_arms(connection, "new", 0)
    # Session a: 400 nano-USD in 3 turns, one failed, one starved; f: its fault, though the rule answered for 100.
    assert arms.canary["cost"] == Arm(2, 500.0, 4.0, 400.0**2 + 100.0**2, 1_200.0 + 100.0, 9.0 + 1.0)
    assert arms.canary["failures"] == Arm(2, 2.0, 4.0, 2.0, 4.0, 10.0)
    assert arms.canary["starved"] == Arm(2, 1.0, 4.0, 1.0, 3.0, 10.0)
    assert arms.canary["quality"] == Arm(1, 1.5, 2.0, 2.25, 3.0, 4.0)
    assert arms.control["cost"] == Arm(1, 50.0, 1.0, 2_500.0, 50.0, 1.0)
    assert arms.control["quality"] == Arm(1, 0.25, 1.0, 0.0625, 0.25, 1.0)


def test_thousands_of_scores_for_one_turn_count_as_one_grade(database_url: str) -> None:
    """Their sources and names are the client's, and so is their number: of session a, one grade is 0 and one .5."""
    rows = [turn(1, "a", "new", first=True), turn(2, "a", "new"), turn(3, "b", "new", first=True)]
    zeros = [score(1, "a", 0.0) | {"feedback_id": f"x{k}", "name": f"n{k}"} for k in range(1_000)]
    with log(database_url, rows, [*zeros, score(2, "a", 0.5), score(3, "b", 1.0)]) as connection:
        arms = read_arms(connection, "new", 0)
    assert arms.canary["quality"] == Arm(2, 1.5, 3.0, 0.25 + 1.0, 1.0 + 1.0, 4.0 + 1.0)


def test_sessions_of_one_tree_count_as_one(database_url: str) -> None:
    """A root of one turn and its two children of one and two: 4 turns of 100, 2 graded .5 in sum. And one alone."""
    below: dict[str, Any] = {"root_session_id": "a"}
    rows = [
        turn(1, "a", "new", first=True),
        turn(2, "a1", "new", first=True, **below),
        turn(3, "a2", "new", first=True),  # logged without its root, by an older version or in open mode
        turn(4, "a2", "new", **below),
        turn(5, "b", "new", first=True),
        turn(6, "b1", "old", first=True, root_session_id="b"),  # decided before arms were drawn by tree
    ]
    with log(database_url, rows, [score(1, "a", 0.5), score(3, "a2", 0.0)]) as connection:
        arms = read_arms(connection, "new", 0)
    assert arms.canary["cost"] == Arm(2, 500.0, 5.0, 400.0**2 + 100.0**2, 1_600.0 + 100.0, 16.0 + 1.0)
    assert arms.canary["quality"] == Arm(1, 0.5, 2.0, 0.25, 1.0, 4.0)
    assert arms.control["cost"] == Arm(1, 100.0, 1.0, 100.0**2, 100.0, 1.0)


def test_no_tenant_decides_a_canary_alone(database_url: str) -> None:
    """By hand: of the canary's 4 sessions 3 are t's, a weight of .25 / .75; u has .25 of it, but all of the control,
    so a weight of .25. Over the larger of both: 1 for t and .75 for u, so 3 + .75 turns, and 100 nano-USD for each."""
    rows = [turn(n, f"s{n}", "new", first=True) for n in range(3)]
    rows += [turn(3, "a", "new", first=True, tenant_id="u"), turn(4, "b", "old", first=True, tenant_id="u")]
    with log(database_url, rows) as connection:
        arms = read_arms(connection, "new", 0)
    assert (arms.canary["cost"].m, arms.canary["cost"].y) == pytest.approx((3.75, 375.0))
    assert arms.canary["cost"].mm == pytest.approx(3.0 + 0.75**2)
    assert (arms.control["cost"].m, arms.control["cost"].sessions) == (0.75, 1)


def test_on_a_long_log_the_newest_turns_are_read(sqlite_url: str) -> None:
    rows = [turn(n, f"s{n}", "new", first=True, at_ms=n) for n in range(20)]
    with log(sqlite_url, rows) as connection:
        arms = read_arms(connection, "new", 0, max_turns=5)
    assert arms.canary["cost"].sessions == 6


def test_a_shadow_s_answers_are_counted_among_the_turns_that_a_policy_decided(database_url: str) -> None:
    rows = [
        turn(1, "a", "old", first=True, shadow_policy_id="new", shadow_model="m"),
        turn(2, "a", "old"),
        turn(3, "a", "rule:forced", reason="capability"),
    ]
    with log(database_url, rows) as connection:
        assert read_shadow(connection, "new", 0) == (2, 1)


@pytest.mark.parametrize(
    ("stage", "verdict", "settings", "done", "stands"),
    [
        ("canary", REGRESSED, SETTINGS, "rollback", "rejected"),
        ("canary", HELD, SETTINGS, "promote", "champion"),
        ("canary", HELD, replace(SETTINGS, auto_promote=False), None, "canary"),
        ("shadow", HELD, SETTINGS, "canary", "canary"),
        ("shadow", REGRESSED, SETTINGS, "rollback", "rejected"),
    ],
)
def test_a_verdict_is_carried_out_once(
    sqlite_url: str, stage: str, verdict: Verdict, settings: PolicySettings, done: str | None, stands: str
) -> None:
    with log(sqlite_url, old="champion", new=stage) as connection:
        record = get_policy(connection, "new")
        assert act(connection, record, verdict, settings, 10) == done
        assert get_policy(connection, "new").stage == stands
        again = act(connection, record, verdict, settings, 11)
        assert again is None
        noted = [event for event in list_events(connection, "new") if event["actor"] == "trial"]
        assert [event["note"] for event in noted] == (["; ".join(verdict.reasons)] if done else [])


def test_a_pinned_champion_is_not_replaced_by_a_canary_that_holds(sqlite_url: str) -> None:
    with log(sqlite_url, old="champion", new="canary") as connection:
        act_on(connection, "old", "pin", actor="cli", now_ms=5)
        assert act(connection, get_policy(connection, "new"), HELD, SETTINGS, 10) is None
        act_on(connection, "old", "unpin", actor="cli", now_ms=11)
        assert act(connection, get_policy(connection, "new"), HELD, SETTINGS, 12) == "promote"


def test_in_canary_mode_the_champion_itself_is_on_trial_beside_the_rule(sqlite_url: str) -> None:
    with log(sqlite_url, older="retired", old="champion") as connection:
        record = get_policy(connection, "old")
        assert verdict_on(connection, record, SETTINGS, HOUR_MS) is None
        assert verdict_on(connection, record, replace(SETTINGS, mode="canary"), HOUR_MS) is not None
        assert act(connection, record, HELD, replace(SETTINGS, mode="canary"), 10) is None
        assert act(connection, record, REGRESSED, replace(SETTINGS, mode="canary"), 10) == "rollback"
        champion = champion_of(connection)
        assert champion is not None
        assert champion.policy_id == "older"


def test_a_pinned_champion_that_regresses_in_canary_mode_is_left_to_people(sqlite_url: str) -> None:
    settings = replace(SETTINGS, mode="canary")
    with log(sqlite_url, older="retired", old="champion") as connection:
        act_on(connection, "old", "pin", actor="cli", now_ms=5)
        assert act(connection, get_policy(connection, "old"), REGRESSED, settings, 10) is None
        assert get_policy(connection, "old").stage == "champion"
        act_on(connection, "old", "unpin", actor="cli", now_ms=11)
        assert act(connection, get_policy(connection, "old"), REGRESSED, settings, 12) == "rollback"


def test_of_two_replicas_one_looks(postgres_url: str) -> None:
    rows = [turn(n, f"s{n}", "old", first=True) for n in range(200)]
    with log(postgres_url, rows, new="shadow") as connection:
        pass
    with transaction(postgres_url) as first, transaction(postgres_url) as second:
        first.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK_KEY})
        assert look(second, SETTINGS, 10) == []
    with transaction(postgres_url) as connection:
        [(record, verdict)] = look(connection, SETTINGS, 10)
    assert (record.policy_id, verdict.outcome) == ("new", "regressed")


def rows_of(
    generator: np.random.Generator, name: str, policy: str, sessions: int, habits: Habits, at_ms: int
) -> list[dict[str, Any]]:
    """Sessions as rows of the log; a session's bill and failures are spread over its turns."""
    found = traffic(generator, sessions, habits)
    rows = []
    for s in range(sessions):
        turns, failed = int(found.m[s, 0]), int(found.y[s, 1])
        for t in range(turns):
            row = turn(0, f"{name}-{s}", policy, first=t == 0, at_ms=at_ms)
            row |= {"decision_id": f"{name}-{s}-{t}", "cost_nanousd": round(1e6 * found.y[s, 0] / turns)}
            rows.append(row | {"status": "failed" if t < failed else "completed"})
    return rows


async def test_an_injected_regression_is_rolled_back_within_a_thousand_canary_turns(database_url: str) -> None:
    generator = np.random.default_rng(11)
    with log(database_url, old="champion", new="canary"):
        pass
    database = Database(database_url, serving=True)
    await database.start()
    canary_turns, ended = 0, []
    try:
        for step in range(25):
            rows = rows_of(generator, f"n{step}", "new", 10, Habits(cost=1.3, failures=0.08), step)
            canary_turns += len(rows)
            rows += rows_of(generator, f"o{step}", "old", 190, Habits(), step)
            await database.write(insertion(rows))
            ended = await look_once(database, SETTINGS, clock=lambda: 3600.0)
            if ended:
                break
        [(record, verdict, done)] = ended
        assert (record.policy_id, verdict.outcome, done) == ("new", "regressed", "rollback")
        assert verdict.turns == canary_turns <= 1_000
        assert await database.read(lambda c: holder_of(c, "canary")) is None
        champion = await database.read(champion_of)
        assert champion is not None
        assert champion.policy_id == "old"
        assert await look_once(database, SETTINGS, clock=lambda: 3600.0) == []
    finally:
        await database.close()


def insertion(rows: list[dict[str, Any]]) -> Callable[[sa.Connection], None]:
    def insert(connection: sa.Connection) -> None:
        connection.execute(sa.insert(tables.decisions), rows)

    return insert
