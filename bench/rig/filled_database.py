"""Generator of a long history: millions of consistent settled turns, made in the database.

Every session has eight turns of 1,000 nano-USD; tenant 0 is `default`, which benchmarks spend from. Identifiers are as
long as real ones and sort before them, like older ones. The audit finds no violation (tests/bench/test_bulk.py), so
that reads of the tables behave as in production.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, text

from gateway.database.database import transaction

TURNS = 8
TENANTS = 100
HELD_NANOUSD = 2_000
BILLED_NANOUSD = 1_000
SESSION_NANOUSD = 1_000_000_000
TENANT_NANOUSD = 10**15
PAST_MS = 1_700_000_000_000
BATCH_SESSIONS = 25_000
CANDIDATES = [
    {"model": "small", "feasible": True, "quality": 0.6, "cost_nano_usd": 1_000, "probability": 1.0},
    {"model": "big", "feasible": True, "quality": 0.9, "cost_nano_usd": 10_000, "probability": 0.0},
]

_ENTRY = """INSERT INTO ledger_entries (kind, scope, amount_nanousd, granted_delta_nanousd, reserved_delta_nanousd,
  spent_delta_nanousd, tenant_id, session_id, hold_id, attempt_id, decision_id, model, usage_source, created_at_ms) """


@dataclass(frozen=True, slots=True)
class DialectSql:
    """SQL of a dialect for number series (i from :low to :high), padding and bytes."""

    numbers: str
    pad: str
    blob: str

    def identifier(self, prefix: str, number: str = "i") -> str:
        """SQL of an identifier with a padded number."""
        return f"'{prefix}_' || " + self.pad.format(number)


DIALECTS = {
    "sqlite": DialectSql(
        "(WITH RECURSIVE n(i) AS (SELECT :low UNION ALL SELECT i + 1 FROM n WHERE i < :high) SELECT i FROM n) AS n",
        "printf('%026d', {})",
        "zeroblob({})",
    ),
    "postgresql": DialectSql(
        "generate_series(CAST(:low AS bigint), CAST(:high AS bigint)) AS n(i)",
        "lpad(CAST({} AS text), 26, '0')",
        "decode(repeat('00', {}), 'hex')",
    ),
}


@dataclass(frozen=True, slots=True)
class Past:
    """Times of the turns, one every `step_ms`, and the candidates of each as JSON."""

    start_ms: int = PAST_MS
    step_ms: int = 1
    candidates: str = "[]"

    def at(self, number: str) -> str:
        """SQL of the time of a turn."""
        return f"{self.start_ms} + ({number}) * {self.step_ms}"


def fill(url: str, decisions: int, *, vector_bytes: int = 256, past: Past = Past()) -> Iterator[int]:
    """Fill an empty, migrated database; yields the number of decisions after each transaction.

    `decisions` is rounded up to whole sessions. `vector_bytes` is the size of each of the two feature vectors.
    """
    sessions = -(-decisions // TURNS)
    with transaction(url) as connection:
        _tenants(connection, sessions)
    for low in range(0, sessions, BATCH_SESSIONS):
        high = min(low + BATCH_SESSIONS, sessions)
        with transaction(url) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            _sessions(connection, low, high, past)
            _turns(connection, low * TURNS, high * TURNS, vector_bytes, past)
        yield high * TURNS


def _tenant(session: str) -> str:
    return f"CASE WHEN {session} % {TENANTS} = 0 THEN 'default' ELSE 'past-' || ({session} % {TENANTS}) END"


def _tenants(connection: Connection, sessions: int) -> None:
    for number in range(TENANTS):
        owned = len(range(number, sessions, TENANTS))
        values = {
            "tenant": "default" if number == 0 else f"past-{number}",
            "granted": TENANT_NANOUSD,
            "spent": owned * TURNS * BILLED_NANOUSD,
            "at": PAST_MS,
        }
        connection.execute(
            text(
                "INSERT INTO tenants (tenant_id, name, granted_nanousd, spent_nanousd, created_at_ms) "
                "VALUES (:tenant, :tenant, :granted, :spent, :at)"
            ),
            values,
        )
        connection.execute(
            text(_ENTRY + "VALUES ('grant', 'tenant', :granted, :granted, 0, 0, :tenant, NULL, NULL, NULL, NULL, NULL, "
                 "'none', :at)"),
            {name: value for name, value in values.items() if name != "spent"},
        )  # fmt: skip


def _sessions(connection: Connection, low: int, high: int, past: Past) -> None:
    dialect = DIALECTS[connection.dialect.name]
    at, tenant, session = past.at(f"i * {TURNS}"), _tenant("i"), dialect.identifier("past")
    bounds = {"low": low, "high": high - 1}
    connection.execute(
        text(f"""INSERT INTO sessions (tenant_id, session_id, granted_nanousd, spent_nanousd, turns, last_decision_id,
          created_at_ms, updated_at_ms)
        SELECT {tenant}, {session}, {SESSION_NANOUSD}, {TURNS * BILLED_NANOUSD}, {TURNS},
          {dialect.identifier("dec", f"(i + 1) * {TURNS} - 1")}, {at}, {at} FROM {dialect.numbers}"""),
        bounds,
    )
    connection.execute(
        text(
            _ENTRY
            + f"""SELECT 'grant', 'session', {SESSION_NANOUSD}, {SESSION_NANOUSD}, 0, 0, {tenant}, {session},
          NULL, NULL, NULL, NULL, 'none', {at} FROM {dialect.numbers}"""
        ),
        bounds,
    )


def _turns(connection: Connection, low: int, high: int, vector_bytes: int, past: Past) -> None:
    dialect = DIALECTS[connection.dialect.name]
    at, tenant = past.at("i"), _tenant(f"(i / {TURNS})")
    session = dialect.identifier("past", f"i / {TURNS}")
    hold, attempt, decision = (dialect.identifier(prefix) for prefix in ("hold", "att", "dec"))
    bounds = {"low": low, "high": high - 1}
    blob = dialect.blob.format(vector_bytes)
    connection.execute(
        text(f"""INSERT INTO decisions (decision_id, tenant_id, session_id, turn, completion_id, requested_model,
          feature_version, features, candidate_features, candidates, lambda_per_usd, session_budget_nanousd,
          remaining_before_nanousd, remaining_after_nanousd, model, action, propensity, uniform, policy_id, reason,
          status, reserved_nanousd, cost_nanousd, usage_source, input_tokens, output_tokens, latency_ms, finish_reason,
          created_at_ms, completed_at_ms)
        SELECT {decision}, {tenant}, {session}, i % {TURNS} + 1, {dialect.identifier("chatcmpl")}, 'auto', 1, {blob},
          {blob}, :candidates, 1, {SESSION_NANOUSD}, {SESSION_NANOUSD}, {SESSION_NANOUSD}, 'small', 0, 1, 0.5,
          'resolving', 'policy', 'completed', {HELD_NANOUSD},
          {BILLED_NANOUSD}, 'reported', 40, 20, 800, 'stop', {at}, {at} + 800
        FROM {dialect.numbers}"""),
        bounds | {"candidates": past.candidates},
    )
    connection.execute(
        text(f"""INSERT INTO holds (hold_id, tenant_id, session_id, decision_id, attempt_id, model, amount_nanousd,
          state, dispatched, posted_nanousd, expires_at_ms, created_at_ms, resolved_at_ms)
        SELECT {hold}, {tenant}, {session}, {decision}, {attempt}, 'small', {HELD_NANOUSD}, 'settled', 1,
          {BILLED_NANOUSD}, {at} + 120000, {at}, {at} + 800 FROM {dialect.numbers}"""),
        bounds,
    )
    for kind, amount, reserved, spent, usage in (
        ("reserve", HELD_NANOUSD, HELD_NANOUSD, 0, "none"),
        ("settle", BILLED_NANOUSD, -HELD_NANOUSD, BILLED_NANOUSD, "reported"),
    ):
        connection.execute(
            text(_ENTRY + f"""SELECT '{kind}', 'turn', {amount}, 0, {reserved}, {spent}, {tenant}, {session}, {hold},
              {attempt}, {decision}, 'small', '{usage}', {at} FROM {dialect.numbers}"""),
            bounds,
        )  # fmt: skip
