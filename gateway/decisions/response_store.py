"""Store of responses that later requests may refer to, per tenant and for a limited time.

A client decides with each request (`store: false` keeps nothing). Stored are the response object and the items of its
whole conversation, so that `previous_response_id` continues it and `item_reference` finds an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, delete, insert, select

from gateway.database.tables import responses
from gateway.errors import NotFound

KEPT_MS = 30 * 86_400_000
"""OpenAI keeps responses for thirty days."""
FORGET_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response object and the items of its conversation, its answer included."""

    response: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    session_id: str


def store(
    connection: Connection,
    tenant_id: str,
    session_id: str,
    response: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    at_ms: int,
) -> None:
    """Store a response and its conversation for KEPT_MS."""
    connection.execute(
        insert(responses).values(
            tenant_id=tenant_id,
            response_id=response["id"],
            session_id=session_id,
            response=_storable(response),
            items=_storable(list(items)),
            created_at_ms=at_ms,
            expires_at_ms=at_ms + KEPT_MS,
        )
    )


def _storable(value: object) -> str:
    """JSON without NUL characters, which Postgres cannot store."""
    return orjson.dumps(_without_nul(value)).decode()


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, Mapping):
        return {_without_nul(name): _without_nul(item) for name, item in value.items()}
    return [_without_nul(item) for item in value] if isinstance(value, list | tuple) else value


def find(connection: Connection, tenant_id: str, response_id: str, at_ms: int) -> StoredResponse:
    """A stored response. Raises NotFound if unknown, deleted, expired or another tenant's."""
    r = responses.c
    found = select(responses).where(r.tenant_id == tenant_id, r.response_id == response_id, r.expires_at_ms > at_ms)
    # Postgres takes no NUL; of ids in addresses the admission has refused it.
    row = None if "\0" in response_id else connection.execute(found).one_or_none()
    if row is None:
        raise NotFound("response: no such response")
    return StoredResponse(orjson.loads(row.response), orjson.loads(row.items), row.session_id)


def find_item(connection: Connection, tenant_id: str, item_id: str, at_ms: int) -> Mapping[str, Any]:
    """An output item by id: `KIND_SUFFIX_INDEX` of the response `resp_SUFFIX`. Raises NotFound."""
    _, _, rest = item_id.partition("_")
    suffix = rest.rpartition("_")[0]
    try:
        stored = find(connection, tenant_id, f"resp_{suffix}", at_ms)
        return next(item for item in stored.response["output"] if item.get("id") == item_id)
    except (NotFound, StopIteration):
        raise NotFound(
            f"input: no item {item_id[:128]!r} is stored; send the item itself, or store: true", param="input"
        ) from None


def remove(connection: Connection, tenant_id: str, response_id: str) -> None:
    """Delete a response. Raises NotFound if unknown or another tenant's."""
    r = responses.c
    gone = connection.execute(
        delete(responses).where(r.tenant_id == tenant_id, r.response_id == response_id).returning(r.response_id)
    )
    if not gone.all():
        raise NotFound("response: no such response")


def forget(connection: Connection, at_ms: int) -> int:
    """Delete a batch of expired responses; return their number."""
    r = responses.c
    due = select(r.tenant_id, r.response_id).where(r.expires_at_ms <= at_ms).limit(FORGET_BATCH)
    rows = connection.execute(due).all()
    for row in rows:
        connection.execute(delete(responses).where(r.tenant_id == row.tenant_id, r.response_id == row.response_id))
    return len(rows)
