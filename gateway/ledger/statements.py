"""SQL statements of the ledger on SQLite, compiled once from SQLAlchemy Core.

Executing Core directly costs more than the fsync; compiling still checks the names.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Table,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import sqlite as sqlite_dialect

from gateway.database.tables import (
    decisions,
    holds,
    idempotency,
    keys,
    ledger_entries,
    rate_counts,
    session_ancestors,
    sessions,
    tenants,
)
from gateway.ledger.records import CHARGE_PREFIX, DECISION_COLUMNS, SESSION_FACTS, abandon, forget

_DIALECT = sqlite_dialect.dialect(paramstyle="named")


def as_sql(statement: Executable) -> str:
    """The statement as text with named parameters; constants are inlined."""
    compiled = statement.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
    text = str(compiled)
    for name, value in compiled.params.items():
        if value is not None:
            literal = str(value) if isinstance(value, int) else f"'{value}'"
            text = re.sub(rf":{name}\b", literal, text)
    return text


def _all_columns(table: Table, names: tuple[str, ...]) -> str:
    return as_sql(insert(table).values({name: bindparam(name) for name in names}))


def _balance_of(table: Table) -> list[ColumnElement[int]]:
    return [table.c.granted_nanousd, table.c.reserved_nanousd, table.c.spent_nanousd, table.c.overage_nanousd]


_HERE = and_(sessions.c.tenant_id == bindparam("tenant"), sessions.c.session_id == bindparam("session"))
_THIS_HOLD = holds.c.hold_id == bindparam("hold")

TENANT = as_sql(
    select(*_balance_of(tenants), tenants.c.max_session_nanousd, tenants.c.reset_at_ms).where(
        tenants.c.tenant_id == bindparam("tenant")
    )
)
MAX_SESSION, RESET_AT = 4, 5
"""Places in a row of TENANT, behind its balance."""
SESSION = as_sql(
    select(
        *_balance_of(sessions),
        sessions.c.state,
        sessions.c.turns,
        sessions.c.last_decision_id,
        sessions.c.parent_session_id,
        sessions.c.own_limit,
        sessions.c.kept_nanousd,
    ).where(_HERE)
)
STATE, TURNS, LAST_DECISION, PARENT, OWN_LIMIT, KEPT = range(4, 10)
"""Places in a row of SESSION, behind its balance."""
_ABOVE = and_(
    session_ancestors.c.tenant_id == bindparam("tenant"), session_ancestors.c.session_id == bindparam("session")
)
CHAIN = as_sql(
    select(*_balance_of(sessions), sessions.c.state, sessions.c.kept_nanousd, sessions.c.session_id)
    .select_from(
        session_ancestors.join(
            sessions,
            and_(
                sessions.c.tenant_id == session_ancestors.c.tenant_id,
                sessions.c.session_id == session_ancestors.c.ancestor_id,
            ),
        )
    )
    .where(_ABOVE)
    .order_by(session_ancestors.c.distance)
)
ADD_PARENT = _all_columns(session_ancestors, ("tenant_id", "session_id", "ancestor_id", "distance"))
ADD_ANCESTORS = as_sql(
    insert(session_ancestors).from_select(
        ["tenant_id", "session_id", "ancestor_id", "distance"],
        select(
            session_ancestors.c.tenant_id,
            bindparam("child", type_=sessions.c.session_id.type),
            session_ancestors.c.ancestor_id,
            session_ancestors.c.distance + 1,
        ).where(_ABOVE),
    )
)
LAST_TENANT_RESET = as_sql(select(tenants.c.last_reset_at_ms).where(tenants.c.tenant_id == bindparam("tenant")))
LAST_KEY_RESET = as_sql(select(keys.c.last_reset_at_ms).where(keys.c.key_id == bindparam("key")))
MEMORY = as_sql(select(sessions.c.memory).where(_HERE))
KEY = as_sql(select(*_balance_of(keys), keys.c.has_budget, keys.c.reset_at_ms).where(keys.c.key_id == bindparam("key")))
_OVER = tenants.c.reset_at_ms <= bindparam("now")
# A window that has ended is shown as it will be reset: else its first turn would be refused before it could do so.
SNAPSHOT = as_sql(
    select(
        tenants.c.granted_nanousd,
        tenants.c.reserved_nanousd,
        case((_OVER, 0), else_=tenants.c.spent_nanousd),
        case((_OVER, 0), else_=tenants.c.overage_nanousd),
        sessions.c.session_id,
        *_balance_of(sessions),
        *(sessions.c[name] for name in SESSION_FACTS),
    )
    .select_from(
        tenants.outerjoin(
            sessions, and_(sessions.c.tenant_id == tenants.c.tenant_id, sessions.c.session_id == bindparam("session"))
        )
    )
    .where(tenants.c.tenant_id == bindparam("tenant"))
)
HOLD = as_sql(
    select(
        holds.c.tenant_id,
        holds.c.session_id,
        holds.c.key_id,
        holds.c.decision_id,
        holds.c.attempt_id,
        holds.c.model,
        holds.c.amount_nanousd,
        holds.c.state,
        holds.c.dispatched,
        holds.c.checkpoint_nanousd,
        holds.c.posted_nanousd,
        holds.c.late,
        holds.c.expires_at_ms,
        holds.c.resolved_at_ms,
        holds.c.created_at_ms,
        holds.c.limited,
        holds.c.limit_key_id,
        holds.c.limit_tokens,
    ).where(_THIS_HOLD)
)
OPEN_SESSION = _all_columns(
    sessions,
    (
        "tenant_id", "session_id", "granted_nanousd", "expected_turns", "created_at_ms", "updated_at_ms",
        "parent_session_id", "own_limit",
    ),
)  # fmt: skip
RESERVE_ON_SESSION = as_sql(
    update(sessions)
    .where(_HERE)
    .values(
        granted_nanousd=bindparam("granted"),
        reserved_nanousd=sessions.c.reserved_nanousd + bindparam("amount"),
        turns=sessions.c.turns + bindparam("new_turns"),
        last_decision_id=func.coalesce(bindparam("decision"), sessions.c.last_decision_id),
        expected_turns=func.coalesce(bindparam("expected"), sessions.c.expected_turns),
        own_limit=func.coalesce(bindparam("own_limit"), sessions.c.own_limit),
        kept_nanousd=bindparam("kept"),
        memory=func.coalesce(bindparam("memory"), sessions.c.memory),
        updated_at_ms=bindparam("now"),
    )
)
_MOVE = {
    "reserved_nanousd": bindparam("reserved", type_=holds.c.amount_nanousd.type),
    "spent_nanousd": bindparam("spent", type_=holds.c.amount_nanousd.type),
    "overage_nanousd": bindparam("overage", type_=holds.c.amount_nanousd.type),
}


def _moves(table: Table) -> dict[str, Any]:
    return {name: table.c[name] + value for name, value in _MOVE.items()}


MOVE_TENANT = as_sql(
    update(tenants)
    .where(tenants.c.tenant_id == bindparam("tenant"))
    .values(_moves(tenants))
    .returning(*_balance_of(tenants))
)
MOVE_KEY = as_sql(update(keys).where(keys.c.key_id == bindparam("key")).values(_moves(keys)))
MOVE_SESSION = as_sql(
    update(sessions)
    .where(_HERE)
    .values(
        {
            **_moves(sessions),
            "updated_at_ms": bindparam("now"),
            "memory": func.coalesce(bindparam("memory"), sessions.c.memory),
            "state": func.coalesce(bindparam("state"), sessions.c.state),
        }
    )
    .returning(*_balance_of(sessions), sessions.c.parent_session_id)
)
MOVE_ANCESTORS = as_sql(
    update(sessions)
    .where(
        sessions.c.tenant_id == bindparam("tenant"),
        sessions.c.session_id.in_(select(session_ancestors.c.ancestor_id).where(_ABOVE)),
    )
    .values({**_moves(sessions), "updated_at_ms": bindparam("now")})
    .returning(*_balance_of(sessions), sessions.c.kept_nanousd)
)
ADD_HOLD = _all_columns(
    holds,
    (
        "hold_id",
        "tenant_id",
        "session_id",
        "key_id",
        "decision_id",
        "attempt_id",
        "model",
        "amount_nanousd",
        "state",
        "dispatched",
        "checkpoint_nanousd",
        "expires_at_ms",
        "created_at_ms",
        "limited",
        "limit_key_id",
        "limit_tokens",
    ),
)
ADD_ENTRY = _all_columns(
    ledger_entries,
    (
        "kind",
        "scope",
        "amount_nanousd",
        "granted_delta_nanousd",
        "reserved_delta_nanousd",
        "spent_delta_nanousd",
        "overage_delta_nanousd",
        "tenant_id",
        "session_id",
        "key_id",
        "hold_id",
        "attempt_id",
        "decision_id",
        "model",
        "usage_source",
        "actor",
        "created_at_ms",
    ),
)
ADD_DECISION = _all_columns(decisions, DECISION_COLUMNS)
RESOLVE_HOLD = as_sql(
    update(holds)
    .where(_THIS_HOLD)
    .values(
        state=bindparam("new_state"),
        posted_nanousd=bindparam("posted"),
        late=bindparam("new_late"),
        resolved_at_ms=func.coalesce(holds.c.resolved_at_ms, bindparam("now")),
    )
)
DECISION_TURN = as_sql(select(decisions.c.turn).where(decisions.c.decision_id == bindparam("decision")))
CHECKPOINT = as_sql(
    update(holds)
    .where(_THIS_HOLD, holds.c.state == "open")
    .values(
        dispatched=1,
        checkpoint_nanousd=func.min(
            func.max(holds.c.checkpoint_nanousd, bindparam("checkpoint")), holds.c.amount_nanousd
        ),
        expires_at_ms=bindparam("expires"),
    )
)
CLAIM = as_sql(
    select(
        idempotency.c.body_sha256,
        idempotency.c.decision_id,
        idempotency.c.status,
        idempotency.c.headers,
        idempotency.c.body,
        idempotency.c.expires_at_ms,
    ).where(idempotency.c.tenant_id == bindparam("tenant"), idempotency.c.idempotency_key == bindparam("claim"))
)
DROP_CLAIM = as_sql(
    delete(idempotency).where(
        idempotency.c.tenant_id == bindparam("tenant"), idempotency.c.idempotency_key == bindparam("claim")
    )
)
MAKE_CLAIM = _all_columns(
    idempotency, ("tenant_id", "idempotency_key", "body_sha256", "decision_id", "created_at_ms", "expires_at_ms")
)
ANSWER_CLAIM = as_sql(
    update(idempotency)
    .where(idempotency.c.decision_id == bindparam("decision"), idempotency.c.status.is_(None))
    .values(status=bindparam("answer_status"), headers=bindparam("answer_headers"), body=bindparam("answer_body"))
)
DROP_OPEN_CLAIM = as_sql(
    delete(idempotency).where(idempotency.c.decision_id == bindparam("decision"), idempotency.c.status.is_(None))
)
CHARGE_LOST_DECISION = as_sql(
    update(decisions)
    .where(decisions.c.decision_id == bindparam("decision"))
    .values(
        cost_nanousd=func.coalesce(decisions.c.cost_nanousd, 0) + bindparam("cost"),
        usage_source=func.coalesce(decisions.c.usage_source, bindparam("source")),
        remaining_after_nanousd=bindparam("remaining"),
    )
)
ORPHAN_DECISION = as_sql(
    update(decisions)
    .where(decisions.c.decision_id == bindparam("decision"), decisions.c.status == "pending")
    .values(status="orphaned", error_code=bindparam("error"), completed_at_ms=bindparam("now"))
)
RESET_TENANT = as_sql(
    select(*_balance_of(tenants), tenants.c.window, tenants.c.reset_at_ms).where(
        tenants.c.tenant_id == bindparam("tenant")
    )
)
RESET_KEY = as_sql(
    select(*_balance_of(keys), keys.c.window, keys.c.reset_at_ms).where(keys.c.key_id == bindparam("key"))
)
NEXT_TENANT_WINDOW = as_sql(
    update(tenants)
    .where(tenants.c.tenant_id == bindparam("tenant"), tenants.c.reset_at_ms == bindparam("old"))
    .values(spent_nanousd=0, overage_nanousd=0, reset_at_ms=bindparam("new"), last_reset_at_ms=bindparam("now"))
)
NEXT_KEY_WINDOW = as_sql(
    update(keys)
    .where(keys.c.key_id == bindparam("key"), keys.c.reset_at_ms == bindparam("old"))
    .values(spent_nanousd=0, overage_nanousd=0, reset_at_ms=bindparam("new"), last_reset_at_ms=bindparam("now"))
)
END_LEASES = as_sql(
    update(holds)
    .where(holds.c.state == "open", func.substr(holds.c.hold_id, 1, len(CHARGE_PREFIX)) != CHARGE_PREFIX)
    .values(expires_at_ms=func.min(holds.c.expires_at_ms, bindparam("now")))
)
OPEN_LEASES = as_sql(
    select(holds.c.hold_id, holds.c.expires_at_ms)
    .where(
        holds.c.state == "open",
        (holds.c.expires_at_ms <= bindparam("soon")) | (holds.c.expires_at_ms > bindparam("far")),
    )
    .order_by(holds.c.expires_at_ms)
    .limit(bindparam("most"))
)
DUE_TENANTS = as_sql(
    select(tenants.c.tenant_id).where(tenants.c.reset_at_ms <= bindparam("now")).limit(bindparam("most"))
)
DUE_KEYS = as_sql(
    select(keys.c.tenant_id, keys.c.key_id).where(keys.c.reset_at_ms <= bindparam("now")).limit(bindparam("most"))
)
_THIS_ACCOUNT = rate_counts.c.account == bindparam("counter")
RATE_SECONDS = as_sql(
    select(rate_counts.c.second, rate_counts.c.requests, rate_counts.c.tokens).where(
        _THIS_ACCOUNT, rate_counts.c.second > bindparam("since")
    )
)
COUNT_RATE = (
    _all_columns(rate_counts, ("account", "second", "requests", "tokens"))
    + " ON CONFLICT (account, second) DO UPDATE SET requests = requests + excluded.requests,"
    " tokens = tokens + excluded.tokens"
)
FORGET_RATES = as_sql(delete(rate_counts).where(_THIS_ACCOUNT, rate_counts.c.second <= bindparam("before")))
TAKE_BACK_TOKENS = as_sql(
    update(rate_counts)
    .where(_THIS_ACCOUNT, rate_counts.c.second == bindparam("at"))
    .values(tokens=func.max(0, rate_counts.c.tokens - bindparam("unused")))
)
_OPEN_LIMITED = and_(holds.c.state == "open", holds.c.limited.is_not(None))
TENANT_PARALLEL = as_sql(
    select(func.count()).select_from(holds).where(holds.c.tenant_id == bindparam("account_id"), _OPEN_LIMITED)
)
KEY_PARALLEL = as_sql(
    select(func.count()).select_from(holds).where(holds.c.limit_key_id == bindparam("account_id"), _OPEN_LIMITED)
)
ABANDON = as_sql(abandon())
FORGET = as_sql(forget())


@lru_cache(maxsize=64)
def settle_decision(columns: tuple[str, ...]) -> str:
    """Statement that adds a cost to a decision and sets these columns."""
    return as_sql(
        update(decisions)
        .where(decisions.c.decision_id == bindparam("the_decision"))
        .values(
            {
                **{name: bindparam(name) for name in columns},
                "cost_nanousd": func.coalesce(decisions.c.cost_nanousd, 0) + bindparam("cost"),
                "remaining_after_nanousd": bindparam("remaining"),
            }
        )
    )
