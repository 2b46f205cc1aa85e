"""Acts on a stall: reports it once, and pauses the session where the operator asks for that.

A resumed conversation still shows the signs of its stall, so the rule skips it until the conversation has grown.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from sqlalchemy import Connection, select, update

from gateway.accounts.budgets import leave_trail, lock_tenant
from gateway.accounts.fields import balance_fields
from gateway.accounts.sessions import get_session, session_paused
from gateway.catalog.live import Configuration
from gateway.clock import Clock, NewId, now_ms
from gateway.database.database import Database
from gateway.database.tables import sessions
from gateway.turn.context import TurnContext
from gateway.turn.stall import stall_signals
from gateway.webhooks.outbox import WebhookEvent, queue

AGAIN_MESSAGES = 12
"""A session is reported again when its conversation has this many messages more."""
ACTOR = "stall-rule"


class StallRule:
    """The rule `session_settings.on_stall`."""

    def __init__(
        self, *, configuration: Callable[[], Configuration], database: Database, clock: Clock, new_id: NewId
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._clock = clock
        self._new_id = new_id

    async def check(self, context: TurnContext) -> None:
        """Report a stalled conversation before its turn is paid. May raise SessionPaused."""
        action = self._configuration().settings.session.on_stall
        if action == "log" or context.row is None or context.outage is not None or context.chat.mode != "chat":
            return
        length, known = len(context.chat.messages), context.memory.stalled_messages
        if known is not None and length < known + AGAIN_MESSAGES:
            return
        signs = stall_signals(context.chat.messages)
        if not signs:
            return
        pauses = action == "pause"
        if await self._database.write(lambda c: self._report(c, context, signs, pauses)) and pauses:
            raise session_paused(context.session_id, stall=signs)

    def _report(self, connection: Connection, context: TurnContext, signs: tuple[str, ...], pauses: bool) -> bool:
        """Queue the message and pause the session in one transaction; False when another turn did."""
        tenant_id, session_id = context.caller.tenant_id, context.session_id
        length, at_ms = len(context.chat.messages), now_ms(self._clock)
        lock_tenant(connection, tenant_id)
        here = (sessions.c.tenant_id == tenant_id) & (sessions.c.session_id == session_id)
        stored = connection.execute(select(sessions.c.memory, sessions.c.state).where(here).with_for_update()).one()
        memory = orjson.loads(stored.memory)
        known = memory.get("stalled_messages")
        if stored.state != "open" or (known is not None and length < known + AGAIN_MESSAGES):
            return False
        memory |= {"stalled_messages": length, "stall": list(signs)}
        state = "paused" if pauses else stored.state
        connection.execute(
            update(sessions).where(here).values(memory=orjson.dumps(memory).decode(), state=state, updated_at_ms=at_ms)
        )
        if pauses:
            before, after = {"state": stored.state}, {"state": state, "stall": list(signs)}
            leave_trail(connection, ACTOR, "session.change", f"{tenant_id}/{session_id}", before, after, at_ms)
        found = get_session(connection, tenant_id, session_id)
        body = {
            "type": "session.stalled",
            "session_id": session_id,
            "tenant_id": tenant_id,
            "signals": list(signs),
            "state": state,
            "turns": found.turns,
            "messages": length,
            **balance_fields(found.balance),
        }
        urls = [target.url for target in self._configuration().settings.general.webhooks]
        event = WebhookEvent("stall", f"{tenant_id}/{session_id}", length, body)
        queue(connection, urls, event, at_ms=at_ms, new_id=self._new_id)
        return True
