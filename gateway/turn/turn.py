"""The path of a turn, from top to bottom.

    caller   = authenticate(headers)                     401
    chat     = parse(body)                               400, before any reservation
    context  = session, prompt tokens, eligible models
    attempt  = decide, then reserve                      402; after a lost race decide again, a few times; wait for
                                                         money that others only hold, then 429
    reply    = the provider's response                   no open transaction; every retry has its own hold
    report   = settle and complete the decision          one transaction
    respond

There is one transaction before and one after the provider call and none across it, so the ledger and the training log
stay consistent. Every outcome - a response, an error, a disconnect, a cancellation - resolves the hold once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast
from weakref import WeakSet

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive

from gateway.accounts.auth import Authenticator, Caller
from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.cost import Settlement
from gateway.catalog.live import Configuration
from gateway.catalog.models import Deployment
from gateway.catalog.tokens import TokenCounter
from gateway.clock import Clock, NewId, Uniform, now_ms
from gateway.config.settings import Settings
from gateway.decisions import log
from gateway.decisions.log import pending_row
from gateway.dialects.chat import ChatDialect
from gateway.dialects.dialect import Dialect
from gateway.dialects.request import ChatRequest, parse_chat
from gateway.errors import GatewayError, SessionBudgetExceeded, TenantBudgetExceeded
from gateway.http import header_map, json_response, read_body
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.offline import OfflineLedger
from gateway.ledger.types import Answer, Refused, Reserve, Reserved, ReserveOutcome
from gateway.metrics import Metrics
from gateway.providers.answers import UpstreamStream
from gateway.providers.cooldown import Breaker, pick_deployment
from gateway.providers.errors import CallRefused, RejectedFault, UpstreamFault
from gateway.providers.providers import Call, Upstream
from gateway.providers.replies import Reply
from gateway.routing import session as sessions
from gateway.routing.conversations import Conversations
from gateway.routing.estimates import Estimate, estimate
from gateway.routing.exploration import ExplorationBudget
from gateway.routing.observe import Observer
from gateway.routing.router import Router
from gateway.tasks import Background
from gateway.turn.context import Attempt, AvailableFunds, RoutingDecision, Shortage, TurnContext, billed, exhausted
from gateway.turn.headers import TurnReport, read_turn_headers
from gateway.turn.idempotency import Transcript, answer_or_raise, kept_stream
from gateway.turn.limits import turn_limits
from gateway.turn.prepare import Preparation
from gateway.turn.retry import Failures, next_attempt
from gateway.turn.settle import Settlements
from gateway.turn.signals import StreamedAnswer
from gateway.turn.stream import ClientLeft, EventStreamResponse, StreamEnd, StreamPump, run_until_disconnect
from gateway.turn.waiting import WAIT_S, HeldMoney

T = TypeVar("T")
ReadRequest = Callable[[bytes, Caller], Awaitable[tuple[ChatRequest, Dialect]]]
"""Parses a body to a chat request and its dialect. Raises InvalidRequest, NotFound."""
_log = logging.getLogger("seqroute.turn")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a disconnected client; it is never received."""
EMBEDDING = "embed"
"""Origin of embedding rows, which contain no decision and are excluded from training."""
RESERVE_TRIES = 4
"""Decisions of a turn that loses races for the remaining money."""


