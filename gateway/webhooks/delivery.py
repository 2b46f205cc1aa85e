"""Sends queued messages: signed, retried with growing pauses, never in the way of a turn.

A message is claimed by moving its due time, so that replicas do not send it together. A receiver may still see it twice
(an answer that was lost on the way): the `id` in its body stays the same, and so does `X-Seqroute-Event-Id`.

The signature is HMAC-SHA256 over `TIMESTAMP.BODY` with the target's secret, in the header
`X-Seqroute-Signature: t=TIMESTAMP,v1=HEX`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
from sqlalchemy import Connection, func, select, update

from gateway.clock import Clock, Uniform, now_ms
from gateway.config.settings import WebhookSettings
from gateway.config.values import Secret
from gateway.database.database import Database
from gateway.database.tables import webhook_events
from gateway.errors import LedgerUnavailable
from gateway.webhooks import crossings
from gateway.webhooks.alarms import Alarms
from gateway.webhooks.outbox import queue

_log = logging.getLogger("seqroute.webhooks")
TIMEOUT_S = 10.0
CLAIM_MS = 30_000
"""A message whose sender died is due again after this time."""
MAX_ATTEMPTS = 12
BATCH = 20
MAX_PAUSE_S = 3600.0


@dataclass(frozen=True, slots=True)
class ClaimedMessage:
    """One claimed message."""

    event_id: str
    url: str
    body: str
    attempts: int


class Webhooks:
    """Looks for crossings and delivers messages; `run` is its one loop."""

    def __init__(
        self,
        targets: Callable[[], tuple[WebhookSettings, ...]],
        *,
        database: Database,
        clock: Clock,
        uniform: Uniform,
        new_id: Callable[[str], str],
        on_sent: Callable[[str], None],
        on_queue: Callable[[int], None],
        idle_timeout_s: Callable[[], float] = lambda: 1800.0,
    ) -> None:
        self._targets = targets
        self._database = database
        self._clock = clock
        self._uniform = uniform
        self._new_id = new_id
        self._on_sent = on_sent
        self._on_queue = on_queue
        self._idle_timeout_s = idle_timeout_s
        self._looked_at_ms = 0
        self._alarms = Alarms()

    async def run(self, *, ready: Callable[[], bool], interval_s: float) -> None:
        """Look and deliver about every `interval_s`, until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http:
            while True:
                await asyncio.sleep(interval_s * (0.75 + 0.25 * self._uniform()))
                if not (self._targets() and ready()):
                    continue
                try:
                    await self.look()
                    await self.deliver(http)
                except LedgerUnavailable:
                    _log.warning("webhooks wait for the database")

    async def look(self) -> int:
        """Queue what was crossed since the last look."""
        at_ms = now_ms(self._clock)
        since_ms, urls = self._looked_at_ms, [target.url for target in self._targets()]
        idle_ms = int(self._idle_timeout_s() * 1000)

        # Found beside the ledger's writer, which on SQLite is the only one: this may read all of a tenant's sessions.
        events = await self._database.read(
            lambda c: self._alarms.find(c, since_ms=since_ms, at_ms=at_ms, idle_ms=idle_ms)
        )

        def record(connection: Connection) -> int:
            made = crossings.record(connection, urls, since_ms=since_ms, at_ms=at_ms, new_id=self._new_id)
            return made + sum(queue(connection, urls, event, at_ms=at_ms, new_id=self._new_id) for event in events)

        made = await self._database.write(record)
        self._looked_at_ms = at_ms
        return made

    async def deliver(self, http: aiohttp.ClientSession) -> int:
        """Send what is due; returns how many messages were accepted."""
        at_ms = now_ms(self._clock)
        claimed = await self._database.write(lambda c: claim(c, at_ms))
        secrets = {target.url: target.secret for target in self._targets()}
        done = await asyncio.gather(*(self._send(http, message, secrets) for message in claimed))
        self._on_queue(await self._database.read(waiting))
        return sum(done)

    async def _send(self, http: aiohttp.ClientSession, message: ClaimedMessage, secrets: Mapping[str, Secret]) -> bool:
        secret = secrets.get(message.url)
        accepted = False
        if secret is not None:  # a target that was taken out of the configuration gets nothing more
            headers = {
                "Content-Type": "application/json",
                "X-Seqroute-Event-Id": message.event_id,
                "X-Seqroute-Signature": signature(secret, message.body, int(self._clock())),
            }
            try:
                async with http.post(message.url, data=message.body, headers=headers, allow_redirects=False) as answer:
                    accepted = 200 <= answer.status < 300
            except (aiohttp.ClientError, TimeoutError) as error:
                _log.warning("webhook %s not delivered: %s", message.event_id, type(error).__name__)
        self._on_sent("accepted" if accepted else "refused")
        pause_ms = int(1000 * pause_s(message.attempts, self._uniform()))
        at_ms = now_ms(self._clock)
        await self._database.write(lambda c: resolve(c, message, accepted, at_ms, pause_ms))
        return accepted


def signature(secret: Secret, body: str, timestamp_s: int) -> str:
    """The header that proves who sent a message, and when."""
    digest = hmac.digest(secret.reveal().encode(), f"{timestamp_s}.{body}".encode(), "sha256").hex()
    return f"t={timestamp_s},v1={digest}"


def pause_s(attempts: int, uniform: float) -> float:
    """Doubling pauses from 5 s to an hour, with half of each left to chance."""
    full = min(5.0 * 2.0**attempts, MAX_PAUSE_S)
    return full * (0.5 + 0.5 * uniform)


def claim(connection: Connection, at_ms: int) -> list[ClaimedMessage]:
    """Take the messages that are due: the process that moves a message's due time sends it."""
    e = webhook_events.c
    due = connection.execute(
        select(webhook_events).where(e.done_at_ms.is_(None), e.due_at_ms <= at_ms).order_by(e.due_at_ms).limit(BATCH)
    ).mappings()
    claimed = []
    for row in due.all():
        moved = connection.execute(
            update(webhook_events)
            .where(e.event_id == row["event_id"], e.due_at_ms == row["due_at_ms"], e.done_at_ms.is_(None))
            .values(due_at_ms=at_ms + CLAIM_MS, attempts=row["attempts"] + 1)
        )
        if moved.rowcount == 1:
            claimed.append(ClaimedMessage(row["event_id"], row["url"], row["body"], row["attempts"]))
    return claimed


def waiting(connection: Connection) -> int:
    """The number of messages that were neither accepted nor given up."""
    unresolved = webhook_events.c.done_at_ms.is_(None)
    return int(connection.execute(select(func.count()).where(unresolved)).scalar_one())


def resolve(connection: Connection, message: ClaimedMessage, accepted: bool, at_ms: int, pause_ms: int) -> None:
    """Close a message that was accepted or given up; else say when to try again."""
    given_up = message.attempts + 1 >= MAX_ATTEMPTS
    values = (
        {"done_at_ms": at_ms, "accepted": int(accepted)} if accepted or given_up else {"due_at_ms": at_ms + pause_ms}
    )
    connection.execute(update(webhook_events).where(webhook_events.c.event_id == message.event_id).values(**values))
