"""Second answers: another model answers some turns once more, for the judge alone.

    settled answer --drawn--> bounded queue --> one turn of tenant `second~answers` --> the judge grades both answers

A log knows the grade of the model that served; these are grades of other models for the same turns. No client sees such
an answer or waits for it. It is a turn through the same ledger, paid by a tenant of its own with a daily budget: one
call of the drawn model, without retries, fallbacks, or a say in the models' health. It is logged with origin "second",
and its session, `second:ID`, names the first answer's decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import orjson
from msgspec import structs

from gateway.accounts import tenants
from gateway.accounts.auth import SECOND_KEY_ID, Caller
from gateway.catalog.live import Configuration
from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.dialects.request import ChatRequest
from gateway.errors import RateLimited
from gateway.metrics import Metrics
from gateway.schema.fields import VENDOR_FIELDS
from gateway.turn.context import Attempt, Second
from gateway.turn.judge import outcome_of
from gateway.turn.second_draw import draw_second

AskSecond = Callable[[Caller, ChatRequest, str, Second], Coroutine[Any, Any, bytes]]
"""(caller, request, session id, drawn model) -> the response body; `Turns.second_turn`."""

WAITING = 32
WAITING_BYTES = 4_000_000
"""Limits of the queue: its requests, and their size as JSON."""
_NOT_REPEATED = frozenset(
    {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata", "service_tier",
     "prediction", "store"}
)  # fmt: skip
"""Parameters that identify the client's users, or belong to its own call."""
_NOT_REPEATED_EXTRAS = frozenset({"cache_salt", "priority"})


@dataclass(frozen=True, slots=True)
class _Case:
    """A turn to be answered again, of the decision `decision_id`, and its size."""

    caller: Caller
    decision_id: str
    chat: ChatRequest
    second: Second
    size_bytes: int


class SecondAnswers:
    """Draws turns for a second answer and has them answered one by one."""

    def __init__(
        self, configuration: Callable[[], Configuration], *, database: Database, metrics: Metrics, clock: Clock
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._metrics = metrics
        self._clock = clock
        self._waiting: asyncio.Queue[_Case] = asyncio.Queue(WAITING)
        self._waiting_bytes = 0
        self._budget_nanousd: int | None = None

    @property
    def waiting(self) -> int:
        """Number of answers in the queue."""
        return self._waiting.qsize()

    def offer(self, attempt: Attempt, answer: str) -> bool:
        """Tell whether a settled turn is drawn; queue it if there is room. Never waits or raises.

        A turn whose answer is empty is never drawn: the judge does not grade it.
        """
        second = draw_second(attempt.choice, attempt.decision_id) if answer.strip() else None
        if second is None:
            return False
        client = attempt.context.caller
        caller = Caller(
            tenant_id=tenants.SECOND_TENANT, key_id=SECOND_KEY_ID, role="tenant", has_budget=False,
            key_models=client.key_models, tenant_models=client.tenant_models,
        )  # fmt: skip
        may_drop = self._configuration().settings.router.drop_params
        chat = repeated(attempt.context.chat, second.model, may_drop=may_drop)
        size_bytes = len(orjson.dumps([chat.messages, dict(chat.params), dict(chat.extras)]))
        if self._waiting.full() or self._waiting_bytes + size_bytes > WAITING_BYTES:
            self._metrics.second_answers.labels("dropped").inc()
            return True
        self._waiting_bytes += size_bytes
        self._waiting.put_nowait(_Case(caller, attempt.decision_id, chat, second, size_bytes))
        return True

    async def run(self, ask: AskSecond) -> None:
        """Answer queued turns until cancelled."""
        while True:
            case = await self._waiting.get()
            self._waiting_bytes -= case.size_bytes
            settings = self._configuration().settings.policy.judge
            if settings is None or settings.second_answers == 0.0:
                continue
            outcome = await outcome_of(self._answered(case, settings.second_budget_nanousd_per_day, ask))
            self._metrics.second_answers.labels(outcome).inc()

    async def _answered(self, case: _Case, budget_nanousd: int, ask: AskSecond) -> str:
        if self._budget_nanousd != budget_nanousd:
            at_ms = now_ms(self._clock)
            await self._database.write(lambda c: tenants.ensure_own(c, tenants.SECOND_TENANT, budget_nanousd, at_ms))
            self._budget_nanousd = budget_nanousd
        caller = replace(case.caller, max_session_nanousd=budget_nanousd)
        try:
            await ask(caller, case.chat, f"{tenants.SECOND}:{case.decision_id}"[:128], case.second)
        except RateLimited:
            return "busy"  # the model's limits have no spare room: what they have is the clients'
        return "answered"


def repeated(chat: ChatRequest, model: str, *, may_drop: bool) -> ChatRequest:
    """The request to another model: the same task, and nothing of its client.

    `store` is false; where parameters may not be dropped (`may_drop`), only if the client's request had it.
    """
    params = {name: value for name, value in chat.params.items() if name not in _NOT_REPEATED}
    if may_drop or "store" in chat.params:
        params["store"] = False
    kept = VENDOR_FIELDS - _NOT_REPEATED_EXTRAS
    return structs.replace(
        chat,
        model=model,
        params=params,
        extras={name: value for name, value in chat.extras.items() if name in kept},
        stream=False,
        include_usage=False,
        session_hint=None,
        body_sha256=b"",
        forwarded=None,
        dropped=(),
    )
