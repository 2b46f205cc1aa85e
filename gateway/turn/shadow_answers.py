"""Shadow answers: a second model answers a sample of the turns, for the training alone.

    settled answer --sampled--> bounded queue --> one turn of tenant `shadow` --> the judge

A log knows only the grade of the model that served; these are grades of others on the same turn. No client sees such an
answer. Its turn is an ordinary one through the same ledger, with a hold of its own, paid by the tenant `shadow`, whose
budget resets every day: no session pays for it. The probability of every second model is logged with the decision,
before the draw, so that training and the gate's estimators weigh its grade exactly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from gateway.accounts import tenants
from gateway.accounts.auth import SHADOW_TENANT, Caller
from gateway.clock import Clock, now_ms
from gateway.config.settings import ShadowSettings
from gateway.database.database import Database
from gateway.dialects.request import ChatRequest
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.turn.context import Attempt
from gateway.turn.judge import PAUSE_S, Ask
from gateway.turn.shadow_draw import drawn

_log = logging.getLogger("seqroute.shadow")

WAITING = 32
_NOT_REPEATED = frozenset({"n", "store", "metadata", "user", "max_tokens", "max_completion_tokens", "service_tier"})
"""Parameters of the client's own call, or of its bill."""


@dataclass(frozen=True, slots=True)
class SecondTurn:
    """A turn to answer again by `model`."""

    decision_id: str
    model: str
    chat: ChatRequest


class ShadowAnswers:
    """Draws turns for a second model and has them answered one by one."""

    def __init__(
        self, settings: Callable[[], ShadowSettings | None], *, database: Database, metrics: Metrics, clock: Clock
    ) -> None:
        self._settings = settings
        self._database = database
        self._metrics = metrics
        self._clock = clock
        self._waiting: asyncio.Queue[SecondTurn] = asyncio.Queue(WAITING)
        self._budget_nanousd: int | None = None

    def offer(self, attempt: Attempt) -> None:
        """Queue a settled turn if it is drawn and there is room. Never waits or raises."""
        model = drawn(attempt.choice, attempt.decision_id)
        if model is None or self._settings() is None:
            return
        try:
            self._waiting.put_nowait(SecondTurn(attempt.decision_id, model, attempt.context.chat))
        except asyncio.QueueFull:
            self._metrics.shadow_answers.labels("dropped").inc()

    async def run(self, ask: Ask) -> None:
        """Answer queued turns until cancelled."""
        while True:
            turn = await self._waiting.get()
            settings = self._settings()
            if settings is None:
                continue
            try:
                outcome = await self._answer(turn, settings, ask)
            except GatewayError as error:
                outcome = error.code
                if error.status in (402, 503):
                    await asyncio.sleep(PAUSE_S)
            except Exception:  # noqa: BLE001 - one turn that cannot be answered must not end the others
                _log.exception("a shadow answer failed")
                outcome = "fault"
            self._metrics.shadow_answers.labels(outcome).inc()

    async def _answer(self, turn: SecondTurn, settings: ShadowSettings, ask: Ask) -> str:
        budget = settings.budget_nanousd_per_day
        if self._budget_nanousd != budget:
            now = now_ms(self._clock)
            await self._database.write(lambda c: tenants.ensure_daily(c, SHADOW_TENANT, budget, now_ms=now))
            self._budget_nanousd = budget
        caller = Caller(
            tenant_id=SHADOW_TENANT, key_id="key_shadow", role="tenant", has_budget=False, key_models=None,
            max_session_nanousd=budget,
        )  # fmt: skip
        await ask(caller, repeated(turn), f"shadow:{turn.decision_id}"[:128])
        return "answered"


def repeated(turn: SecondTurn) -> bytes:
    """The chat body that asks the second model the same."""
    chat = turn.chat
    params = {name: value for name, value in chat.params.items() if name not in _NOT_REPEATED}
    limit = {} if chat.max_tokens is None else {"max_tokens": chat.max_tokens}
    return orjson.dumps({**chat.extras, **params, **limit, "model": turn.model, "messages": chat.messages})
