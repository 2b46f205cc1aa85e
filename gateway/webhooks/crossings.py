"""Queue one message whenever an account has spent a share of its budget, or its soft budget.

An account that refused a turn because what is left does not pay for it has reached its budget too: of a refused
session perhaps one above it.

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
    session_ancestors,
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
    at_ms, account = refusing_accounts.c.last_at_ms, refusing_accounts.c
    found = _reached_sessions(connection, since_ms)
    for kind, table, id_column in (("tenant", tenants, tenants.c.tenant_id), ("key", keys, keys.c.key_id)):
        query = (
            select(table, id_column.label("account_id"))
            .join(refusing_accounts, and_(account.account == kind, account.account_id == id_column))
            .where(at_ms >= since_ms - LOOK_BACK_MS, _changed_ms(kind, table.c.tenant_id, id_column) <= at_ms)
            .where(func.coalesce(table.c.last_reset_at_ms, 0) <= at_ms)
        )
        if kind == "key":
            query = query.where(_LIVE_KEY)
        found += [_account(kind, row) for row in connection.execute(query).mappings()]
    return found


def _reached_sessions(connection: Connection, since_ms: int) -> list[BudgetedAccount]:
    """Of each refused session the one with the least left: itself, or one above with a budget of its own."""
    turn, above, s = refused_turns.c, session_ancestors.c, sessions.c
    of_money = and_(turn.code == SessionBudgetExceeded.code, turn.last_at_ms >= since_ms - LOOK_BACK_MS)
    own = select(
        turn.tenant_id, turn.session_id.label("refused_id"), turn.last_at_ms, turn.session_id.label("payer_id")
    )
    parents = select(turn.tenant_id, turn.session_id, turn.last_at_ms, above.ancestor_id).join(
        session_ancestors, and_(above.tenant_id == turn.tenant_id, above.session_id == turn.session_id)
    )
    payer = own.where(of_money).union_all(parents.where(of_money)).subquery()
    query = (
        select(
            sessions, s.session_id.label("account_id"), payer.c.refused_id, payer.c.last_at_ms,
            _changed_ms("session", s.tenant_id, s.session_id).label("changed_ms"),
        )
        .join(payer, and_(s.tenant_id == payer.c.tenant_id, s.session_id == payer.c.payer_id))
        .where(s.own_limit == 1)
        .order_by(s.granted_nanousd - s.spent_nanousd)
    )  # fmt: skip
    least: dict[tuple[str, str], Any] = {}
    for row in connection.execute(query).mappings():
        least.setdefault((row["tenant_id"], row["refused_id"]), row)
    return [_account("session", row) for row in least.values() if row["changed_ms"] <= row["last_at_ms"]]


def _changed_ms(kind: str, tenant_id: Any, account_id: Any) -> ColumnElement[int]:
    """When this account's budget was last changed."""
    newest = select(func.max(ledger_entries.c.created_at_ms)).where(_is_change(kind, tenant_id, account_id))
    return func.coalesce(newest.scalar_subquery(), 0)


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
