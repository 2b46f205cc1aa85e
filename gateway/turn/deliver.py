"""Delivers a response: settles its bill, renders it in the client's dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from msgspec import structs
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.catalog.cost import Settlement
from gateway.catalog.live import Configuration
from gateway.clock import Clock, now_ms
from gateway.decisions.refused_turns import NO_SESSION, RefusedTurns
from gateway.errors import GatewayError, KeyBudgetExceeded, ParentBudgetExceeded, TenantBudgetExceeded
from gateway.http import json_response
from gateway.ledger.leases import Leases
from gateway.ledger.types import Answer
from gateway.providers.answers import UpstreamStream
from gateway.providers.replies import Reply
from gateway.tasks import Background
from gateway.turn.context import Attempt, TurnContext, billed
from gateway.turn.failures import failed_attempt
from gateway.turn.headers import TurnReport
from gateway.turn.idempotency import Transcript, kept_stream
from gateway.turn.settle import Settlements
from gateway.turn.signals import StreamedAnswer
from gateway.turn.stream import EventStreamResponse, StreamEnd, StreamPump


class Delivery:
    """Settles and renders responses; knows the streams under way."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        settling: Settlements,
        leases: Leases,
        background: Background,
        refused: RefusedTurns,
        clock: Clock,
    ) -> None:
        self._configuration = configuration
        self._settling = settling
        self._leases = leases
        self._background = background
        self._refused = refused
        self._clock = clock
        self.live_streams: WeakSet[StreamPump] = WeakSet()

    def refusal(self, context: TurnContext, error: GatewayError, *, stored: bool) -> None:
        """Count a turn that the spent budget refused; `stored`: its session has a row."""
        caller, refusing = context.caller, None
        if isinstance(error, KeyBudgetExceeded):
            refusing = ("key", caller.key_id)
        elif isinstance(error, TenantBudgetExceeded):
            refusing = ("tenant", caller.tenant_id)
        session_id = context.session_id if stored else NO_SESSION
        if isinstance(error, ParentBudgetExceeded) and not stored:  # its parent has a row
            session_id = context.parent_session_id or NO_SESSION
        self._refused.add(caller.tenant_id, session_id, error.code, refusing)

    async def whole(self, attempt: Attempt, reply: Reply) -> Response:
        """Settle a complete response and render it in its dialect."""
        dialect, identity = attempt.context.dialect, attempt.identity(self._clock())

        def render(report: TurnReport, bill: Settlement) -> Response:
            # The copy that is stored under a key is made before the settlement, so no body has what is left after it.
            told = report if attempt.context.idempotency is None else attempt.report(bill)
            body = dialect.whole(identity, reply.body, billed(attempt.context, told, bill))
            return json_response(body, 200, report.as_headers())

        report, bill = await self._settling.reply(attempt, reply, render)
        response = render(report, bill)
        await dialect.keep(attempt.context.session_id)
        return response

    def stream(self, attempt: Attempt, stream: UpstreamStream) -> ASGIApp:
        """Start a pump for the stream, which settles it whatever the client does."""
        dialect = attempt.context.dialect
        renderer = dialect.stream(attempt.identity(self._clock()))
        transcript = Transcript() if attempt.context.idempotency is not None else None
        heard = StreamedAnswer()

        def on_chunk(chunk: dict[str, Any]) -> bytes:
            heard.note(chunk)
            frames = renderer.chunk(chunk)
            if transcript is not None and frames:
                transcript.add(frames)
            return frames

        def on_progress(output_tokens: int) -> None:
            self._leases.progress(attempt.hold_id, self._settling.checkpoint_nanousd(attempt, output_tokens))

        def keep(report: TurnReport, bill: Settlement, error: GatewayError | None) -> Answer:
            assert transcript is not None
            return kept_stream(
                transcript, renderer.end(billed(attempt.context, report, bill), error), report.as_headers()
            )

        async def on_end(end: StreamEnd) -> list[bytes]:
            failures = attempt.failures
            if end.fault is not None:
                failures = (*failures, failed_attempt(attempt, end.fault, now_ms(self._clock)))
            ended = structs.replace(attempt, failures=failures)
            report, bill, error = await self._settling.stream(ended, end, heard, None if transcript is None else keep)
            last = renderer.end(billed(attempt.context, report, bill), error)
            if end.ending == "finished":
                await dialect.keep(attempt.context.session_id)
            return [last]

        pump = StreamPump(
            stream,
            on_chunk=on_chunk,
            on_progress=on_progress,
            on_end=on_end,
            spawn=self._background.spawn,
            buffer_bytes=self._configuration().settings.limits.stream_buffer_bytes,
        )
        self.live_streams.add(pump)
        return EventStreamResponse(pump, attempt.report().as_headers())
