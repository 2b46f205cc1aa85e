"""Beginnings of conversations on SQLite: written with a bill, read by the next turn.

The same rules are written down for Postgres in `migrations/sql/apply.sql`; tests run one suite against both.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.database.sqlite import Cursor
from gateway.ledger import statements as sql
from gateway.ledger.records import known_beginning
from gateway.ledger.types import Beginning, KnownBeginning, SoughtBeginning


def find_beginnings(
    cursor: Cursor, tenant_id: str, key_id: str, sought: Sequence[SoughtBeginning]
) -> list[KnownBeginning]:
    """Read the turns that left the first of `sought`, and the next of them that is known."""
    found: list[KnownBeginning] = []
    for position, beginning in enumerate(sought):
        asked = {"tenant": tenant_id, "key": key_id, "digest": beginning.digest, "answer": beginning.answer}
        rows = cursor.execute(sql.FIND_BEGINNINGS, asked).fetchall()
        found += [known_beginning(row) for row in rows]
        if rows and position:
            break
    return found


def leave_beginning(cursor: Cursor, tenant_id: str, session_id: str, left: Beginning, now_ms: int) -> None:
    """Store a turn's beginning in the transaction of its bill."""
    here = {"tenant": tenant_id, "session": session_id, "key": left.key_id}
    cursor.execute(
        sql.LEAVE_BEGINNING,
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
        cursor.execute(sql.CONTINUE_BEGINNING, here | {"digest": left.continues, "next": left.continued_with})
