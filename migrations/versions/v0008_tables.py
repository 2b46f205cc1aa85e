"""The first tables, and triggers that keep ledger entries immutable.

The same statements serve SQLite and Postgres; only the triggers differ. Eight revisions before the first release
are one here, under the name of the last of them, so that a database made by them is taken over as it is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "audit_trail",
    "decisions",
    "exploration_days",
    "feedback",
    "holds",
    "idempotency",
    "keys",
    "ledger_entries",
    "nightly_runs",
    "policies",
    "policy_events",
    "sessions",
    "tenants",
)

FUNCTIONS = (
    "seqroute_apply(boolean, boolean, boolean, jsonb)",
    "seqroute_remember(text, text)",
    "seqroute_next_reset(text, bigint)",
    "seqroute_now_ms()",
    "seqroute_immutable()",
)
"""All but the last are created after the newest revision, and dropped with the first."""


def upgrade() -> None:
    """Create the tables, and triggers that the databases need."""
    create_tables()
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER ledger_entries_no_{verb.lower()} BEFORE {verb} ON ledger_entries "
                "BEGIN SELECT RAISE(ABORT, 'ledger entries are immutable'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION seqroute_immutable() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'ledger entries are immutable' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER ledger_entries_immutable BEFORE UPDATE OR DELETE ON ledger_entries "
        "FOR EACH ROW EXECUTE FUNCTION seqroute_immutable()"
    )
    op.execute(
        "CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION seqroute_immutable()"
    )
    # Rows of accounts and holds change often and grow a little: free space lets updates stay on their page.
    for table in ("tenants", "sessions", "holds", "keys", "decisions"):
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")
    op.execute("ALTER TABLE tenants SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)")


def downgrade() -> None:
    """Undo this revision."""
    for table in reversed(TABLES):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        for function in FUNCTIONS:
            op.execute(f"DROP FUNCTION IF EXISTS {function}")


def create_tables() -> None:
    """Create every table and index of this revision."""
    op.create_table(
        "audit_trail",
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("previous_decision_id", sa.String(length=64), nullable=True),
        sa.Column("completion_id", sa.String(length=128), nullable=True),
        sa.Column("endpoint", sa.String(length=16), server_default="chat", nullable=False),
        sa.Column("requested_model", sa.String(length=256), nullable=False),
        sa.Column("feature_version", sa.Integer(), nullable=False),
        sa.Column("features", sa.LargeBinary(), nullable=False),
        sa.Column("candidate_features", sa.LargeBinary(), nullable=False),
        sa.Column("candidates", sa.Text(), nullable=False),
        sa.Column("lambda_per_usd", sa.Float(), nullable=False),
        sa.Column("session_budget_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("remaining_before_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("remaining_after_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("expected_turns", sa.Integer(), nullable=True),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("action", sa.Integer(), nullable=False),
        sa.Column("propensity", sa.Float(), nullable=False),
        sa.Column("uniform", sa.Float(), nullable=False),
        sa.Column("policy_id", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.String(length=24), nullable=False),
        sa.Column("shadow_policy_id", sa.String(length=128), nullable=True),
        sa.Column("shadow_model", sa.String(length=256), nullable=True),
        sa.Column("status", sa.String(length=10), server_default="pending", nullable=False),
        sa.Column("reserved_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("usage_source", sa.String(length=10), nullable=True),
        sa.Column("input_tokens", sa.Integer(), nullable=True),
        sa.Column("cached_tokens", sa.Integer(), nullable=True),
        sa.Column("output_tokens", sa.Integer(), nullable=True),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        sa.Column("first_byte_ms", sa.Integer(), nullable=True),
        sa.Column("finish_reason", sa.String(length=32), nullable=True),
        sa.Column("error_code", sa.String(length=48), nullable=True),
        sa.Column("signals", sa.Text(), server_default="{}", nullable=False),
        sa.Column("request_text", sa.Text(), nullable=True),
        sa.Column("response_text", sa.Text(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("completed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("origin", sa.String(length=8), nullable=True),
        sa.Column("exploration_floor", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'completed', 'failed', 'truncated', 'cancelled', 'orphaned')",
            name="decisions_status",
        ),
        sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="decisions_propensity"),
        sa.PrimaryKeyConstraint("decision_id"),
    )
    op.create_index("decisions_by_completion", "decisions", ["tenant_id", "completion_id"])
    op.create_index("decisions_by_session", "decisions", ["tenant_id", "session_id", "turn"])
    op.create_index("decisions_by_time", "decisions", ["created_at_ms"])
    op.create_index(
        "decisions_pending",
        "decisions",
        ["created_at_ms"],
        unique=False,
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_table(
        "exploration_days",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("extra_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("quality_given_up", sa.Float(), server_default="0", nullable=False),
        sa.CheckConstraint("extra_nanousd >= 0", name="exploration_days_not_negative"),
        sa.PrimaryKeyConstraint("day"),
    )
    op.create_table(
        "feedback",
        sa.Column("feedback_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("decision_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("score >= 0 AND score <= 1", name="feedback_score"),
        sa.PrimaryKeyConstraint("feedback_id"),
        sa.UniqueConstraint("tenant_id", "session_id", "decision_id", "source", "name", name="feedback_once"),
    )
    op.create_index("feedback_by_decision", "feedback", ["decision_id"])
    op.create_index("feedback_by_time", "feedback", ["created_at_ms"])
    op.create_table(
        "holds",
        sa.Column("hold_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=True),
        sa.Column("decision_id", sa.String(length=64), nullable=False),
        sa.Column("attempt_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("amount_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("dispatched", sa.Integer(), server_default="0", nullable=False),
        sa.Column("checkpoint_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("posted_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("late", sa.Integer(), server_default="0", nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("resolved_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'open') = (resolved_at_ms IS NULL)", name="holds_resolved_once"),
        sa.CheckConstraint("state IN ('open', 'settled', 'released', 'expired', 'orphaned')", name="holds_state"),
        sa.CheckConstraint("amount_nanousd >= 0", name="holds_amount_not_negative"),
        sa.CheckConstraint("checkpoint_nanousd BETWEEN 0 AND amount_nanousd", name="holds_checkpoint_within"),
        sa.CheckConstraint("posted_nanousd >= 0", name="holds_posted_not_negative"),
        sa.PrimaryKeyConstraint("hold_id"),
        sa.UniqueConstraint("attempt_id"),
    )
    op.create_index("holds_by_decision", "holds", ["decision_id"])
    op.create_index(
        "holds_open_by_expiry",
        "holds",
        ["expires_at_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("body_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("decision_id", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("headers", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "idempotency_key"),
    )
    op.create_index("idempotency_by_decision", "idempotency", ["decision_id"])
    op.create_index("idempotency_by_expiry", "idempotency", ["expires_at_ms"])
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("key_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("key_prefix", sa.String(length=8), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), server_default="tenant", nullable=False),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("has_budget", sa.Integer(), server_default="0", nullable=False),
        *_amounts(),
        sa.Column("window", sa.String(length=16), nullable=True),
        sa.Column("reset_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("role IN ('tenant', 'service', 'admin', 'read-only')", name="keys_role"),
        *_account_checks("keys"),
        sa.PrimaryKeyConstraint("key_id"),
        sa.UniqueConstraint("key_sha256"),
    )
    op.create_index("keys_by_tenant", "keys", ["tenant_id"])
    op.create_table(
        "ledger_entries",
        sa.Column("entry_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=12), nullable=False),
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("amount_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("granted_delta_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved_delta_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_delta_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("overage_delta_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=True),
        sa.Column("key_id", sa.String(length=64), nullable=True),
        sa.Column("hold_id", sa.String(length=64), nullable=True),
        sa.Column("attempt_id", sa.String(length=64), nullable=True),
        sa.Column("decision_id", sa.String(length=64), nullable=True),
        sa.Column("model", sa.String(length=256), nullable=True),
        sa.Column("usage_source", sa.String(length=10), server_default="none", nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('grant', 'reserve', 'settle', 'release', 'expire', 'orphan_post', "
            "'late_post', 'overage', 'reset')",
            name="ledger_entries_kind",
        ),
        sa.CheckConstraint("scope IN ('turn', 'tenant', 'session', 'key')", name="ledger_entries_scope"),
        sa.CheckConstraint("usage_source IN ('reported', 'estimated', 'none')", name="ledger_entries_usage_source"),
        sa.PrimaryKeyConstraint("entry_id"),
    )
    op.create_index("ledger_entries_by_session", "ledger_entries", ["tenant_id", "session_id", "entry_id"])
    op.create_index(
        "ledger_entries_once",
        "ledger_entries",
        ["hold_id", "kind"],
        unique=True,
        sqlite_where=sa.text("hold_id IS NOT NULL"),
        postgresql_where=sa.text("hold_id IS NOT NULL"),
    )
    op.create_index(
        "ledger_entries_one_terminal",
        "ledger_entries",
        ["hold_id"],
        unique=True,
        sqlite_where=sa.text("kind IN ('settle', 'release', 'expire', 'orphan_post')"),
        postgresql_where=sa.text("kind IN ('settle', 'release', 'expire', 'orphan_post')"),
    )
    op.create_table(
        "nightly_runs",
        sa.Column("job", sa.String(length=32), nullable=False),
        sa.Column("run_date", sa.String(length=10), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("job", "run_date"),
    )
    op.create_table(
        "policies",
        sa.Column("policy_id", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("stage", sa.String(length=12), nullable=False),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("report", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("staged_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("pinned", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "stage IN ('candidate', 'shadow', 'canary', 'champion', 'retired', 'rejected')", name="policies_stage"
        ),
        sa.PrimaryKeyConstraint("policy_id"),
    )
    op.create_index(
        "policies_one_champion",
        "policies",
        ["stage"],
        unique=True,
        sqlite_where=sa.text("stage = 'champion'"),
        postgresql_where=sa.text("stage = 'champion'"),
    )
    op.create_table(
        "policy_events",
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("policy_id", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_table(
        "sessions",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        *_amounts(),
        sa.Column("state", sa.String(length=8), server_default="open", nullable=False),
        sa.Column("turns", sa.Integer(), server_default="0", nullable=False),
        sa.Column("expected_turns", sa.Integer(), nullable=True),
        sa.Column("memory", sa.Text(), server_default="{}", nullable=False),
        sa.Column("last_decision_id", sa.String(length=64), nullable=True),
        sa.Column("quality_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("quality_sum", sa.Float(), server_default="0", nullable=False),
        sa.Column("last_quality", sa.Float(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('open', 'closed')", name="sessions_state"),
        *_account_checks("sessions"),
        sa.PrimaryKeyConstraint("tenant_id", "session_id"),
    )
    fingerprinted = sa.text("substr(session_id, 1, 3) = 'fp:'")
    op.create_index(
        "sessions_fingerprints",
        "sessions",
        ["tenant_id", "session_id"],
        sqlite_where=fingerprinted,
        postgresql_where=fingerprinted,
        postgresql_ops={"session_id": "text_pattern_ops"},
    )
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        *_amounts(),
        sa.Column("window", sa.String(length=16), nullable=True),
        sa.Column("reset_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("max_session_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("outage", sa.String(length=8), server_default="closed", nullable=False),
        sa.Column("store_text", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("outage IN ('closed', 'open')", name="tenants_outage"),
        *_account_checks("tenants"),
        sa.PrimaryKeyConstraint("tenant_id"),
        sa.UniqueConstraint("name"),
    )


def _amounts() -> list[sa.Column[int]]:
    """The four sums of an account."""
    names = ("granted_nanousd", "reserved_nanousd", "spent_nanousd", "overage_nanousd")
    return [sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in names]


def _account_checks(table: str) -> list[sa.CheckConstraint]:
    """No sum is negative, and what is held and spent stays within what was granted."""
    never = "reserved_nanousd + spent_nanousd - overage_nanousd <= granted_nanousd"
    return [
        sa.CheckConstraint("granted_nanousd >= 0", name=f"{table}_granted_not_negative"),
        sa.CheckConstraint("overage_nanousd >= 0", name=f"{table}_overage_not_negative"),
        sa.CheckConstraint(never, name=f"{table}_never_overspent"),
        sa.CheckConstraint("reserved_nanousd >= 0", name=f"{table}_reserved_not_negative"),
        sa.CheckConstraint("spent_nanousd >= 0", name=f"{table}_spent_not_negative"),
    ]
