"""Rate limits on SQLite: check and count a turn, and correct it when its bill is known.

Postgres has the same in `migrations/sql/limits.sql`; the arithmetic is `gateway.ledger.rates`.
"""

from __future__ import annotations

from gateway.database.sqlite_connection import Cursor
from gateway.ledger import statements as sql
from gateway.ledger.rates import (
    WINDOW_S,
    AccountLimits,
    Limited,
    RateReading,
    Second,
    TurnLimits,
    counted,
    exceeded,
    limited,
    reading,
)
from gateway.ledger.sqlite_rows import Hold

KEPT_S = 120


def over_limit(cursor: Cursor, limits: TurnLimits, now_s: int) -> Limited | None:
    """The refusal of a turn, None when it may be admitted; changes nothing."""
    for account in limits.accounts:
        seconds = _seconds(cursor, account, now_s)
        resource = exceeded(account.quota, counted(seconds), _under_way(cursor, account), limits.tokens)
        if resource is not None:
            return limited(limits, account, resource, seconds, now_s)
    return None


def count(cursor: Cursor, limits: TurnLimits, requests: int, now_s: int) -> RateReading:
    """Add a turn to the running second."""
    for account in limits.accounts:
        _add(cursor, account.counter, requests, limits.tokens, now_s)
        cursor.execute(sql.FORGET_RATES, {"counter": account.counter, "before": now_s - KEPT_S})
    return reading([(account, counted(_seconds(cursor, account, now_s))) for account in limits.accounts], now_s)


def recount(cursor: Cursor, hold: Hold, tokens: int, now_s: int) -> None:
    """Correct the tokens: take a surplus back from its second, count a shortfall in this one."""
    if hold.limited is None:
        return
    assert hold.limit_tokens is not None
    change = tokens - hold.limit_tokens
    for bit, counter in ((1, f"t:{hold.tenant_id}"), (2, f"k:{hold.limit_key_id}")):
        if not hold.limited & bit:
            continue
        if change < 0:
            at = {"counter": counter, "at": hold.created_at_ms // 1000, "unused": -change}
            cursor.execute(sql.TAKE_BACK_TOKENS, at)
        elif change > 0:
            _add(cursor, counter, 0, change, now_s)


def _seconds(cursor: Cursor, account: AccountLimits, now_s: int) -> list[Second]:
    window = {"counter": account.counter, "since": now_s - WINDOW_S}
    return [(row[0], row[1], row[2]) for row in cursor.execute(sql.RATE_SECONDS, window).fetchall()]


def _under_way(cursor: Cursor, account: AccountLimits) -> int:
    if account.quota.parallel is None:
        return 0
    statement = sql.TENANT_PARALLEL if account.account == "tenant" else sql.KEY_PARALLEL
    (found,) = cursor.execute(statement, {"account_id": account.account_id}).fetchone()
    return int(found)


def _add(cursor: Cursor, counter: str, requests: int, tokens: int, now_s: int) -> None:
    row = {"account": counter, "second": now_s, "requests": requests, "tokens": tokens}
    cursor.execute(sql.COUNT_RATE, row)
