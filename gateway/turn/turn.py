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

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from weakref import WeakSet

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.accounts.auth import Authenticator, Caller
from gateway.accounts.sessions import session_paused
from gateway.catalog.live import Configuration
from gateway.config.settings import LimitSettings
from gateway.dialects.chat import ChatDialect
from gateway.dialects.dialect import Dialect
from gateway.dialects.request import ChatRequest, parse_chat
from gateway.errors import GatewayError, SessionBudgetExceeded, TenantBudgetExceeded
from gateway.http import Watch, header_map, read_body
from gateway.request_ids import REQUEST, RequestIds
from gateway.routing import guard
from gateway.routing import session as sessions
from gateway.tasks import Background
from gateway.turn.call import ProviderCalls
from gateway.turn.context import Attempt, Second, TurnContext
from gateway.turn.deliver import Delivery
from gateway.turn.headers import read_turn_headers
from gateway.turn.prepare import Preparation
from gateway.turn.reserve import Reservations
from gateway.turn.stall_rule import StallRule
from gateway.turn.stream import ClientLeft, StreamPump, run_until_disconnect, watch_of

ReadRequest = Callable[[bytes, Caller], Awaitable[tuple[ChatRequest, Dialect]]]
"""Parses a body to a chat request and its dialect. Raises InvalidRequest, NotFound."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a disconnected client; it is never received."""


class Turns:
    """Serves turns. It has no state of its own between turns."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        authenticator: Authenticator,
        preparation: Preparation,
        stall_rule: StallRule,
        reservations: Reservations,
        calls: ProviderCalls,
        delivery: Delivery,
        background: Background,
    ) -> None:
        self._configuration = configuration
        self._authenticator = authenticator
        self._preparation = preparation
        self._stall_rule = stall_rule
        self._reservations = reservations
        self._calls = calls
        self._delivery = delivery
        self._background = background

    @property
    def _limits(self) -> LimitSettings:
        return self._configuration().settings.limits

    @property
    def live_streams(self) -> WeakSet[StreamPump]:
        """The streams that are being delivered."""
        return self._delivery.live_streams

    async def serve(self, request: Request, read: ReadRequest) -> ASGIApp:
        """Serve one turn in any dialect; `read` parses the body."""
        headers = header_map(request)
        caller = await self._authenticator.caller(headers)
        body = await read_body(request, self._limits, headers)
        watch = watch_of(request)
        chat, dialect = await read(body, caller)
        asked = read_turn_headers(headers)
        claim = self._preparation.claim(chat, asked)
        replayed = await self._preparation.replayed(caller, claim)
        if replayed is not None:
            return replayed
        session_id, place = await self._preparation.session_of(caller, chat, claim, headers)
        try:
            # Siblings that start together have read the same balance of their parent, and share what it has.
            with self._reservations.arriving(caller, asked.parent_session_id or session_id):
                context = await self._preparation.prepare(caller, session_id, place, chat, dialect, asked, claim)
                attempt = await self._reserved(context, watch)
        except ClientLeft:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if isinstance(attempt, Response):
            return attempt
        answering: Coroutine[Any, Any, ASGIApp]
        answering = self._stream(attempt) if chat.stream else self._complete(attempt)
        if claim is not None:
            # A client with a key may retry: a cancelled call would be made and paid for twice.
            return await (answering if chat.stream else self._background.run(answering))
        try:
            return await run_until_disconnect(watch, answering)
        except ClientLeft:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def own_turn(self, caller: Caller, body: bytes, session_id: str) -> bytes:
        """An internal turn, one per session, through the normal path and ledger."""
        return await self._own(caller, parse_chat(body, self._limits), session_id, None)

    async def second_turn(self, caller: Caller, chat: ChatRequest, session_id: str, second: Second) -> bytes:
        """Answer a client's turn once more, by this model alone; no client sees it."""
        return await self._own(caller, chat, session_id, second)

    async def _own(self, caller: Caller, chat: ChatRequest, session_id: str, second: Second | None) -> bytes:
        REQUEST.set(RequestIds())  # for the lines of this task, until its next turn
        headers = {sessions.OWN_HEADER: session_id, "x-session-end": "true"}
        dialect = ChatDialect(chat.include_usage)
        context = await self._preparation.prepare(
            caller, session_id, None, chat, dialect, read_turn_headers(headers), None
        )
        if second is not None:
            options = [each for each in context.options if each.model.action == second.action]
            guard.refuse_when_none(options, chat, context.prompt.estimate)
            context = structs.replace(context, options=options, stand_in=None, second=second)
        attempt = await self._reservations.decide_and_reserve(context, None)
        answer = attempt if isinstance(attempt, Response) else await self._complete(attempt)
        return bytes(answer.body)

    async def _reserved(self, context: TurnContext, watch: Watch) -> Attempt | Response:
        """The reserved attempt; a turn that money refuses is counted, and a first one leaves its budget."""
        try:
            attempt = await self._ordinary_or_last(context, watch)
        except (SessionBudgetExceeded, TenantBudgetExceeded) as error:
            await self._background.run(self._refuse(context, error))
            raise
        if isinstance(attempt, Attempt) and attempt.raises_budget:
            self._background.spawn(self._preparation.raise_below(context))
        return attempt

    async def _refuse(self, context: TurnContext, error: GatewayError) -> None:
        stored = await self._preparation.keep_session(context, error) or context.row is not None
        self._delivery.refusal(context, error, stored=stored)

    async def _ordinary_or_last(self, context: TurnContext, watch: Watch) -> Attempt | Response:
        """Reserve an ordinary turn, or, in a session with wrap-up, a last answer when only that is left."""
        if context.row is not None and context.row.state == "paused":
            raise session_paused(context.session_id)
        await self._stall_rule.check(context)
        if context.chat.mode != "chat" or not self._wraps_up(context):
            return await self._reservations.decide_and_reserve(context, watch)
        closing = await self._preparation.closing(context)
        last = self._reservations.last_answer(closing)
        kept_nanousd = last.kept_nanousd
        if context.row is not None:  # another conversation of the session may need more
            kept_nanousd = max(kept_nanousd, context.row.kept_nanousd)
        ordinary = structs.replace(
            context, kept_nanousd=kept_nanousd, growth_femtousd=last.growth_femtousd, decides_kept=kept_nanousd > 0
        )
        try:
            return await self._reservations.decide_and_reserve(ordinary, watch)
        except (SessionBudgetExceeded, TenantBudgetExceeded):
            return await self._reservations.decide_and_reserve(closing, watch)

    def _wraps_up(self, context: TurnContext) -> bool:
        """True if this session ends with a last answer: as the client asks, else its tenant, else the operator.

        After a last answer a client that says nothing goes on as it began.
        """
        begun = context.memory.closed or None
        switches = (
            context.asked.wrap_up,
            begun,
            context.caller.wrap_up,
            self._configuration().settings.session.wrap_up,
        )
        return next(switch for switch in switches if switch is not None)

    async def _stream(self, attempt: Attempt) -> ASGIApp:
        """Make a streamed call; the response delivers and settles it."""
        attempt, stream = await self._calls.open_stream(attempt)
        return self._delivery.stream(attempt, stream)

    async def _complete(self, attempt: Attempt) -> Response:
        """Make a non-streamed call, settle it and render its response."""
        attempt, reply = await self._calls.complete(attempt)
        return await self._background.run(self._delivery.whole(attempt, reply))
