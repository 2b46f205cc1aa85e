"""SQLAlchemy Core tables, the same on SQLite and Postgres; `migrations/` creates them.

Times are integers of milliseconds since the Unix epoch. Those that affect money (leases, windows, idempotency) come
from the ledger's clock: the database's on Postgres, the serving process's steady clock on SQLite. Money is BIGINT
nano-USD. Every account (tenant, key, session) has `granted, reserved, spent, overage` and a CHECK on its balance:
`available = granted - reserved - spent` is never below zero except by what a provider billed beyond the reserved
maximum, which is counted in `overage`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()


def _account(prefix: str) -> list[Column[int] | CheckConstraint]:
    """The four money columns of an account and their invariant."""
    return [
        Column("granted_nanousd", BigInteger, nullable=False, server_default="0"),
        Column("reserved_nanousd", BigInteger, nullable=False, server_default="0"),
        Column("spent_nanousd", BigInteger, nullable=False, server_default="0"),
        Column("overage_nanousd", BigInteger, nullable=False, server_default="0"),
        CheckConstraint("granted_nanousd >= 0", name=f"{prefix}_granted_not_negative"),
        CheckConstraint("reserved_nanousd >= 0", name=f"{prefix}_reserved_not_negative"),
        CheckConstraint("spent_nanousd >= 0", name=f"{prefix}_spent_not_negative"),
        CheckConstraint("overage_nanousd >= 0", name=f"{prefix}_overage_not_negative"),
        CheckConstraint(
            "reserved_nanousd + spent_nanousd - overage_nanousd <= granted_nanousd", name=f"{prefix}_never_overspent"
        ),
    ]


def _limits() -> list[Column[int]]:
    """What a tenant or a key may do at once and in a minute, and from which spending on its owner is told."""
    return [
        Column("rpm", BigInteger),  # null: the default of the configuration
        Column("tpm", BigInteger),
        Column("parallel", BigInteger),
        Column("soft_budget_nanousd", BigInteger),
    ]


tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", String(64), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    *_account("tenants"),
    Column("window", String(16)),  # "30d", "1mo"; null: the budget never resets
    Column("reset_at_ms", BigInteger),
    Column("last_reset_at_ms", BigInteger),  # start of the current window; null: the first one
    Column("max_session_nanousd", BigInteger),
    Column("models", Text),  # JSON list of allowed model names; null: all
    Column("outage", String(8), nullable=False, server_default="closed"),
    Column("store_text", Integer, nullable=False, server_default="0"),
    Column("created_at_ms", BigInteger, nullable=False),
    *_limits(),
    Column("wrap_up", Integer),  # 1, 0; null: as session_settings.wrap_up says
    CheckConstraint("outage IN ('closed', 'open')", name="tenants_outage"),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("key_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("key_prefix", String(8), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("role", String(16), nullable=False, server_default="tenant"),
    Column("models", Text),
    Column("has_budget", Integer, nullable=False, server_default="0"),  # 0: the key spends its tenant's money freely
    *_account("keys"),
    Column("window", String(16)),
    Column("reset_at_ms", BigInteger),
    Column("last_reset_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("revoked_at_ms", BigInteger),
    Column("created_at_ms", BigInteger, nullable=False),
    *_limits(),
    Column("previous_sha256", LargeBinary(32)),  # the secret before the last rotation
    Column("previous_until_ms", BigInteger),  # and until when it is still good
    CheckConstraint("role IN ('tenant', 'service', 'admin', 'read-only')", name="keys_role"),
    Index("keys_by_tenant", "tenant_id"),
    Index("keys_by_previous_secret", "previous_sha256", unique=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("tenant_id", String(64), nullable=False),
    Column("session_id", String(128), nullable=False),
    *_account("sessions"),
    Column("state", String(8), nullable=False, server_default="open"),
    Column("turns", Integer, nullable=False, server_default="0"),
    Column("expected_turns", Integer),
    # What the next turn's observation needs, updated with each settle; JSON, owned by gateway/routing/session.py.
    Column("memory", Text, nullable=False, server_default="{}"),
    Column("last_decision_id", String(64)),
    # Running sums of feedback scores, for the next turn's observation.
    Column("quality_count", Integer, nullable=False, server_default="0"),
    Column("quality_sum", Float, nullable=False, server_default="0"),
    Column("last_quality", Float),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    # The session whose money this one spends too, set when it is opened; its balance contains what this one spends.
    Column("parent_session_id", String(128)),
    Column("own_limit", Integer, nullable=False, server_default="1"),  # 0: a child that its parent's budget limits
    # Kept for the last answer: only a closing turn of this session may hold it, no charge and no session below.
    Column("kept_nanousd", BigInteger, nullable=False, server_default="0"),
    PrimaryKeyConstraint("tenant_id", "session_id"),
    CheckConstraint("state IN ('open', 'paused', 'closed')", name="sessions_state"),
)
Index("sessions_by_use", sessions.c.updated_at_ms)
Index("sessions_by_id", sessions.c.session_id, postgresql_ops={"session_id": "text_pattern_ops"})

session_ancestors = Table(
    "session_ancestors",
    metadata,
    # One row for each session above a child: its parent at distance 1, and so on to the root.
    Column("tenant_id", String(64), nullable=False),
    Column("session_id", String(128), nullable=False),
    Column("ancestor_id", String(128), nullable=False),
    Column("distance", Integer, nullable=False),
    PrimaryKeyConstraint("tenant_id", "session_id", "ancestor_id"),
    Index("session_ancestors_by_ancestor", "tenant_id", "ancestor_id"),
)

holds = Table(
    "holds",
    metadata,
    Column("hold_id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("session_id", String(128), nullable=False),
    Column("key_id", String(64)),  # only when the key has its own budget
    Column("decision_id", String(64), nullable=False),
    Column("attempt_id", String(64), nullable=False, unique=True),
    Column("model", String(256), nullable=False),
    Column("amount_nanousd", BigInteger, nullable=False),
    # open -> settled | released | expired (nothing dispatched) | orphaned (posted by the sweeper)
    Column("state", String(10), nullable=False),
    Column("dispatched", Integer, nullable=False, server_default="0"),
    # Posted by the sweeper if this process dies: last checkpoint plus margin, at most amount_nanousd.
    Column("checkpoint_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("posted_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("late", Integer, nullable=False, server_default="0"),  # 1: the single late_post or refund was posted
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("resolved_at_ms", BigInteger),
    # Rate limits: whose counters the turn is in (1 the tenant's, 2 the key's), as which key, with how many tokens.
    Column("limited", Integer),
    Column("limit_key_id", String(64)),
    Column("limit_tokens", BigInteger),
    CheckConstraint("amount_nanousd >= 0", name="holds_amount_not_negative"),
    CheckConstraint("checkpoint_nanousd BETWEEN 0 AND amount_nanousd", name="holds_checkpoint_within"),
    CheckConstraint("posted_nanousd >= 0", name="holds_posted_not_negative"),
    CheckConstraint("state IN ('open', 'settled', 'released', 'expired', 'orphaned')", name="holds_state"),
    CheckConstraint("(state = 'open') = (resolved_at_ms IS NULL)", name="holds_resolved_once"),
    Index("holds_by_decision", "decision_id"),
)
Index(
    "holds_open_by_expiry",
    holds.c.expires_at_ms,
    sqlite_where=holds.c.state == "open",
    postgresql_where=holds.c.state == "open",
)

_OPEN_LIMITED = text("state = 'open' AND limited IS NOT NULL")
Index("holds_open_limited", holds.c.tenant_id, sqlite_where=_OPEN_LIMITED, postgresql_where=_OPEN_LIMITED)
Index("holds_open_limited_key", holds.c.limit_key_id, sqlite_where=_OPEN_LIMITED, postgresql_where=_OPEN_LIMITED)

rate_counts = Table(
    "rate_counts",
    metadata,
    # What an account did in one second; "t:" and a tenant's id, or "k:" and a key's. The last two minutes are kept.
    Column("account", String(72), nullable=False),
    Column("second", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("account", "second"),
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    # Immutable: triggers of the first migration refuse UPDATE and DELETE.
    Column("entry_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("kind", String(12), nullable=False),
    # Accounts the deltas belong to: 'turn' = tenant, session and (when key_id is set) key; else the named one.
    Column("scope", String(8), nullable=False),
    Column("amount_nanousd", BigInteger, nullable=False),
    Column("granted_delta_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("reserved_delta_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("spent_delta_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("overage_delta_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("tenant_id", String(64), nullable=False),
    Column("session_id", String(128)),
    Column("key_id", String(64)),
    Column("hold_id", String(64)),
    Column("attempt_id", String(64)),
    Column("decision_id", String(64)),
    Column("model", String(256)),
    Column("usage_source", String(10), nullable=False, server_default="none"),
    Column("actor", String(64)),  # who granted, revoked or reset: a key id, "cli", "sweeper"
    Column("created_at_ms", BigInteger, nullable=False),
    CheckConstraint(
        "kind IN ('grant', 'reserve', 'settle', 'release', 'expire', 'orphan_post', 'late_post', 'refund', "
        "'overage', 'reset')",
        name="ledger_entries_kind",
    ),
    CheckConstraint("scope IN ('turn', 'tenant', 'session', 'key')", name="ledger_entries_scope"),
    CheckConstraint("usage_source IN ('reported', 'estimated', 'none')", name="ledger_entries_usage_source"),
    Index("ledger_entries_by_session", "tenant_id", "session_id", "entry_id"),
)
# At most one entry of each kind per hold, and exactly one of the terminal kinds, under any race.
Index(
    "ledger_entries_once",
    ledger_entries.c.hold_id,
    ledger_entries.c.kind,
    unique=True,
    sqlite_where=ledger_entries.c.hold_id.is_not(None),
    postgresql_where=ledger_entries.c.hold_id.is_not(None),
)
_TERMINAL = ledger_entries.c.kind.in_(("settle", "release", "expire", "orphan_post"))
Index(
    "ledger_entries_one_terminal",
    ledger_entries.c.hold_id,
    unique=True,
    sqlite_where=_TERMINAL,
    postgresql_where=_TERMINAL,
)

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("session_id", String(128), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("previous_decision_id", String(64)),
    Column("completion_id", String(128)),  # the id in the body the client saw
    Column("endpoint", String(16), nullable=False, server_default="chat"),
    Column("requested_model", String(256), nullable=False),
    # The policy's input, packed by policy/facts.py; `feature_version` is the version of that layout.
    Column("feature_version", Integer, nullable=False),
    Column("features", LargeBinary, nullable=False),
    Column("candidate_features", LargeBinary, nullable=False),
    Column(
        "candidates", Text, nullable=False
    ),  # JSON, one object per candidate; gateway/decisions/log.py names its fields
    Column("lambda_per_usd", Float, nullable=False),
    Column("session_budget_nanousd", BigInteger, nullable=False),
    Column("remaining_before_nanousd", BigInteger, nullable=False),
    Column("remaining_after_nanousd", BigInteger),
    Column("expected_turns", Integer),
    # The policy's output, and the probability with which the executed action was drawn.
    Column("model", String(256), nullable=False),
    Column("action", Integer, nullable=False),
    Column("propensity", Float, nullable=False),
    Column("uniform", Float, nullable=False),  # random number of the draw: the decision can be replayed
    Column("policy_id", String(128), nullable=False),
    Column("reason", String(24), nullable=False),
    Column("shadow_policy_id", String(128)),
    Column("shadow_model", String(256)),
    # The outcome. pending -> completed | failed | truncated | cancelled | orphaned
    Column("status", String(10), nullable=False, server_default="pending"),
    Column("reserved_nanousd", BigInteger, nullable=False),
    Column("cost_nanousd", BigInteger),
    Column("usage_source", String(10)),
    Column("input_tokens", Integer),
    Column("cached_tokens", Integer),
    Column("output_tokens", Integer),
    Column("latency_ms", Integer),
    Column("first_byte_ms", Integer),
    Column("finish_reason", String(32)),
    Column("error_code", String(48)),
    Column("failures", Text),  # JSON: the failed attempts, with the provider's words without secrets
    Column("signals", Text, nullable=False, server_default="{}"),  # JSON: implicit quality signals
    Column("request_text", Text),  # only for a tenant that opted in
    Column("response_text", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("completed_at_ms", BigInteger),
    Column("origin", String(8)),  # null: a client's turn; "admin", "judge", "embed", "moderate": not used for learning;
    # "second": another model's answer to the turn that its session names, used for its grade
    Column("exploration_floor", Float),  # at this turn, 0 when exploration was off; null: not recorded
    Column("lowered_max_tokens", BigInteger),  # the answer's limit, when money set it lower than the client
    Column("root_session_id", String(128)),  # of a session below others: the topmost; null: the session has no parent
    CheckConstraint("propensity > 0 AND propensity <= 1", name="decisions_propensity"),
    CheckConstraint(
        "status IN ('pending', 'completed', 'failed', 'truncated', 'cancelled', 'orphaned')", name="decisions_status"
    ),
    Index("decisions_by_session", "tenant_id", "session_id", "turn"),
    Index("decisions_by_completion", "tenant_id", "completion_id"),
    Index("decisions_by_time", "created_at_ms"),
)

# The sweeper looks for decisions whose process died between two attempts; nearly all rows are not pending.
Index(
    "decisions_pending",
    decisions.c.created_at_ms,
    sqlite_where=decisions.c.status == "pending",
    postgresql_where=decisions.c.status == "pending",
)

refused_turns = Table(
    "refused_turns",
    metadata,
    # Turns that got 402: they have no decision. session_id "": of sessions without a row. Written by
    # gateway/decisions/refused_turns.py.
    Column("tenant_id", String(64), nullable=False),
    Column("session_id", String(128), nullable=False),
    Column("code", String(48), nullable=False),
    Column("turns", BigInteger, nullable=False),
    Column("first_at_ms", BigInteger, nullable=False),
    Column("last_at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "session_id", "code"),
    Index("refused_turns_by_time", "last_at_ms"),
)
refusing_accounts = Table(
    "refusing_accounts",
    metadata,
    # When the budget of a tenant or key last refused a turn; written with `refused_turns`.
    Column("account", String(8), nullable=False),
    Column("account_id", String(64), nullable=False),
    Column("last_at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("account", "account_id"),
)

log_retention = Table(
    "log_retention",
    metadata,
    # Decisions made before `through_ms` may have been removed: train/log/retention.py.
    Column("name", String(32), primary_key=True),
    Column("through_ms", BigInteger, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("feedback_id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("session_id", String(128), nullable=False),
    Column("decision_id", String(64), nullable=False, server_default=""),  # "": about the whole session
    Column("source", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("score", Float, nullable=False),
    Column("comment", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    CheckConstraint("score >= 0 AND score <= 1", name="feedback_score"),
    UniqueConstraint("tenant_id", "session_id", "decision_id", "source", "name", name="feedback_once"),
    Index("feedback_by_decision", "decision_id"),
    Index("feedback_by_time", "created_at_ms"),
)

exploration_days = Table(
    "exploration_days",
    metadata,
    # Expected cost of exploration on a UTC day, over all replicas; gateway/routing/exploration.py adds to it.
    Column("day", String(10), primary_key=True),
    Column("extra_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("quality_given_up", Float, nullable=False, server_default="0"),
    CheckConstraint("extra_nanousd >= 0", name="exploration_days_not_negative"),
)

exploration_answers = Table(
    "exploration_answers",
    metadata,
    # Answers that training reads, and a share of every turn begun for them, by model and kind of prompt, faded to `day`
    # (UTC, days since 1970); gateway/routing/answers.py adds to them.
    Column("model", String(256), nullable=False),
    Column("kind", Integer, nullable=False),
    Column("day", Integer, nullable=False),
    Column("answers", Float, nullable=False),
    PrimaryKeyConstraint("model", "kind"),
)

policies = Table(
    "policies",
    metadata,
    Column("policy_id", String(128), primary_key=True),
    Column("kind", String(32), nullable=False),  # "learned" or the rule's name
    Column("stage", String(12), nullable=False),  # candidate, shadow, canary, champion, retired, rejected
    Column("path", Text),
    Column("manifest_sha256", String(64)),
    Column("report", Text, nullable=False, server_default="{}"),  # JSON: the gate's verdict and its numbers
    Column("pinned", Integer, nullable=False, server_default="0"),  # 1: only people replace this champion
    Column("created_at_ms", BigInteger, nullable=False),
    Column("staged_at_ms", BigInteger, nullable=False),
    CheckConstraint(
        "stage IN ('candidate', 'shadow', 'canary', 'champion', 'retired', 'rejected')", name="policies_stage"
    ),
)
Index(
    "policies_one_champion",
    policies.c.stage,
    unique=True,
    sqlite_where=policies.c.stage == "champion",
    postgresql_where=policies.c.stage == "champion",
)

policy_events = Table(
    "policy_events",
    metadata,
    Column("event_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("policy_id", String(128), nullable=False),
    Column("action", String(16), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("note", Text),
    Column("created_at_ms", BigInteger, nullable=False),
)

nightly_runs = Table(
    "nightly_runs",
    metadata,
    Column("job", String(32), nullable=False),
    Column("run_date", String(10), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("state", String(10), nullable=False),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger),
    PrimaryKeyConstraint("job", "run_date"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", String(64), nullable=False),
    Column("idempotency_key", String(255), nullable=False),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("decision_id", String(64), nullable=False),
    Column("status", Integer),  # null while the first request is still running
    Column("headers", Text),  # JSON
    Column("body", LargeBinary),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "idempotency_key"),
    Index("idempotency_by_expiry", "expires_at_ms"),
    Index("idempotency_by_decision", "decision_id"),
)

audit_trail = Table(
    "audit_trail",
    metadata,
    Column("event_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("actor", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("created_at_ms", BigInteger, nullable=False),
)


def _hourly(name: str, *columns: Column[Any]) -> Table:
    """Sums by hour, tenant and model; gateway/decisions/rollups.py adds to them."""
    return Table(
        name,
        metadata,
        Column("hour_ms", BigInteger, nullable=False),
        Column("tenant_id", String(64), nullable=False),
        Column("model", String(256), nullable=False),
        *columns,
        PrimaryKeyConstraint("hour_ms", "tenant_id", "model"),
    )


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


usage_hours = _hourly(
    "usage_hours",
    _count("turns"),
    _count("spent_nanousd"),
    _count("input_tokens"),
    _count("cached_tokens"),
    _count("output_tokens"),
    _count("estimated_turns"),
    _count("forced_turns"),
    _count("cut_turns"),
    _count("lowered_turns"),
)
baseline_hours = _hourly(
    "baseline_hours",
    _count("turns"),
    _count("predicted_nanousd"),
    _count("billed_nanousd"),
    _count("quality_turns"),
    Column("quality_sum", Float, nullable=False, server_default="0"),
)
rollup_progress = Table(
    "rollup_progress",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("through_entry_id", BigInteger, nullable=False),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("event_id", String(64), primary_key=True),
    Column("url", String(512), nullable=False),
    Column("account", String(8), nullable=False),
    Column("account_id", String(256), nullable=False),
    Column("threshold", Integer, nullable=False),
    # Identify the crossing together with the threshold: a raised budget or a new window makes a new one.
    Column("granted_nanousd", BigInteger, nullable=False),
    Column("reset_at_ms", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at_ms", BigInteger, nullable=False),
    Column("done_at_ms", BigInteger),  # null: not delivered yet
    Column("accepted", Integer),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint(
        "account", "account_id", "threshold", "granted_nanousd", "reset_at_ms", "url", name="webhook_events_once"
    ),
)
Index(
    "webhook_events_due",
    webhook_events.c.due_at_ms,
    sqlite_where=webhook_events.c.done_at_ms.is_(None),
    postgresql_where=webhook_events.c.done_at_ms.is_(None),
)

responses = Table(
    "responses",
    metadata,
    # Responses that a client may refer to later; none with `store: false`.
    Column("tenant_id", String(64), nullable=False),
    Column("response_id", String(64), nullable=False),
    Column("session_id", String(128), nullable=False),
    Column("response", Text, nullable=False),
    Column("items", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "response_id"),
    Index("responses_by_expiry", "expires_at_ms"),
)

conversation_beginnings = Table(
    "conversation_beginnings",
    metadata,
    # What the turns of conversations without an id leave, so that the next turn finds its session:
    # gateway/routing/conversations.py. `digest` is of the first `messages` messages, `answer` of the answer that they
    # got, `continued` of the message that a later turn brought behind them. `opening`: that turn began the session.
    Column("tenant_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("digest", String(24), nullable=False),
    Column("session_id", String(128), nullable=False),
    Column("messages", Integer, nullable=False),
    Column("opening", Integer, nullable=False),
    Column("answer", String(24)),
    Column("continued", String(24)),
    Column("at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "key_id", "digest", "session_id"),
    Index("conversation_beginnings_by_time", "at_ms"),
)
