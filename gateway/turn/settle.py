"""Settles a call however it ends: resolves its hold exactly once and completes its decision."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from gateway.catalog import cost
from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.tokens import TokenCounter
from gateway.catalog.usage import ReportedUsage
from gateway.clock import Clock, now_ms
from gateway.decisions import log
from gateway.decisions.failures import column
from gateway.dialects.chat import first_message, generated_text
from gateway.errors import Draining, GatewayError, LedgerUnavailable, UpstreamError
from gateway.ledger.leases import CHECKPOINT_S, Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Answer, Beginning, Release, Resolved, Settle
from gateway.metrics import Metrics, OfModel
from gateway.money import NANOUSD_PER_USD
from gateway.providers.errors import UpstreamFault
from gateway.providers.replies import Reply
from gateway.routing import session as sessions
from gateway.routing.conversations import answer_digest
from gateway.turn.bill import bill_of, own_bill
from gateway.turn.context import Attempt, TurnContext
from gateway.turn.headers import TurnReport
from gateway.turn.idempotency import error_answer, kept_answer
from gateway.turn.signals import StreamedAnswer, implicit_signals
from gateway.turn.stream import StreamEnd

_log = logging.getLogger("seqroute.turn")
Render = Callable[[TurnReport, cost.Settlement], Response]
KeepStream = Callable[[TurnReport, cost.Settlement, GatewayError | None], Answer]
STATUSES = {"finished": "completed", "failed": "truncated", "client_left": "cancelled", "stopped": "cancelled"}
"""The status of the decision, by how its stream ended."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Callbacks of settlements; none may wait or raise."""

    on_freed: Callable[[str, str], None] = lambda tenant_id, session_id: None
    """Called with the tenant and session to which a bill or a release gave money back."""
    on_end: Callable[[Attempt, Mapping[str, Any], cost.Settlement | None], None] = lambda attempt, columns, bill: None
    """Called at a turn's end with the columns that complete its decision, before they are stored."""
    on_answer: Callable[[Attempt, str], None] = lambda attempt, text: None
    """Called with every complete response, after its bill is posted."""


