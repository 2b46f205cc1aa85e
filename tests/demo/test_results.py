"""The demo's table, computed from a database made by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, create_engine, insert

from demo import results
from gateway.database import tables


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Two sessions of pass `a`, planned for 3 turns each: one answered in full, one refused after its first turn."""
    path = tmp_path / "seqroute.db"
    engine = create_engine(f"sqlite:///{path}")
    tables.metadata.create_all(engine)
    with engine.begin() as connection:
        session(connection, "a-0001", spent=3_000, turns=3)
        session(connection, "a-0002", spent=1_000, turns=1)
        session(connection, "ab-0001", spent=9_000, turns=1)
        numbers = itertools.count(1)
        for turn, (model, score) in enumerate([("sim-nano", 1.0), ("sim-large", 0.5), ("sim-large", 0.0)]):
            decision(connection, next(numbers), "a-0001", turn, model, score)
        decision(connection, next(numbers), "a-0002", 0, "sim-nano", 1.0)
        decision(connection, next(numbers), "ab-0001", 0, "sim-mid", 1.0)
    engine.dispose()
    return path


def session(connection: Connection, session_id: str, *, spent: int, turns: int) -> None:
    connection.execute(
        insert(tables.sessions).values(
            tenant_id="ten_1", session_id=session_id, granted_nanousd=10_000, spent_nanousd=spent, turns=turns,
            expected_turns=3, created_at_ms=1, updated_at_ms=1,
        )
    )  # fmt: skip


def decision(connection: Connection, number: int, session_id: str, turn: int, model: str, score: float) -> None:
    connection.execute(
        insert(tables.decisions).values(
            decision_id=f"dec_{number}", tenant_id="ten_1", session_id=session_id, turn=turn, requested_model="auto",
            feature_version=1, features=b"", candidate_features=b"", candidates="[]", lambda_per_usd=1.0,
            session_budget_nanousd=10_000, remaining_before_nanousd=10_000, model=model, action=0, propensity=1.0,
            uniform=0.5, policy_id="rule:resolving", reason="policy", status="completed", reserved_nanousd=100,
            input_tokens=100, cached_tokens=25, created_at_ms=number,
        )
    )  # fmt: skip
    connection.execute(
        insert(tables.feedback).values(
            feedback_id=f"fb_{number}", tenant_id="ten_1", session_id=session_id, decision_id=f"dec_{number}",
            source="key_1", name="graded", score=score, created_at_ms=number,
        )
    )  # fmt: skip


def test_an_unanswered_turn_earns_nothing_and_makes_the_session_bankrupt(database: Path) -> None:
    """By hand: (1 + .5 + 0) / 3 = .5 and 1 / 3; one session of two ended early, by two turns."""
    played = results.read_pass(database, "a")
    assert played.quality.tolist() == pytest.approx([0.5, 1 / 3])
    assert played.unanswered.tolist() == [0, 2]
    assert (played.sessions, played.bankrupt, played.answered, played.graded) == (2, 1, 4, 4)


def test_costs_switches_and_cache_are_read_from_the_rows(database: Path) -> None:
    """By hand: 4,000 nano-USD for 2.5 points; one switch inside session 1, none counted between sessions."""
    played = results.read_pass(database, "a")
    assert played.spent_usd.sum() == pytest.approx(4e-6)
    assert played.points_per_usd == pytest.approx(2.5 / 4e-6)
    assert played.switches == 1
    assert played.cached_share == pytest.approx(0.25)
    assert played.models == {"sim-nano": 2, "sim-large": 2}
    assert played.policies == ("rule:resolving",)


def test_totals_are_those_of_all_sessions(database: Path) -> None:
    assert results.ledger_totals(database) == {"settled": 13_000, "reserved": 0, "overage": 0}


def test_the_table_has_a_line_for_each_pass_and_a_cell_for_each_column(database: Path) -> None:
    contenders = [("rule", results.read_pass(database, "a"))]
    outcome, conduct = results.outcome_sheet(contenders), results.conduct_sheet(contenders)
    assert [len(line) for line in outcome.lines] == [len(outcome.header)]
    assert outcome.lines[0][0] == "rule"
    assert outcome.lines[0][-1] == "1 of 2"
    assert conduct.lines == (("rule", "4", "0.5", "25%", "nano 50%, large 50%"),)


def test_a_pass_that_was_never_played_is_empty_not_an_error(database: Path) -> None:
    played = results.read_pass(database, "nothing")
    assert (played.sessions, played.answered, played.bankrupt) == (0, 0, 0)


def test_bootstrap_of_equal_values_has_no_width_and_of_others_holds_the_mean() -> None:
    flat = results.bootstrap(np.full(20, 0.25))
    assert (flat.mean, flat.low, flat.high) == (0.25, 0.25, 0.25)
    spread = results.bootstrap(np.tile([0.0, 1.0], 50))
    assert spread.mean == 0.5
    # Standard error of 100 coin flips: .05, so the 95 % interval is about .402 to .598.
    assert spread.low == pytest.approx(0.402, abs=0.02)
    assert spread.high == pytest.approx(0.598, abs=0.02)
