"""Trees of sessions on SQLite: the sessions above one, which its turns spend from too.

`migrations/sql/apply.sql` has the same rules for Postgres. A session without a parent costs no statement here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.database.sqlite_connection import Cursor
from gateway.ledger import statements as sql
from gateway.ledger.records import Chain
from gateway.ledger.types import MAX_DEPTH, Balance, ParentRefused, Refused, Reserve, SessionClosed, free_nanousd


@dataclass(frozen=True, slots=True)
class Link:
    """One session above another."""

    balance: Balance
    state: str
    kept_nanousd: int
    session_id: str

    @property
    def free_nanousd(self) -> int:
        """The money of the sessions below: not what this one keeps for its last answer."""
        return free_nanousd(self.balance.available_nanousd, self.kept_nanousd)

    @property
    def unspent_nanousd(self) -> int:
        """The same if every hold were released."""
        return free_nanousd(self.balance.available_nanousd + self.balance.reserved_nanousd, self.kept_nanousd)


def links(cursor: Cursor, tenant_id: str, session_id: str) -> list[Link]:
    """The sessions above a session, its parent first."""
    rows = cursor.execute(sql.CHAIN, {"tenant": tenant_id, "session": session_id}).fetchall()
    return [Link(Balance(*row[:4]), *row[4:]) for row in rows]


def links_of(cursor: Cursor, op: Reserve, session: Any) -> list[Link] | ParentRefused:
    """The sessions above a turn's, of a new session those above its named parent."""
    parent_id = op.parent_session_id if session is None else session[sql.PARENT]
    if op.parent_session_id is not None and op.parent_session_id != parent_id:
        return ParentRefused("other")
    if parent_id is None:
        return []
    if session is not None:
        return links(cursor, op.tenant_id, op.session_id)
    parent = cursor.execute(sql.SESSION, {"tenant": op.tenant_id, "session": parent_id}).fetchone()
    if parent is None or parent_id == op.session_id:
        return ParentRefused("unknown" if parent is None else "other")
    link = Link(Balance(*parent[:4]), parent[sql.STATE], parent[sql.KEPT], parent_id)
    above = [link, *links(cursor, op.tenant_id, parent_id)]
    return above if len(above) <= MAX_DEPTH else ParentRefused("depth")


def refusal(above: list[Link], amount_nanousd: int, new_turn: bool) -> Refused | SessionClosed | None:
    """The first session above that takes no turns, or else that cannot pay."""
    if new_turn:
        for link in above:
            if link.state != "open":
                return SessionClosed("parent_closed" if link.state == "closed" else "parent_paused")
    for link in above:
        if link.free_nanousd < amount_nanousd:
            return Refused("parent", link.balance, link.balance.reserved_nanousd > 0, link.kept_nanousd)
    return None


def attach(cursor: Cursor, tenant_id: str, session_id: str, parent_id: str) -> None:
    """Put a new session under its parent and all sessions above that."""
    row = {"tenant_id": tenant_id, "session_id": session_id, "ancestor_id": parent_id, "distance": 1}
    cursor.execute(sql.ADD_PARENT, row)
    cursor.execute(sql.ADD_ANCESTORS, {"child": session_id, "tenant": tenant_id, "session": parent_id})


def move_ancestors(cursor: Cursor, place: dict[str, str], deltas: dict[str, int], now_ms: int) -> int:
    """Move the same money on every session above; return the least that they have left."""
    moved = cursor.execute(sql.MOVE_ANCESTORS, deltas | place | {"now": now_ms}).fetchall()
    return min(free_nanousd(Balance(*row[:4]).available_nanousd, row[4]) for row in moved)


def chain_of(cursor: Cursor, tenant_id: str, session_id: str) -> Chain:
    """Limits of a child from the sessions above it."""
    above = links(cursor, tenant_id, session_id)
    return Chain(
        min(link.free_nanousd for link in above),
        min(link.unspent_nanousd for link in above),
        above[0].balance.granted_nanousd,
        len(above),
        above[-1].session_id,
    )