class Settlements:
    """Resolves holds. Run its coroutines as tasks that outlive a cancelled request."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        leases: Leases,
        tokens: TokenCounter,
        forecast: OutputForecast,
        metrics: Metrics,
        clock: Clock,
        listeners: Listeners = Listeners(),
    ) -> None:
        self._ledger = ledger
        self._leases = leases
        self._tokens = tokens
        self._forecast = forecast
        self._metrics = metrics
        self._of_model: dict[str, OfModel] = {}
        self._clock = clock
        self._listeners = listeners

    async def reply(self, attempt: Attempt, reply: Reply, render: Render) -> tuple[TurnReport, cost.Settlement]:
        """Settle a complete response. `render` makes the response stored under an idempotency key."""
        self._end(attempt)
        text, own_count = generated_text(reply.body), 0
        if cost.needs_own_count(reply.usage):
            own_count = await self._tokens.count_generated(text)
        bill = bill_of(attempt, reply.usage, own_count)
        self._learn(attempt, bill, reply.finish_reason)
        signals = implicit_signals(
            attempt.context.chat, attempt.context.memory, reply.body.get("choices") or [], reply.finish_reason
        )
        columns = self._columns(
            attempt,
            bill,
            status="completed",
            finish_reason=reply.finish_reason,
            signals=signals,
            response_text=log.stored_answer(reply.body) if attempt.context.caller.store_text else None,
        )
        answer = None if attempt.context.idempotency is None else kept_answer(render(attempt.report(bill), bill))
        message = first_message(reply.body)
        resolved = await self._settle(
            attempt, bill, columns, failed=False, signals=signals, answer=answer, message=message
        )
        self._listeners.on_answer(attempt, text)
        return attempt.report(bill, resolved), bill

    async def stream(
        self, attempt: Attempt, end: StreamEnd, heard: StreamedAnswer, keep: KeepStream | None
    ) -> tuple[TurnReport, cost.Settlement, GatewayError | None]:
        """Settle a stream, however it ended. `keep` makes the copy stored under an idempotency key."""
        self._end(attempt)
        own_count = await self._tokens.count_generated(end.text) if cost.needs_own_count(end.usage) else 0
        bill = bill_of(attempt, end.usage, own_count)
        if end.ending == "finished":
            self._learn(attempt, bill, end.finish_reason)
        error: GatewayError | None = end.fault.answer() if end.fault is not None else None
        if end.ending == "stopped":  # our own shutdown counts against no model, policy or provider
            error = Draining("this replica shut down before the answer was complete; try again")
        # What a broken stream says of its tool calls is only that it broke.
        whole = heard.choices() if end.ending == "finished" else []
        signals = implicit_signals(attempt.context.chat, attempt.context.memory, whole, end.finish_reason)
        if end.ending == "failed":
            signals["upstream_failure"] = True
        columns = self._columns(
            attempt,
            bill,
            status=STATUSES[end.ending],
            finish_reason=end.finish_reason,
            signals=signals,
            error_code=error.code if error else None,
            response_text=end.text if attempt.context.caller.store_text else None,
        )
        # After a disconnect, a retry gets the received part and an error, never a second call.
        shown = _cut_short() if end.ending == "client_left" else error
        answer = None if keep is None else keep(attempt.report(bill), bill, shown)
        resolved = await self._settle(
            attempt,
            bill,
            columns,
            failed=end.ending == "failed",
            signals=signals,
            answer=answer,
            message=heard.first_message() if end.ending == "finished" else None,
        )
        if end.ending == "finished":
            self._listeners.on_answer(attempt, end.text)
        return attempt.report(bill, resolved), bill, error

    async def abandoned(self, attempt: Attempt, reported: ReportedUsage = None) -> None:
        """Settle a call whose client disconnected; what was not `reported` is estimated."""
        self._end(attempt)
        bill = self._silent_bill(attempt, reported)
        columns = self._columns(attempt, bill, status="cancelled", finish_reason=None, signals={})
        answer = (
            None
            if attempt.context.idempotency is None
            else kept_answer(error_answer(attempt.context.dialect, _cut_short()))
        )
        await self._settle(attempt, bill, columns, failed=True, signals={}, answer=answer)

    async def failed(self, attempt: Attempt, fault: UpstreamFault, *, final: bool) -> int:
        """Release a failed attempt that cannot have been billed; settle another at an estimate.

        Returns the bill in nano-USD. A call that may have been billed is not repeated under its idempotency key: its
        failure is stored.
        """
        error = fault.answer()
        code = error.code
        if not fault.dispatched:
            await self.release(attempt, status="failed" if final else None, error_code=code, upstream_failure=True)
            return 0
        self._end(attempt)
        bill = self._silent_bill(attempt, fault.usage)
        columns = self._columns(
            attempt, bill, status="failed", finish_reason=None, signals={"upstream_failure": True}, error_code=code
        )
        answer = (
            kept_answer(error_answer(attempt.context.dialect, error))
            if final and attempt.context.idempotency is not None
            else None
        )
        await self._settle(
            attempt, bill, columns if final else None, failed=True, signals={"upstream_failure": True}, answer=answer
        )
        return bill.amount_nanousd

    async def release(
        self, attempt: Attempt, *, status: str | None, error_code: str, upstream_failure: bool = False
    ) -> None:
        """Release the hold; `status` None leaves the decision pending for the next attempt."""
        if not upstream_failure:
            attempt.slot.unsent()
        self._end(attempt)
        attempt.slot.used(0)
        now = now_ms(self._clock)
        signals = '{"upstream_failure":true}' if upstream_failure else "{}"
        columns: dict[str, Any] = {}
        if attempt.failures:
            columns["failures"] = column(attempt.failures)
        if status is not None:
            columns |= {
                "status": status, "error_code": error_code, "usage_source": "none", "completed_at_ms": now,
                "latency_ms": now - attempt.context.started_ms, "signals": signals, **attempt.choice.fallback_columns,
            }  # fmt: skip
            self._listeners.on_end(attempt, columns, None)
        self._metrics.turns.labels(attempt.model, status or "retried").inc()
        try:
            await (attempt.context.outage or self._ledger).release(
                Release(
                    attempt.hold_id,
                    decision=columns or None,
                    drop_idempotency=status is not None,
                    beginning=None if status is None else _beginning(attempt.context, None),
                )
            )
            self._listeners.on_freed(attempt.context.caller.tenant_id, attempt.context.session_id)
        except LedgerUnavailable:
            _log.warning("the release of %s waits for the database", attempt.hold_id)

    def _end(self, attempt: Attempt) -> None:
        """End the call, as a settlement's first step: the sweeper finds the hold if a later step raises."""
        self._leases.drop(attempt.hold_id)
        attempt.slot.leave()

    async def _settle(
        self,
        attempt: Attempt,
        bill: cost.Settlement,
        columns: dict[str, Any] | None,
        *,
        failed: bool,
        signals: Mapping[str, bool],
        answer: Answer | None,
        message: Mapping[str, Any] | None = None,
    ) -> Resolved | None:
        """Post the bill, complete the decision and update the session's memory, in one transaction.

        `message` is the answer's first, when there was a whole one. None during a database outage: the ledger keeps
        posting, and the paid response is delivered.
        """
        attempt.slot.used(bill.usage.prompt_tokens + bill.usage.output_tokens)
        context = attempt.context
        # Embeddings are not turns of the conversation and do not change its memory.
        update = (
            None
            if context.chat.mode != "chat"
            else sessions.memory_update(
                explores=context.explores,
                model=attempt.model,
                digests=context.chat.digests,
                prompt_tokens=columns["input_tokens"] if columns else 0,
                output_tokens=columns["output_tokens"] if columns else 0,
                failed=failed,
                regenerated="regenerates" in signals,
                tool_error="invalid_tool_json" in signals,
                closed=_closed(context) if message is not None and not failed else None,
                wrapped_nanousd=_wrapped_nanousd(context),
                at_ms=now_ms(self._clock),
                homes=_homes(attempt),
            )
        )
        self._count(attempt, bill, columns)
        try:
            resolved = await (context.outage or self._ledger).settle(
                Settle(
                    hold_id=attempt.hold_id,
                    amount_nanousd=bill.amount_nanousd,
                    usage_source=bill.usage_source,
                    decision=columns,
                    session_memory=update,
                    close_session=context.asked.end_session and columns is not None,
                    answer=answer,
                    beginning=None if columns is None else _beginning(context, message),
                    tokens=bill.usage.prompt_tokens + bill.usage.output_tokens,
                )
            )
            self._listeners.on_freed(context.caller.tenant_id, context.session_id)
            return resolved
        except LedgerUnavailable:
            _log.warning("the bill of %s waits for the database", attempt.hold_id)
            return None

    def _count(self, attempt: Attempt, bill: cost.Settlement, columns: Mapping[str, Any] | None) -> None:
        """Count a billed call in the metrics, and tell the listener of its turn's end."""
        context, model = attempt.context, attempt.model
        self._metrics.turns.labels(model, columns["status"] if columns else "retried").inc()
        if columns is not None:
            self._metrics.turn_seconds.observe(max(0, now_ms(self._clock) - context.started_ms) / 1000)
            if attempt.sent_ms and not attempt.failures:
                self._metrics.added_seconds.observe(max(0, attempt.sent_ms - context.started_ms) / 1000)
            self._listeners.on_end(attempt, columns, bill)
        metrics = self._metrics_of(model)
        metrics.spent.inc(bill.amount_nanousd / NANOUSD_PER_USD)
        metrics.prompt_tokens.inc(bill.usage.prompt_tokens)
        metrics.cached_tokens.inc(bill.usage.cached_tokens)
        if bill.alarm:
            self._metrics.alarms.labels(bill.alarm).inc()
            _log.error("model %s: %s at settlement", model, bill.alarm)

    def _metrics_of(self, model: str) -> OfModel:
        found = self._of_model.get(model)
        if found is None:
            found = self._of_model[model] = OfModel.among(self._metrics, model)
        return found

    def _columns(
        self,
        attempt: Attempt,
        bill: cost.Settlement,
        *,
        status: str,
        finish_reason: str | None,
        signals: Mapping[str, bool],
        error_code: str | None = None,
        response_text: str | None = None,
    ) -> dict[str, Any]:
        now = now_ms(self._clock)
        return (
            log.completed_columns(
                decision_id=attempt.decision_id,
                status=status,
                usage=bill.usage,
                usage_source=bill.usage_source,
                latency_ms=now - attempt.context.started_ms,
                first_byte_ms=None
                if attempt.first_byte_ms is None
                else attempt.first_byte_ms - attempt.context.started_ms,
                finish_reason=finish_reason,
                error_code=error_code,
                signals=signals,
                response_text=response_text,
                now_ms=now,
                failures=attempt.failures,
            )
            | attempt.choice.fallback_columns
        )

    def _learn(self, attempt: Attempt, bill: cost.Settlement, finish_reason: str | None) -> None:
        """Update the length forecast from a complete response; a clamped one would bias it."""
        if attempt.context.chat.mode != "chat" or attempt.context.second:
            return
        estimate = attempt.choice.estimate
        if bill.usage_source == "reported" and estimate.matching_tokens:
            cached = bill.usage.cached_tokens
            if estimate.view.warm_tokens:
                self._metrics.cached_share.labels(attempt.model).observe(cached / estimate.view.warm_tokens)
            self._forecast.cache.observe(
                attempt.model, estimate.matching_tokens, cached, estimate.matching_age_s, marked=bool(estimate.mark)
            )
        predicted_usd = attempt.choice.expected_usd
        if bill.usage_source == "reported" and predicted_usd > 0:
            metrics = self._metrics_of(attempt.model)
            metrics.cost_ratio.observe(bill.amount_nanousd / NANOUSD_PER_USD / predicted_usd)
            metrics.forecast_level.observe(estimate.level_of(bill.amount_nanousd))
        model, asked = estimate.option.model, attempt.context.chat.effort
        as_chosen = not model.effort or asked in (None, model.effort)
        if bill.usage_source == "reported" and finish_reason != "length" and as_chosen:
            tokens = bill.usage.output_tokens // attempt.context.chat.n
            self._forecast.observe(model.action, tokens, self._seconds(attempt), model.effort)

    def checkpoint_nanousd(self, attempt: Attempt, output_tokens: int) -> int:
        """The sweeper's posting if this process dies now.

        For a stream, the received part and one checkpoint interval; otherwise the likely bill.
        """
        estimate = attempt.choice.estimate
        if not attempt.context.chat.stream:
            if not estimate.tool_calls:
                return estimate.likely_nanousd
            return own_bill(attempt, math.ceil(estimate.view.output_tokens_mean)).amount_nanousd
        margin = self._generated(attempt, CHECKPOINT_S)
        return own_bill(attempt, output_tokens + margin).amount_nanousd

    def _silent_bill(self, attempt: Attempt, reported: ReportedUsage = None) -> cost.Settlement:
        """The bill of a call without a response: reported usage, else elapsed time at the model's speed."""
        return bill_of(attempt, reported, self._generated(attempt, self._seconds(attempt)))

    def _generated(self, attempt: Attempt, seconds: float) -> int:
        """Output tokens of all choices that are likely after `seconds`."""
        estimate = attempt.choice.estimate
        model = estimate.option.model
        return attempt.context.chat.n * self._forecast.generated(
            model.action, seconds, estimate.max_tokens, model.effort
        )

    def _seconds(self, attempt: Attempt) -> float:
        """Seconds since this attempt was sent."""
        return max(0.0, now_ms(self._clock) - attempt.sent_ms) / 1000


def _beginning(context: TurnContext, message: Mapping[str, Any] | None) -> Beginning | None:
    """What a turn without an id leaves, so that the next one of its conversation finds the session."""
    if context.place is None:
        return None
    return context.place.beginning(None if message is None else answer_digest(message))


def _homes(attempt: Attempt) -> Mapping[str, str] | None:
    """The session's deployments after this turn; None where its model has only one."""
    option = attempt.choice.estimate.option
    if len(option.model.deployments) == 1:
        return None
    return {**attempt.context.memory.homes, attempt.model: attempt.deployment.deployment_id}


def _closed(context: TurnContext) -> bool | None:
    """Whether an answer was served in wrap-up; None for an ordinary one after another."""
    return context.closing if context.closing or context.memory.closed else None


def _wrapped_nanousd(context: TurnContext) -> int | None:
    """The budget whose last answer this was; None for another turn, and where the session has money left."""
    ended = context.closing and context.funds_of_accounts.account == "session"
    return context.budget_nanousd if ended else None


def _cut_short() -> UpstreamError:
    """The error for retries of a response that was cut off by its client's disconnect."""
    return UpstreamError("the first request's connection was closed before the end of this response; use another key")
