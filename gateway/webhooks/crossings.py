"""Queue one message whenever an account has spent a share of its budget, or its soft budget.

Every replica looks; the unique index of `webhook_events` lets one of them record a crossing, whatever dies in between.
A budget that is raised, or a window that begins again, makes room for a new crossing of the same threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, or_, select

from gateway.database.tables import keys, sessions, tenants
from gateway.money import usd_string
from gateway.webhooks.outbox import WebhookEvent, queue

THRESHOLDS = (50, 80, 95, 100)
SOFT = -1
"""In the place of the threshold: the soft budget, which stands in the place of the budget."""
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
            made += queue(connection, urls, _event(account, threshold), at_ms=at_ms, new_id=new_id)
    return made


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
            query = query.where(keys.c.has_budget == 1, keys.c.revoked_at_ms.is_(None))
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
    body = {
        **(
            {"type": "budget.threshold", "threshold_percent": threshold}
            if soft is None
            else {"type": "budget.soft_limit", "soft_budget_nano_usd": soft, "soft_budget_usd": usd_string(soft)}
        ),
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
        f"{account.tenant_id}/{account.account_id}",
        threshold,
        body,
        granted_nanousd=account.granted_nanousd if soft is None else soft,
        reset_at_ms=account.reset_at_ms,
    )
