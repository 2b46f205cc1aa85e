"""Queue of messages, each once: the subject of an event identifies it over replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

from gateway.database.tables import webhook_events


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One event; `about`, `account_id` and the three numbers identify it."""

    about: str
    """At most 8 letters: tenant, key, session, stall, forecast, policy."""
    account_id: str
    threshold: int
    body: Mapping[str, Any]
    granted_nanousd: int = 0
    reset_at_ms: int = 0


def queue(
    connection: Connection,
    urls: Sequence[str],
    event: WebhookEvent,
    *,
    at_ms: int,
    new_id: Callable[[str], str],
    told: bool = False,
) -> int:
    """Queue a message to every URL, unless this event was queued before; return how many.

    `told`: it needs no message, and is only recorded.
    """
    made = sum(_queue_one(connection, url, event, at_ms, new_id("evt"), told) for url in urls)
    return 0 if told else made


def _queue_one(connection: Connection, url: str, event: WebhookEvent, at_ms: int, event_id: str, told: bool) -> int:
    table: Table = webhook_events
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    done = connection.execute(
        dialect.insert(table)
        .values(
            event_id=event_id,
            url=url,
            account=event.about,
            account_id=event.account_id,
            threshold=event.threshold,
            granted_nanousd=event.granted_nanousd,
            reset_at_ms=event.reset_at_ms,
            body=orjson.dumps({"id": event_id, **event.body, "created_at_ms": at_ms}).decode(),
            attempts=0,
            due_at_ms=at_ms,
            done_at_ms=at_ms if told else None,
            created_at_ms=at_ms,
        )
        .on_conflict_do_nothing()
        .returning(table.c.event_id)
    )
    return len(done.all())