class Turns:
    """Serves turns. It has no state of its own between turns."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        ledger: Ledger,
        outage: OfflineLedger,
        authenticator: Authenticator,
        router: Router,
        observer: Observer,
        upstream: Upstream,
        tokens: TokenCounter,
        forecast: OutputForecast,
        breaker: Breaker,
        leases: Leases,
        settling: Settlements,
        held: HeldMoney,
        exploring: ExplorationBudget,
        conversations: Conversations,
        background: Background,
        metrics: Metrics,
        clock: Clock,
        new_id: NewId,
        uniform: Uniform,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._configuration = configuration
        self._ledger = ledger
        self._authenticator = authenticator
        self._router = router
        self._observer = observer
        self._upstream = upstream
        self._forecast = forecast
        self._breaker = breaker
        self._leases = leases
        self._settling = settling
        self._held = held
        self._exploring = exploring
        self._background = background
        self._metrics = metrics
        self._clock = clock
        self._new_id = new_id
        self._uniform = uniform
        self._preparation = Preparation(
            configuration=configuration,
            ledger=ledger,
            outage=outage,
            tokens=tokens,
            breaker=breaker,
            conversations=conversations,
            clock=clock,
        )
        self.live_streams: WeakSet[StreamPump] = WeakSet()

    @property
    def _settings(self) -> Settings:
        return self._configuration().settings

    async def serve(self, request: Request, read: ReadRequest) -> ASGIApp:
        """Serve one turn in any dialect; `read` parses the body."""
        headers = header_map(request)
        caller = await self._authenticator.caller(headers)
        body = await read_body(request, self._settings.limits)
        chat, dialect = await read(body, caller)
        asked = read_turn_headers(headers)
        claim = self._preparation.claim(chat, asked)
        replayed = await self._preparation.replayed(caller, claim)
        if replayed is not None:
            return replayed
        session_id, place = await self._preparation.session_of(caller, chat, claim, headers)
        try:
            with self._held.arriving((caller.tenant_id, session_id)):
                context = await self._preparation.prepare(caller, session_id, place, chat, dialect, asked, claim)
                attempt = await self._reserved_or_refused(context, request.receive)
        except ClientLeft:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if isinstance(attempt, Response):
            return attempt
        if chat.stream:
            return await self._stream(attempt)
        if claim is not None:
            # A client with a key may retry: a cancelled call would be made and paid for twice.
            return await self._background.run(self._complete(attempt))
        try:
            return await run_until_disconnect(request.receive, self._complete(attempt))
        except ClientLeft:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def route(self, request: Request) -> Response:
        """`POST /route`: the decision for a chat body, with every candidate; spends nothing."""
        headers = header_map(request)
        caller = await self._authenticator.caller(headers)
        chat = parse_chat(await read_body(request, self._settings.limits), self._settings.limits)
        dialect = ChatDialect(chat.include_usage)
        session_id, place = await self._preparation.session_of(caller, chat, None, headers)
        context = await self._preparation.prepare(
            caller, session_id, place, chat, dialect, read_turn_headers(headers), None
        )
        choice = self._decide(context, context.funds, patient=False)
        if isinstance(choice, Shortage):
            raise exhausted(context, choice)
        return json_response(log.dry_run(context.session_id, choice.observation, choice.routed, choice.estimate))

    async def own_turn(self, caller: Caller, body: bytes, session_id: str) -> bytes:
        """An internal turn, one per session, through the normal path and ledger."""
        chat = parse_chat(body, self._settings.limits)
        headers = {sessions.OWN_HEADER: session_id, "x-session-end": "true"}
        dialect = ChatDialect(chat.include_usage)
        context = await self._preparation.prepare(
            caller, session_id, None, chat, dialect, read_turn_headers(headers), None
        )
        attempt = await self._decide_and_reserve(context, None)
        answer = attempt if isinstance(attempt, Response) else await self._complete(attempt)
        return bytes(answer.body)

    # -- decide, reserve -------------------------------------------------------------------------------------------

    def _estimates(self, context: TurnContext, funds: AvailableFunds, patient: bool) -> list[Estimate]:
        """Estimates of all models, with their affordability."""
        over_budget = cast(Literal["degrade", "refuse"], self._settings.session.over_budget)
        company = self._held.company((context.caller.tenant_id, context.session_id))
        return [
            estimate(
                option,
                context.chat,
                context.memory,
                self._forecast,
                self._breaker,
                prompt_tokens=context.prompt.estimate,
                prompt_tokens_bound=context.prompt.bound,
                available_nanousd=funds.left_nanousd,
                over_budget=over_budget,
                at_ms=context.started_ms,
                contended=funds.contended,
                patient=patient,
                company=max(1, company),
            )
            for option in context.options
        ]

    def _shortage(self, context: TurnContext, funds: AvailableFunds) -> Shortage:
        """The reason why no model was affordable: the money is spent, held or was taken by others."""
        undisturbed = self._estimates(context, funds.undisturbed(), patient=False)
        held = any(e.view.feasible for e in undisturbed)
        needed = self._estimates(context, funds.all_held(), patient=True) if held else undisturbed
        least_nanousd = min(e.hold_nanousd for e in needed if not e.option.why_not)
        return Shortage(funds, least_nanousd, held)

    def _decide(self, context: TurnContext, funds: AvailableFunds, *, patient: bool) -> RoutingDecision | Shortage:
        """One decision within `funds`; `patient` excludes responses truncated by others' holds."""
        estimates = self._estimates(context, funds, patient)
        if not any(e.view.feasible for e in estimates):
            return self._shortage(context, funds)
        started_s = self._clock()
        observation = self._observer.observe(
            context.chat,
            context.memory,
            context.row,
            context.tenant,
            estimates,
            budget_nanousd=context.budget_nanousd,
            left_nanousd=funds.left_nanousd,
            expected_turns=context.asked.expected_turns or (context.row.expected_turns if context.row else None),
            lambda_per_usd=self._router.lambda_per_usd(context.wish, context.asked.lambda_per_usd),
            at_ms=context.started_ms,
            explore=context.explores and self._exploring.allows(),
        )
        uniform = self._uniform()
        routed = self._router.decide(
            observation, uniform, context.wish, f"{context.caller.tenant_id}/{context.session_id}"
        )
        self._metrics.decision_seconds.observe(max(0.0, self._clock() - started_s))
        return RoutingDecision(
            observation=observation,
            routed=routed,
            estimate=estimates[routed.decision.action],
            uniform=uniform,
        )

    async def _reserved_or_refused(self, context: TurnContext, receive: Receive) -> Attempt | Response:
        """As `_decide_and_reserve`; a first turn that money refuses leaves the budget that it asked for."""
        try:
            return await self._decide_and_reserve(context, receive)
        except (SessionBudgetExceeded, TenantBudgetExceeded):
            await self._background.run(self._settling.refused(context))
            raise

    async def _decide_and_reserve(self, context: TurnContext, receive: Receive | None) -> Attempt | Response:
        """Decide and reserve, waiting for money that others hold. Raises ClientLeft on a disconnect."""
        found = await self._try_to_reserve(context, patient=context.outage is None)
        if not isinstance(found, Shortage):
            return found
        if context.outage is not None or not found.held:
            raise exhausted(context, found)
        waiting = self._wait_and_reserve(context, found)
        return await (waiting if receive is None else run_until_disconnect(receive, waiting))

    async def _wait_and_reserve(self, context: TurnContext, found: Shortage) -> Attempt | Response:
        """Retry when money is released, at last for a shorter response. Raises 429, or 402 if spent."""
        account = context.session_id if found.funds.account == "session" else ""
        timeouts_s = (deployment.timeout_s for option in context.options for deployment in option.healthy)
        with self._held.line((context.caller.tenant_id, account), min(WAIT_S, *timeouts_s)) as place:
            patient = True
            while patient and found.held:
                place.short(found.least_nanousd, found.funds.left_nanousd)
                patient = await place.called()
                context = await self._preparation.refreshed(context)
                tried = await self._try_to_reserve(context, patient=patient)
                if not isinstance(tried, Shortage):
                    return tried
                found = tried
        raise exhausted(context, found)

    async def _try_to_reserve(self, context: TurnContext, *, patient: bool) -> Attempt | Response | Shortage:
        """Decide and reserve; after a lost race for the money, decide again with the rest."""
        funds = context.funds
        for _ in range(RESERVE_TRIES):
            choice = self._decide(context, funds, patient=patient)
            if isinstance(choice, Shortage):
                return choice
            decision_id = self._new_id("dec")
            row = pending_row(
                choice.observation,
                choice.routed.decision,
                uniform=choice.uniform,
                requested_model=context.chat.model,
                endpoint=context.dialect.endpoint,
                request_text=log.stored_request(context.chat) if context.caller.store_text else None,
                shadow=choice.routed.shadow,
                now_ms=context.started_ms,
                origin=context.caller.origin if context.chat.mode == "chat" else EMBEDDING,
                exploration_floor=self._settings.policy.exploration_floor if choice.observation.explore else 0.0,
            )
            answer = await self._reserve(context, choice, decision_id, row, choice.estimate.option.healthy)
            if isinstance(answer, Attempt):
                self._metrics.explored(self._exploring.charge(choice.observation, choice.routed.decision))
                return answer
            if isinstance(answer, Refused):
                funds = funds.after(answer)
                continue
            return answer_or_raise(answer)
        return self._shortage(context, funds)

    async def _reserve(
        self,
        context: TurnContext,
        choice: RoutingDecision,
        decision_id: str,
        row: dict[str, Any] | None,
        deployments: Sequence[Deployment],
    ) -> Attempt | ReserveOutcome:
        """Reserve the worst case of one attempt; `row` logs the decision (None: a further attempt)."""
        attempt = Attempt(
            context=context,
            choice=choice,
            decision_id=decision_id,
            hold_id=self._new_id("hold"),
            deployment=pick_deployment(deployments, self._uniform),
            session=context.tenant,
            tenant=context.tenant,
        )
        checkpoint_nanousd = self._settling.checkpoint_nanousd(attempt, 0)
        reserved = await (context.outage or self._ledger).reserve(
            Reserve(
                hold_id=attempt.hold_id,
                attempt_id=self._new_id("att"),
                decision_id=decision_id,
                tenant_id=context.caller.tenant_id,
                session_id=context.session_id,
                key_id=context.caller.key_id if context.caller.has_budget else None,
                model=choice.estimate.view.name,
                amount_nanousd=choice.estimate.hold_nanousd,
                ttl_ms=self._leases.ttl_ms,
                terms=context.terms,
                decision=row,
                idempotency=context.idempotency if row is not None else None,
                checkpoint_nanousd=checkpoint_nanousd,
                limits=turn_limits(context, choice.estimate, self._settings.general),
            )
        )
        if not isinstance(reserved, Reserved):
            return reserved
        if context.outage is None:
            self._leases.take(attempt.hold_id, checkpoint_nanousd)
        return replace(attempt, session=reserved.session, tenant=reserved.tenant, rates=reserved.reading)

    # -- the provider call -----------------------------------------------------------------------------------------

    async def _complete(self, attempt: Attempt) -> Response:
        """Make a non-streamed call and settle it."""
        send = self._upstream.complete if attempt.context.chat.mode == "chat" else self._upstream.embed
        attempt, reply = await self._reached(attempt, send)
        return await self._background.run(self._answered(attempt, reply))

    async def _answered(self, attempt: Attempt, reply: Reply) -> Response:
        """Settle a complete response and render it in its dialect."""
        dialect, identity = attempt.context.dialect, attempt.identity(self._clock())

        def render(report: TurnReport, bill: Settlement) -> Response:
            return json_response(dialect.whole(identity, reply.body, billed(report, bill)), 200, report.as_headers())

        report, bill = await self._settling.reply(attempt, reply, render)
        response = render(report, bill)
        await dialect.keep(attempt.context.session_id)
        return response

    async def _stream(self, attempt: Attempt) -> ASGIApp:
        """Start a stream; returns after its first chunk. Later failures end the stream."""
        attempt, stream = await self._reached(attempt, self._upstream.open_stream)
        return self._pumped(replace(attempt, first_byte_ms=now_ms(self._clock)), stream)

    async def _reached(self, attempt: Attempt, send: Callable[[Call], Coroutine[Any, Any, T]]) -> tuple[Attempt, T]:
        """Call the provider; retry where that cannot pay twice. Each failed attempt resolves its hold."""
        failures = Failures(asyncio.get_running_loop().time())
        while True:
            started_s = self._clock()
            attempt, sent = replace(attempt, sent_ms=int(started_s * 1000)), False
            try:
                call = self._call(attempt)
                if attempt.context.chat.mode == "chat":
                    attempt = replace(attempt, dropped=self._upstream.left_out(call))
                sent = True
                answer = await send(call)
            except UpstreamFault as fault:
                attempt = await self._next_attempt(attempt, fault, failures)
            except GatewayError as error:  # refused before sending
                await self._background.run(self._settling.release(attempt, status="failed", error_code=error.code))
                raise
            except BaseException:  # cancelled, or an internal error: once sent, the provider may be working
                self._background.spawn(
                    self._settling.abandoned(attempt)
                    if sent
                    else self._settling.release(attempt, status="failed", error_code="internal_error")
                )
                raise
            else:
                latency_s = self._clock() - started_s
                self._breaker.record(attempt.deployment.deployment_id, failed=False, latency_s=latency_s)
                return attempt, answer

    def _call(self, attempt: Attempt) -> Call:
        chat, deployment = attempt.context.chat, attempt.deployment
        return Call(
            litellm_model=deployment.litellm_model,
            messages=chat.messages,
            api_base=deployment.api_base,
            api_key=None if deployment.api_key is None else deployment.api_key.reveal(),
            params=chat.params,
            extras=chat.extras,
            defaults=deployment.request_defaults,
            allowed_params=deployment.allowed_params,
            dropped_params=deployment.dropped_params,
            max_tokens=attempt.choice.estimate.max_tokens,
            max_tokens_param=_limit_name(chat, deployment),
            limited=attempt.choice.estimate.limited,
            stream=chat.stream,
            timeout_s=deployment.timeout_s,
            stream_timeout_s=deployment.stream_timeout_s,
            idle_timeout_s=self._settings.timings.upstream_idle_s,
            extra_headers={name: value.reveal() for name, value in deployment.extra_headers.items()},
            drop_params=self._settings.router.drop_params,
            lane=deployment.lane,
            base_model=deployment.base_model,
            options={name: value.reveal() for name, value in deployment.provider_params.items()}
            | {
                name: value
                for name, value in (("api_version", deployment.api_version), ("organization", deployment.organization))
                if value is not None
            },
        )

    async def _next_attempt(self, attempt: Attempt, fault: UpstreamFault, failures: Failures) -> Attempt:
        """Resolve a failed attempt's hold; then reserve the next attempt, or raise the fault."""
        self._tell(attempt, fault)
        deployment = attempt.deployment
        faulty = not isinstance(fault, RejectedFault | CallRefused)
        first = deployment.deployment_id not in failures.seen
        self._breaker.record(deployment.deployment_id, failed=faulty, latency_s=0.0, counts=first)
        failures.note(deployment, fault)
        limit_s = deployment.stream_timeout_s if attempt.context.chat.stream else deployment.timeout_s
        further = next_attempt(
            fault,
            deployment,
            self._breaker.healthy(attempt.choice.estimate.option.model.deployments),
            failures.refused,
            retries=failures.count - 1,
            most_retries=self._settings.router.num_retries,
            left_s=limit_s - (asyncio.get_running_loop().time() - failures.since_s),
            uniform=self._uniform,
        )
        if attempt.context.asked.max_cost_nanousd is not None and fault.dispatched:
            further = None  # the first call may be billed: a second could exceed the request's limit
        await self._background.run(self._settling.failed(attempt, fault, final=further is None))
        if further is None:
            raise _final(fault, failures, attempt.decision_id)
        reserved = await self._reserve(attempt.context, attempt.choice, attempt.decision_id, None, further.deployments)
        if isinstance(reserved, Attempt):
            reserved = replace(reserved, rates=attempt.rates)
        else:
            # The failed attempt's row stays pending; the sweeper closes decisions without an open hold.
            raise _final(fault, failures, attempt.decision_id)
        try:
            await self._sleep(further.pause_s)
        except BaseException:  # cancelled before this attempt was sent
            self._background.spawn(self._settling.release(reserved, status="cancelled", error_code="client_closed"))
            raise
        return reserved

    def _tell(self, attempt: Attempt, fault: UpstreamFault) -> None:
        """Log one line: names and numbers, never a provider's message."""
        reported = fault.reported
        _log.warning(
            "attempt failed: decision=%s model=%s deployment=%s status=%s reason=%s"
            " type=%s code=%s param=%s address=%s",
            attempt.decision_id,
            attempt.model,
            attempt.deployment.deployment_id,
            fault.status or "-",
            json.dumps(fault.message),
            reported.type or "-",
            reported.code or fault.code or "-",
            reported.param or "-",
            fault.address or "-",
        )

    def _pumped(self, attempt: Attempt, stream: UpstreamStream) -> ASGIApp:
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
            return kept_stream(transcript, renderer.end(billed(report, bill), error), report.as_headers())

        async def on_end(end: StreamEnd) -> list[bytes]:
            if end.fault is not None:
                self._tell(attempt, end.fault)
            report, bill, error = await self._settling.stream(attempt, end, heard, None if transcript is None else keep)
            last = renderer.end(billed(report, bill), error)
            if end.ending == "finished":
                await dialect.keep(attempt.context.session_id)
            return [last]

        pump = StreamPump(
            stream,
            on_chunk=on_chunk,
            on_progress=on_progress,
            on_end=on_end,
            spawn=self._background.spawn,
            buffer_bytes=self._settings.limits.stream_buffer_bytes,
        )
        self.live_streams.add(pump)
        return EventStreamResponse(pump, attempt.report().as_headers())


def _limit_name(chat: ChatRequest, deployment: Deployment) -> str:
    """By which of OpenAI's names the answer's limit goes up: the client's, else the operator's."""
    newer = "max_completion_tokens"
    return newer if chat.max_tokens is None and newer in deployment.request_defaults else chat.max_tokens_param


def _final(fault: UpstreamFault, failures: Failures, decision_id: str) -> GatewayError:
    """The client's error for a fault; clients should not repeat retries that were made here."""
    error = fault.answer()
    error.headers["x-seqroute-decision-id"] = decision_id
    if failures.count > 1:
        error.headers["x-should-retry"] = "false"
    return error
