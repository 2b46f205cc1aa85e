"""Queue one message whenever an account has spent a share of its budget, or its soft budget.

An account that refused a turn because what is left does not pay for it has reached its budget too.

Every replica looks; the unique index of `webhook_events` lets one of them record a crossing, whatever dies in between.
A budget that is changed, or a window that begins again, makes room for a new crossing of the same threshold. After a
change it is told only if the spending had been below it: the ledger's entries say how much was spent at the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from gateway.database.tables import (
    keys,
    ledger_entries,
    refused_turns,
    refusing_accounts,
    sessions,
    tenants,
    webhook_events,
)
from gateway.errors import SessionBudgetExceeded
from gateway.money import usd_string
from gateway.webhooks.outbox import WebhookEvent, queue

THRESHOLDS = (50, 80, 95, 100)
SOFT = -1
"""In the place of the threshold: the soft budget, which stands in the place of the budget."""
REACHED = -2
"""In the place of the threshold: a turn was refused before the last threshold was reached."""
_LIVE_KEY = and_(keys.c.has_budget == 1, keys.c.revoked_at_ms.is_(None))
LOOK_BACK_MS = 60_000
"""Sessions used within this time before the last look are looked at again: replicas' clocks differ a little."""


@dataclass(frozen=True, slots=True)
class BudgetedAccount:
    """An account with a budget, as it stands."""

    kind: str
    account_id: str
    tenant_id: str
    granted_nanousd: int
    spent_nanousd: int
    reset_at_ms: int
    soft_budget_nanousd: int | None = None

    @property
    def place(self) -> str:
        """Its name among the events of all tenants."""
        return f"{self.tenant_id}/{self.account_id}"

    @property
    def over_soft_budget(self) -> bool:
        """True once the soft budget is spent."""
        return self.soft_budget_nanousd is not None and self.spent_nanousd >= self.soft_budget_nanousd

    @property
    def crossed(self) -> tuple[int, ...]:
        """The thresholds that its spending has reached."""
        if self.granted_nanousd <= 0:
            return ()
        return tuple(t for t in THRESHOLDS if self.spent_nanousd * 100 >= t * self.granted_nanousd)


def record(
    connection: Connection, urls: Sequence[str], *, since_ms: int, at_ms: int, new_id: Callable[[str], str]
) -> int:
    """Queue a message to every URL for each new crossing; return how many."""
    made = 0
    for account in _accounts(connection, since_ms):
        for threshold in (*account.crossed, *((SOFT,) if account.over_soft_budget else ())):
            told = _was_told(connection, account, threshold)
            made += queue(connection, urls, _event(account, threshold), at_ms=at_ms, new_id=new_id, told=told)
    for account in _reached(connection, since_ms):
        if THRESHOLDS[-1] not in account.crossed:
            made += queue(connection, urls, _event(account, REACHED), at_ms=at_ms, new_id=new_id)
    return made


def _was_told(connection: Connection, account: BudgetedAccount, threshold: int) -> bool:
    """True if a threshold that was reported for another budget has stayed crossed since."""
    past = webhook_events.c
    of_account = (
        past.account == account.kind, past.account_id == account.place, past.threshold == threshold,
        past.reset_at_ms == account.reset_at_ms,
    )  # fmt: skip
    newest = select(past.granted_nanousd, past.body).where(*of_account).order_by(past.created_at_ms.desc()).limit(1)
    last = connection.execute(newest).first()
    limit_nanousd = account.soft_budget_nanousd if threshold == SOFT else account.granted_nanousd
    if last is None or last.granted_nanousd == limit_nanousd:
        return False
    if threshold == SOFT:  # its changes have no entries
        return limit_nanousd is not None and orjson.loads(last.body)["spent_nano_usd"] >= limit_nanousd
    granted_nanousd = account.granted_nanousd
    for change in connection.execute(_changes(account)):
        spent_nanousd = account.spent_nanousd - _spent_since(connection, account, change.entry_id)
        before_nanousd = granted_nanousd - change.granted_delta_nanousd
        if spent_nanousd * 100 < threshold * max(granted_nanousd, before_nanousd):
            return False
        granted_nanousd = before_nanousd
        if granted_nanousd == last.granted_nanousd:
            return True
    return False


def _changes(account: BudgetedAccount) -> Select[Any]:
    """The changes of an account's budget, newest first."""
    entry = ledger_entries.c
    query = select(entry.entry_id, entry.granted_delta_nanousd)
    query = query.where(_is_change(account.kind, account.tenant_id, account.account_id))
    return query.order_by(entry.entry_id.desc())


def _is_change(kind: str, tenant_id: Any, account_id: Any) -> ColumnElement[bool]:
    """True for a ledger entry that changes this account's budget."""
    entry = ledger_entries.c
    of_account = and_(
        entry.tenant_id == tenant_id, entry.session_id == (account_id if kind == "session" else None),
        entry.scope == kind, entry.granted_delta_nanousd != 0,
    )  # fmt: skip
    return and_(of_account, entry.key_id == account_id) if kind == "key" else of_account


