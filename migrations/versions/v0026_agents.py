"""Trees, stored responses, conversations, rate limits, webhooks, refunds, hourly sums.

Expand only, except for the index of fingerprints, without which a gateway of the revision before is only slower.
Eight revisions before the first release are one here, under the name of the last of them.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0008"
branch_labels = None
depends_on = None

SESSION_STATES = ("state IN ('open', 'closed')", "state IN ('open', 'paused', 'closed')")
ENTRY_KINDS = (
    "kind IN ('grant', 'reserve', 'settle', 'release', 'expire', 'orphan_post', 'late_post', 'overage', 'reset')",
    "kind IN ('grant', 'reserve', 'settle', 'release', 'expire', 'orphan_post', 'late_post', 'refund', 'overage', "
    "'reset')",
)
"""The CHECK of the revision before, and of this one."""

ACCOUNT_COLUMNS = ("last_reset_at_ms", "rpm", "tpm", "parallel", "soft_budget_nanousd")
ADDED: tuple[tuple[str, str, sa.types.TypeEngine[Any]], ...] = (
    *((table, name, sa.BigInteger()) for table in ("tenants", "keys") for name in ACCOUNT_COLUMNS),
    ("keys", "previous_sha256", sa.LargeBinary(length=32)),
    ("keys", "previous_until_ms", sa.BigInteger()),
    ("holds", "limited", sa.Integer()),
    ("holds", "limit_key_id", sa.String(length=64)),
    ("holds", "limit_tokens", sa.BigInteger()),
    ("decisions", "failures", sa.Text()),
    ("sessions", "parent_session_id", sa.String(length=128)),
)
"""Nullable columns of the tables that were there: table, name, type."""
TABLES = (
    "usage_hours",
    "baseline_hours",
    "rollup_progress",
    "webhook_events",
    "responses",
    "conversation_beginnings",
    "rate_counts",
    "session_ancestors",
)
FUNCTIONS = (
    "seqroute_limit(jsonb, bigint, bigint, text, bigint, text, bigint)",
    "seqroute_count(jsonb, bigint, bigint, bigint)",
    "seqroute_recount(holds, bigint, bigint)",
    "seqroute_move_above(text, text, bigint, bigint, bigint, bigint)",
)


def upgrade() -> None:
    """Apply this revision."""
    _replace_check("ledger_entries", "ledger_entries_kind", *ENTRY_KINDS)
    _replace_check("sessions", "sessions_state", *SESSION_STATES)
    for table, name, kind in ADDED:
        op.add_column(table, sa.Column(name, kind, nullable=True))
    op.add_column("sessions", sa.Column("own_limit", sa.Integer(), nullable=False, server_default="1"))
    _create_hourly_sums()
    _create_webhooks()
    _create_responses()
    _create_conversations()
    _create_limits()
    _create_trees()


def downgrade() -> None:
    """Undo this revision: paused sessions become closed, and children sessions of their own."""
    if op.get_bind().dialect.name == "postgresql":
        for function in FUNCTIONS:
            op.execute(f"DROP FUNCTION IF EXISTS {function}")
    for table in TABLES:
        op.drop_table(table)
    for table, name in (
        ("holds", "holds_open_limited"),
        ("holds", "holds_open_limited_key"),
        ("keys", "keys_by_previous_secret"),
        ("sessions", "sessions_by_use"),
    ):
        op.drop_index(name, table)
    op.drop_column("sessions", "own_limit")
    for table, name, _ in reversed(ADDED):
        op.drop_column(table, name)
    begins = sa.text("substr(session_id, 1, 3) = 'fp:'")
    op.create_index(
        "sessions_fingerprints",
        "sessions",
        ["tenant_id", "session_id"],
        sqlite_where=begins,
        postgresql_where=begins,
        postgresql_ops={"session_id": "text_pattern_ops"},
    )
    op.execute("UPDATE sessions SET state = 'closed' WHERE state = 'paused'")
    _replace_check("sessions", "sessions_state", *reversed(SESSION_STATES))
    _replace_check("ledger_entries", "ledger_entries_kind", *reversed(ENTRY_KINDS))


def _create_hourly_sums() -> None:
    counts = ("turns", "spent_nanousd", "input_tokens", "cached_tokens", "output_tokens", "estimated_turns",
              "forced_turns", "cut_turns")  # fmt: skip
    _hourly("usage_hours", *(_count(name) for name in counts))
    _hourly(
        "baseline_hours",
        *(_count(name) for name in ("turns", "predicted_nanousd", "billed_nanousd", "quality_turns")),
        sa.Column("quality_sum", sa.Float(), server_default="0", nullable=False),
    )
    op.create_table(
        "rollup_progress",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("through_entry_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sessions_by_use", "sessions", ["updated_at_ms"])


def _create_webhooks() -> None:
    op.create_table(
        "webhook_events",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=512), nullable=False),
        sa.Column("account", sa.String(length=8), nullable=False),
        sa.Column("account_id", sa.String(length=256), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("granted_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("reset_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("accepted", sa.Integer(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
        sa.UniqueConstraint(
            "account", "account_id", "threshold", "granted_nanousd", "reset_at_ms", "url", name="webhook_events_once"
        ),
    )
    waiting = sa.text("done_at_ms IS NULL")
    op.create_index(
        "webhook_events_due", "webhook_events", ["due_at_ms"], sqlite_where=waiting, postgresql_where=waiting
    )


def _create_responses() -> None:
    op.create_table(
        "responses",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("response_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("items", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "response_id"),
    )
    op.create_index("responses_by_expiry", "responses", ["expires_at_ms"])


def _create_conversations() -> None:
    """Create the beginnings of conversations without an id; they replace the fingerprints."""
    op.create_table(
        "conversation_beginnings",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=24), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("opening", sa.Integer(), nullable=False),
        sa.Column("answer", sa.String(length=24), nullable=True),
        sa.Column("continued", sa.String(length=24), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key_id", "digest", "session_id"),
    )
    op.create_index("conversation_beginnings_by_time", "conversation_beginnings", ["at_ms"])
    op.drop_index("sessions_fingerprints", table_name="sessions")


def _create_limits() -> None:
    op.create_index("keys_by_previous_secret", "keys", ["previous_sha256"], unique=True)
    counted = sa.text("state = 'open' AND limited IS NOT NULL")
    op.create_index("holds_open_limited", "holds", ["tenant_id"], sqlite_where=counted, postgresql_where=counted)
    op.create_index("holds_open_limited_key", "holds", ["limit_key_id"], sqlite_where=counted, postgresql_where=counted)
    op.create_table(
        "rate_counts",
        sa.Column("account", sa.String(length=72), nullable=False),
        sa.Column("second", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "second"),
    )


def _create_trees() -> None:
    op.create_table(
        "session_ancestors",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("ancestor_id", sa.String(length=128), nullable=False),
        sa.Column("distance", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "ancestor_id"),
    )
    op.create_index("session_ancestors_by_ancestor", "session_ancestors", ["tenant_id", "ancestor_id"])


def _hourly(name: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        name,
        sa.Column("hour_ms", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("hour_ms", "tenant_id", "model"),
    )


def _count(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def _replace_check(table: str, name: str, before: str, after: str) -> None:
    """Replace a CHECK without copying the table; entries of the ledger are immutable.

    SQLite needs the table's stored text changed for that, as its documentation of ALTER TABLE describes.
    """
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.drop_constraint(name, table)
        op.create_check_constraint(name, table, after)
        return
    version = bind.exec_driver_sql("PRAGMA schema_version").scalar_one()
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = bind.exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = ? AND instr(sql, ?) > 0",
        (before, after, table, before),
    ).rowcount
    bind.exec_driver_sql(f"PRAGMA schema_version = {int(version) + 1}")
    bind.exec_driver_sql("PRAGMA writable_schema = RESET")
    if changed != 1:
        raise RuntimeError(f"{table}: expected CHECK ({before}), found another table text")
