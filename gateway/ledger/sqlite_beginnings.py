"""Beginnings of conversations on SQLite: written with a bill, read by the next turn.

The same rules are written down for Postgres in `migrations/sql/apply.sql`; tests run one suite against both.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, literal_column, null, select, update
from sqlalchemy.dialects.sqlite import insert

from gateway.database.sqlite_connection import Cursor
from gateway.database.tables import conversation_beginnings as beginnings
from gateway.ledger.records import known_beginning
from gateway.ledger.statements import as_sql
from gateway.ledger.types import Beginning, KnownBeginning, SoughtBeginning

NEWEST_ALIKE = 64
"""Of the conversations with the same beginning, as many of the newest are looked at (session ids are in order)."""
_newest = (
    select(beginnings)
    .where(
        beginnings.c.tenant_id == bindparam("tenant"),
        beginnings.c.key_id == bindparam("key"),
        beginnings.c.digest == bindparam("digest"),
    )
    .order_by(beginnings.c.session_id.desc())
    .limit(literal_column(str(NEWEST_ALIKE)))
    .subquery()
)
FIND_BEGINNINGS = as_sql(
    select(
        _newest.c.digest,
        _newest.c.session_id,
        _newest.c.messages,
        _newest.c.opening,
        _newest.c.answer,
        _newest.c.continued,
        _newest.c.at_ms,
    )
    .order_by(_newest.c.answer.is_not_distinct_from(bindparam("answer")).desc(), _newest.c.at_ms.desc())
    .limit(literal_column("4"))
)
LEAVE_BEGINNING = as_sql(
    insert(beginnings)
    .values(
        tenant_id=bindparam("tenant"),
        key_id=bindparam("key"),
        digest=bindparam("digest"),
        session_id=bindparam("session"),
        messages=bindparam("messages"),
        opening=bindparam("opening"),
        answer=bindparam("answer"),
        at_ms=bindparam("now"),
    )
    .on_conflict_do_update(
        index_elements=["tenant_id", "key_id", "digest", "session_id"],
        set_={
            "answer": literal_column("excluded.answer"),
            "continued": null(),
            "at_ms": literal_column("excluded.at_ms"),
        },
    )
)
CONTINUE_BEGINNING = as_sql(
    update(beginnings)
    .where(
        beginnings.c.tenant_id == bindparam("tenant"),
        beginnings.c.key_id == bindparam("key"),
        beginnings.c.digest == bindparam("digest"),
        beginnings.c.session_id == bindparam("session"),
    )
    .values(continued=bindparam("next"))
)


def find_beginnings(
    cursor: Cursor, tenant_id: str, key_id: str, sought: Sequence[SoughtBeginning]
) -> list[KnownBeginning]:
    """Read the turns that left the first of `sought`, and the next of them that is known."""
    found: list[KnownBeginning] = []
    for position, beginning in enumerate(sought):
        asked = {"tenant": tenant_id, "key": key_id, "digest": beginning.digest, "answer": beginning.answer}
        rows = cursor.execute(FIND_BEGINNINGS, asked).fetchall()
        found += [known_beginning(row) for row in rows]
        if rows and position:
            break
    return found


def leave_beginning(cursor: Cursor, tenant_id: str, session_id: str, left: Beginning, now_ms: int) -> None:
    """Store a turn's beginning in the transaction of its bill."""
    here = {"tenant": tenant_id, "session": session_id, "key": left.key_id}
    cursor.execute(
        LEAVE_BEGINNING,
        here
        | {
            "digest": left.digest,
            "messages": left.messages,
            "opening": int(left.opening),
            "answer": left.answer,
            "now": now_ms,
        },
    )
    if left.continues is not None:
        cursor.execute(CONTINUE_BEGINNING, here | {"digest": left.continues, "next": left.continued_with})
