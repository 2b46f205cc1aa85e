"""A sampled judge: a model grades some answers, in the background, with money of its own.

    settled answer --sampled--> bounded queue --> one turn of tenant `judge` --> feedback, source "judge"

The judge's turns go the way of every turn, through the same ledger; their budget is the tenant `judge`, whose budget
starts again every day. No turn ever waits for it: a full queue drops what comes. Texts live in the queue and nowhere
else. What the judge's own turns were is logged with origin "judge", and training leaves them out.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import orjson
from sqlalchemy import Connection

from gateway.accounts import tenants
from gateway.accounts.auth import JUDGE_TENANT, Caller
from gateway.clock import Clock, NewId, now_ms
from gateway.config.settings import JudgeSettings
from gateway.database.database import Database
from gateway.decisions import feedback
from gateway.dialects.request import message_text
from gateway.errors import GatewayError, NotFound
from gateway.metrics import Metrics
from gateway.routing.router import share
from gateway.turn.context import Attempt

_log = logging.getLogger("seqroute.judge")
Ask = Callable[[Caller, bytes, str], Coroutine[Any, Any, bytes]]
"""(caller, chat body, session id) -> the answer's body. `Turns.own_turn`."""

WAITING = 64
"""Answers in the queue; each holds at most CONVERSATION_CHARS and ANSWER_CHARS."""
CONVERSATION_CHARS, ANSWER_CHARS = 12_000, 8_000
ANSWER_TOKENS = 512
PAUSE_S = 5.0
"""Between two looks at a ledger that is away or a budget that is empty."""
_SCORE = re.compile(r'\{[^{}]*"score"\s*:\s*(-?\d+(?:\.\d+)?)\s*[,}]')


@dataclass(frozen=True, slots=True)
class Case:
    """An answer to grade, and whose it is."""

    tenant_id: str
    decision_id: str
    conversation: str
    answer: str


class Judge:
    """Samples settled answers and has them graded, one after the other."""

    def __init__(
        self,
        settings: Callable[[], JudgeSettings | None],
        *,
        database: Database,
        metrics: Metrics,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._settings = settings
        self._database = database
        self._metrics = metrics
        self._clock = clock
        self._new_id = new_id
        self._waiting: asyncio.Queue[Case] = asyncio.Queue(WAITING)
        self._budget_nanousd: int | None = None

    def offer(self, bound: Attempt, answer: str) -> None:
        """Take an answer that was settled, if it is drawn and there is room. Never waits, never raises."""
        settings, scene = self._settings(), bound.scene
        if settings is None or scene.caller.origin is not None or scene.outage is not None or not answer.strip():
            return
        if share(bound.decision_id) >= settings.sample:  # by the id: the same on every replica, and on a retry
            return
        case = Case(scene.caller.tenant_id, bound.decision_id, transcript(scene.chat.messages), answer[:ANSWER_CHARS])
        try:
            self._waiting.put_nowait(case)
        except asyncio.QueueFull:
            self._metrics.judged.labels("dropped").inc()

    async def run(self, ask: Ask) -> None:
        """Grade what is offered, until cancelled."""
        while True:
            case = await self._waiting.get()
            settings = self._settings()
            if settings is None:
                continue
            try:
                outcome = await self._grade(case, settings, ask)
            except GatewayError as error:
                outcome = error.code
                if error.status in (402, 503):
                    await asyncio.sleep(PAUSE_S)
            except Exception:  # noqa: BLE001 - a case that cannot be graded must not end the judge
                _log.exception("an answer could not be graded")
                outcome = "fault"
            self._metrics.judged.labels(outcome).inc()

    async def _grade(self, case: Case, settings: JudgeSettings, ask: Ask) -> str:
        await self._ensure_purse(settings)
        caller = Caller(
            tenant_id=JUDGE_TENANT, key_id="key_judge", role="tenant", has_budget=False, key_models=None,
            max_session_nanousd=settings.budget_nanousd_per_day,
        )  # fmt: skip
        reply = await ask(caller, question(case, settings), f"judge:{case.decision_id}"[:128])
        score = read_score(reply)
        if score is None:
            return "unreadable"
        signal = feedback.Signal("decision", case.decision_id, feedback.JUDGE, settings.model[:64], score, None)
        made = self._new_id("fb")
        try:
            await self._database.write(lambda c: feedback.store(c, signal, case.tenant_id, made, now_ms(self._clock)))
        except NotFound:
            return "gone"
        return "graded"

    async def _ensure_purse(self, settings: JudgeSettings) -> None:
        """The tenant with the budget that the configuration says; it starts again every day."""
        budget = settings.budget_nanousd_per_day
        if self._budget_nanousd == budget:
            return

        def ensure(connection: Connection) -> None:
            made: dict[str, Any] = {"budget_nanousd": budget, "actor": JUDGE_TENANT, "now_ms": now_ms(self._clock)}
            found = tenants.ensure_tenant(connection, JUDGE_TENANT, JUDGE_TENANT, window="1d", **made)
            if found.balance.granted_nanousd != budget:
                tenants.patch_tenant(
                    connection, JUDGE_TENANT, {"budget_nanousd": budget}, actor=JUDGE_TENANT, now_ms=made["now_ms"]
                )

        await self._database.write(ensure)
        self._budget_nanousd = budget


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as text, its newest part where it is long; texts only, named by role."""
    text = "\n\n".join(f"[{message.get('role')}] {message_text(message)}" for message in messages)
    return text[-CONVERSATION_CHARS:]


def question(case: Case, settings: JudgeSettings) -> bytes:
    """The chat body that asks for a grade: the rubric, then the material between markers that it cannot contain."""
    mark = f"====={case.decision_id}====="
    material = f"Conversation:\n{mark}\n{case.conversation}\n{mark}\n\nAnswer to grade:\n{mark}\n{case.answer}\n{mark}"
    return orjson.dumps(
        {
            "model": settings.model,
            "messages": [
                {"role": "system", "content": settings.rubric or default_rubric()},
                {"role": "user", "content": material},
            ],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
        }
    )


def read_score(reply: bytes) -> float | None:
    """The last `{"score": x}` of the answer, x in [0, 1]; None when there is none."""
    body = orjson.loads(reply)
    choices = body.get("choices") if isinstance(body, dict) else None
    message = choices[0].get("message") if isinstance(choices, list) and choices else None
    content = message.get("content") if isinstance(message, dict) else None
    found = _SCORE.findall(content) if isinstance(content, str) else []
    score = float(found[-1]) if found else -1.0
    return score if 0.0 <= score <= 1.0 else None


def default_rubric() -> str:
    """The rubric that is shipped."""
    return resources.files("gateway.turn").joinpath("rubric.txt").read_text(encoding="utf-8")
