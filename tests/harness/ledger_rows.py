"""Ledger entries and the audit trail as values, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from gateway.database.tables import audit_trail, ledger_entries


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One immutable ledger entry."""

    entry_id: int
    kind: str
    scope: str
    amount_nanousd: int
    tenant_id: str
    session_id: str | None
    key_id: str | None
    hold_id: str | None
    attempt_id: str | None
    decision_id: str | None
    model: str | None
    usage_source: str
    actor: str | None
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class TrailEvent:
    """One administrative change: actor, action, subject, and its state before and after."""

    event_id: int
    actor: str
    action: str
    subject: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    created_at_ms: int


def list_trail(connection: Connection, *, subject: str | None = None, limit: int = 100) -> list[TrailEvent]:
    """Administrative changes, newest first."""
    query = select(audit_trail).order_by(audit_trail.c.event_id.desc()).limit(limit)
    if subject is not None:
        query = query.where(audit_trail.c.subject == subject)
    return [
        TrailEvent(
            row.event_id,
            row.actor,
            row.action,
            row.subject,
            None if row.before is None else json.loads(row.before),
            None if row.after is None else json.loads(row.after),
            row.created_at_ms,
        )
        for row in connection.execute(query)
    ]


def list_entries(
    connection: Connection,
    *,
    tenant_id: str | None = None,
    session_id: str | None = None,
    hold_id: str | None = None,
    after_entry_id: int = 0,
    limit: int = 1_000,
) -> list[LedgerEntry]:
    """Ledger entries, oldest first; `after_entry_id` continues a listing."""
    names = tuple(LedgerEntry.__dataclass_fields__)
    query = select(*(ledger_entries.c[name] for name in names)).where(ledger_entries.c.entry_id > after_entry_id)
    for column, wanted in (("tenant_id", tenant_id), ("session_id", session_id), ("hold_id", hold_id)):
        if wanted is not None:
            query = query.where(ledger_entries.c[column] == wanted)
    return [LedgerEntry(*row) for row in connection.execute(query.order_by(ledger_entries.c.entry_id).limit(limit))]
