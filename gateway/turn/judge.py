"""The judge: a model grades a sample of responses, in the background, with its own budget.

    settled answer --sampled--> bounded queue --> one turn of tenant `judge` --> feedback, source "judge"

The judge's turns are ordinary turns through the same ledger, paid by the tenant `judge`, whose budget resets every
day. Client turns never wait for it: a full queue drops new cases. Texts are kept only in the queue. The judge's own
turns are logged with origin "judge" and are excluded from training.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import orjson

from gateway.accounts import tenants
from gateway.accounts.auth import JUDGE_KEY_ID, Caller
from gateway.clock import Clock, NewId, now_ms
from gateway.config.settings import JudgeSettings
from gateway.database.database import Database
from gateway.decisions import feedback
from gateway.dialects.chat import first_message
from gateway.dialects.chat_messages import message_text
from gateway.errors import GatewayError, InvalidRequest, NotFound
from gateway.metrics import Metrics
from gateway.routing.router import share
from gateway.turn.context import Attempt
from gateway.unchecked import mapping

_log = logging.getLogger("seqroute.judge")
Ask = Callable[[Caller, bytes, str], Coroutine[Any, Any, bytes]]
"""(caller, chat body, session id) -> the response body; `Turns.own_turn`."""

WAITING = 64
"""Length of the queue; a case has at most CONVERSATION_CHARS and ANSWER_CHARS."""
CONVERSATION_CHARS, ANSWER_CHARS = 12_000, 8_000
ANSWER_TOKENS = 512
PAUSE_S = 5.0
"""Pause after a ledger outage or a spent budget."""
_SCORE = re.compile(r'\{[^{}]*"score"\s*:\s*(-?\d+(?:\.\d+)?)\s*[,}]')


@dataclass(frozen=True, slots=True)
class Case:
    """A response to grade, with its tenant and decision."""

    tenant_id: str
    decision_id: str
    conversation: str
    answer: str


class Judge:
    """Samples settled responses and has them graded one by one."""

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

    @property
    def waiting(self) -> int:
        """Number of answers in the queue."""
        return self._waiting.qsize()

    def offer(self, attempt: Attempt, answer: str, *, paired: bool = False) -> None:
        """Queue a settled response if it is sampled and there is room. Never waits or raises.

        Both answers of a turn with a second one are graded: `paired` is the first, a turn of origin "second" the other.
        """
        settings, context = self._settings(), attempt.context
        is_second = context.second is not None
        if settings is None or context.outage is not None or not answer.strip():
            return
        if context.caller.origin is not None and not is_second:
            return
        # By id: the same on every replica and retry.
        if not (paired or is_second or share(attempt.decision_id) < settings.sample):
            return
        case = Case(
            context.caller.tenant_id, attempt.decision_id, transcript(context.chat.messages), answer[:ANSWER_CHARS]
        )
        try:
            self._waiting.put_nowait(case)
        except asyncio.QueueFull:
            self._metrics.judged.labels("dropped").inc()

    async def run(self, ask: Ask) -> None:
        """Grade queued responses until cancelled."""
        while True:
            case = await self._waiting.get()
            settings = self._settings()
            if settings is None:
                continue
            outcome = await outcome_of(self._grade(case, settings, ask))
            self._metrics.judged.labels(outcome).inc()

    async def _grade(self, case: Case, settings: JudgeSettings, ask: Ask) -> str:
        budget = settings.budget_nanousd_per_day
        if self._budget_nanousd != budget:
            at_ms = now_ms(self._clock)
            await self._database.write(lambda c: tenants.ensure_own(c, tenants.JUDGE_TENANT, budget, at_ms))
            self._budget_nanousd = budget
        caller = Caller(
            tenant_id=tenants.JUDGE_TENANT, key_id=JUDGE_KEY_ID, role="tenant", has_budget=False, key_models=None,
            max_session_nanousd=budget,
        )  # fmt: skip
        reply = await ask(caller, question(case, settings), f"judge:{case.decision_id}"[:128])
        score = read_score(reply)
        if score is None:
            return "unreadable"
        signal = feedback.FeedbackSignal("decision", case.decision_id, feedback.JUDGE, settings.model[:64], score, None)
        made = self._new_id("fb")
        try:
            await self._database.write(lambda c: feedback.store(c, signal, case.tenant_id, made, now_ms(self._clock)))
        except NotFound:
            return "gone"
        return "graded"


async def outcome_of(work: Awaitable[str]) -> str:
    """The outcome of a background turn, failed or not; pauses after a spent budget or an outage."""
    try:
        return await work
    except GatewayError as error:
        if error.status in (402, 503):
            await asyncio.sleep(PAUSE_S)
        elif isinstance(error, InvalidRequest):
            _log.warning("a turn in the background was refused: %s", error)
        return error.code
    except Exception:  # noqa: BLE001 - a turn that fails must not end those that wait
        _log.exception("a turn in the background failed")
        return "fault"


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation's texts with their roles; only the newest part if it is long."""
    text = "\n\n".join(f"[{message.get('role')}] {message_text(message)}" for message in messages)
    return text[-CONVERSATION_CHARS:]


def question(case: Case, settings: JudgeSettings) -> bytes:
    """The chat body of a grading turn: rubric, then the case between unpredictable markers."""
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
    """The last `{"score": x}` of the reply with x in [0, 1], or None."""
    content = first_message(mapping(orjson.loads(reply))).get("content")
    found = _SCORE.findall(content) if isinstance(content, str) else []
    score = float(found[-1]) if found else -1.0
    return score if 0.0 <= score <= 1.0 else None


def default_rubric() -> str:
    """The shipped rubric."""
    return resources.files("gateway.turn").joinpath("rubric.txt").read_text(encoding="utf-8")
