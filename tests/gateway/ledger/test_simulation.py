"""Seeded simulations of turns, faults and crashes over the real ledger; and that the simulation can tell.

More seeds: `python -m tests.harness.simulator --seeds 0:10000`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from gateway.ledger import sqlite as ledger_sqlite
from gateway.ledger import sqlite_reserve as ledger_sqlite_reserve
from gateway.ledger import sqlite_resolve as ledger_sqlite_resolve
from gateway.ledger import statements as ledger_statements
from gateway.ledger.ledger import Ledger
from tests.harness.simulator import Simulation, simulate, template

SEEDS, BATCH = 20, 10
"""`make soak` runs thousands."""


@pytest.fixture(scope="module")
def empty() -> Any:
    return template()


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_seed_breaks_a_law(empty: Any, first: int) -> None:
    for seed in range(first, first + BATCH):
        try:
            simulate(seed, empty)
        except Exception as error:
            error.add_note(f"again: python -m tests.harness.simulator --seeds {seed}:{seed + 1}")
            raise


def forgets_bills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "_keep_if_unavailable", lambda *_: None)


def never_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_sqlite, "find_leases", lambda *_: [])


def forgets_the_session_s_share(monkeypatch: pytest.MonkeyPatch) -> None:
    move = ledger_statements.MOVE_SESSION.replace("spent_nanousd + :spent", "spent_nanousd + 0")
    assert move != ledger_statements.MOVE_SESSION
    monkeypatch.setattr(ledger_statements, "MOVE_SESSION", move)


def forgets_the_sessions_above(monkeypatch: pytest.MonkeyPatch) -> None:
    move = ledger_statements.MOVE_ANCESTORS.replace("spent_nanousd + :spent", "spent_nanousd + 0")
    assert move != ledger_statements.MOVE_ANCESTORS
    monkeypatch.setattr(ledger_statements, "MOVE_ANCESTORS", move)


def posts_late_bills_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    late = ledger_sqlite_resolve._late

    def whole(cursor: Any, hold: Any, op: Any, now_ms: int) -> Any:
        return late(cursor, structs.replace(hold, posted_nanousd=0), op, now_ms)

    monkeypatch.setattr(ledger_sqlite_resolve, "_late", whole)


def keeps_what_was_posted_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    late = ledger_sqlite_resolve._late
    monkeypatch.setattr(
        ledger_sqlite_resolve,
        "_late",
        lambda cursor, hold, op, now_ms: late(cursor, hold, structs.replace(op, usage_source="estimated"), now_ms),
    )


def trusts_each_gateway_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Simulation, "database_clock", lambda self, wall: wall)


@pytest.mark.parametrize(
    "sabotage",
    [
        forgets_bills,
        never_sweeps,
        forgets_the_session_s_share,
        forgets_the_sessions_above,
        posts_late_bills_whole,
        keeps_what_was_posted_too_much,
        trusts_each_gateway_s_clock,
    ],
)
def test_a_sabotaged_ledger_is_found_out(
    empty: Any, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None]
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(40):
            simulate(seed, empty)


def test_a_seed_repeats_itself(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed makes the same history, step by step: a failing one can be looked at."""
    histories: list[list[tuple[str, int]]] = []
    reserve = ledger_sqlite_reserve.reserve

    for _ in range(2):
        history: list[tuple[str, int]] = []

        def seen(cursor: Any, op: Any, now_ms: int, history: list[tuple[str, int]] = history) -> Any:
            outcome = reserve(cursor, op, now_ms)
            history.append((f"{op.hold_id} {outcome}", now_ms))
            return outcome

        monkeypatch.setattr(ledger_sqlite, "reserve", seen)
        simulate(7, empty)
        histories.append(history)
    assert histories[0] == histories[1]
    assert len(histories[0]) > 3