def _spent_since(connection: Connection, account: BudgetedAccount, entry_id: int) -> int:
    """What an account has spent after an entry, with all sessions below it."""
    entry = ledger_entries.c
    query = select(func.coalesce(func.sum(entry.spent_delta_nanousd), 0)).where(
        entry.entry_id > entry_id, entry.tenant_id == account.tenant_id, entry.scope == "turn"
    )
    if account.kind == "key":
        query = query.where(entry.key_id == account.account_id)
    if account.kind == "session":
        row = sessions.c
        tree = select(row.session_id).where(row.tenant_id == account.tenant_id, row.session_id == account.account_id)
        family = tree.cte("family", recursive=True)
        below = select(row.session_id).where(
            row.tenant_id == account.tenant_id, row.parent_session_id == family.c.session_id
        )
        query = query.where(entry.session_id.in_(select(family.union(below).c.session_id)))
    return int(connection.execute(query).scalar_one())


def _accounts(connection: Connection, since_ms: int) -> list[BudgetedAccount]:
    found = []
    for kind, table, id_column, recent in (
        ("tenant", tenants, tenants.c.tenant_id, None),
        ("key", keys, keys.c.key_id, None),
        ("session", sessions, sessions.c.session_id, sessions.c.updated_at_ms >= since_ms - LOOK_BACK_MS),
    ):
        # Divided, not multiplied: fifty times a budget of 200 million USD is more than a BIGINT holds.
        noticed = and_(
            table.c.granted_nanousd > 0, table.c.spent_nanousd >= table.c.granted_nanousd // 100 * THRESHOLDS[0]
        )
        if kind != "session":
            noticed = or_(noticed, table.c.spent_nanousd >= table.c.soft_budget_nanousd)
        query = select(table, id_column.label("account_id")).where(noticed)
        if recent is not None:
            query = query.where(recent)
        if kind == "key":
            query = query.where(_LIVE_KEY)
        found += [_account(kind, row) for row in connection.execute(query).mappings()]
    return found


def _reached(connection: Connection, since_ms: int) -> list[BudgetedAccount]:
    """The accounts that refused a turn since their budget was last changed and their window began."""
    turn, account, s = refused_turns.c, refusing_accounts.c, sessions.c
    of_session = and_(
        turn.tenant_id == s.tenant_id, turn.session_id == s.session_id, turn.code == SessionBudgetExceeded.code
    )
    found = []
    for kind, table, id_column, refused, refuses in (
        ("tenant", tenants, tenants.c.tenant_id, refusing_accounts, account.account_id == tenants.c.tenant_id),
        ("key", keys, keys.c.key_id, refusing_accounts, account.account_id == keys.c.key_id),
        ("session", sessions, s.session_id, refused_turns, of_session),
    ):
        at_ms = refused.c.last_at_ms
        changed_ms = select(func.max(ledger_entries.c.created_at_ms)).where(
            _is_change(kind, table.c.tenant_id, id_column)
        )
        query = select(table, id_column.label("account_id")).join(refused, refuses)
        query = query.where(at_ms >= since_ms - LOOK_BACK_MS, func.coalesce(changed_ms.scalar_subquery(), 0) <= at_ms)
        if kind != "session":
            query = query.where(account.account == kind, func.coalesce(table.c.last_reset_at_ms, 0) <= at_ms)
        if kind == "key":
            query = query.where(_LIVE_KEY)
        found += [_account(kind, row) for row in connection.execute(query).mappings()]
    return found


def _account(kind: str, row: Any) -> BudgetedAccount:
    return BudgetedAccount(
        kind=kind,
        account_id=row["account_id"],
        tenant_id=row["tenant_id"],
        granted_nanousd=row["granted_nanousd"],
        spent_nanousd=row["spent_nanousd"],
        reset_at_ms=row.get("reset_at_ms") or 0,
        soft_budget_nanousd=row.get("soft_budget_nanousd"),
    )


def _event(account: BudgetedAccount, threshold: int) -> WebhookEvent:
    soft = account.soft_budget_nanousd if threshold == SOFT else None
    told: dict[str, Any] = {"type": "budget.threshold", "threshold_percent": threshold}
    if soft is not None:
        told = {"type": "budget.soft_limit", "soft_budget_nano_usd": soft, "soft_budget_usd": usd_string(soft)}
    elif threshold == REACHED:
        told = {"type": "budget.reached"}
    body = {
        **told,
        "account": account.kind,
        "account_id": account.account_id,
        "tenant_id": account.tenant_id,
        "budget_nano_usd": account.granted_nanousd,
        "budget_usd": usd_string(account.granted_nanousd),
        "spent_nano_usd": account.spent_nanousd,
        "spent_usd": usd_string(account.spent_nanousd),
    }
    return WebhookEvent(
        account.kind,
        account.place,
        threshold,
        body,
        granted_nanousd=account.granted_nanousd if soft is None else soft,
        reset_at_ms=account.reset_at_ms,
    )
