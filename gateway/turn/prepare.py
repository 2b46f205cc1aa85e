"""Preparation of a turn: session, balances, prompt length, and eligible models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from starlette.responses import Response

from gateway.accounts.auth import Caller
from gateway.catalog.live import Configuration
from gateway.catalog.tokens import PromptTokens, TokenCounter
from gateway.clock import Clock, now_ms
from gateway.dialects.dialect import Dialect
from gateway.dialects.request import ChatRequest
from gateway.errors import InvalidRequest, LedgerUnavailable, NotFound
from gateway.ledger.ledger import AccountSnapshot, Ledger
from gateway.ledger.offline import OfflineLedger
from gateway.ledger.types import IdempotencyClaim, SessionTerms
from gateway.money import usd_string
from gateway.providers.cooldown import Breaker
from gateway.routing import guard
from gateway.routing import session as sessions
from gateway.turn.context import TurnContext
from gateway.turn.headers import TurnHeaders
from gateway.turn.idempotency import KEPT_MS, answer_again


class Preparation:
    """Builds the context of a turn from its request. Read-only."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        ledger: Ledger,
        outage: OfflineLedger,
        tokens: TokenCounter,
        breaker: Breaker,
        clock: Clock,
    ) -> None:
        self._configuration = configuration
        self._ledger = ledger
        self._outage = outage
        self._tokens = tokens
        self._breaker = breaker
        self._clock = clock

    def session_name(self, caller: Caller, chat: ChatRequest, headers: Mapping[str, str]) -> sessions.SessionKey:
        """The session that this request names, or whose opening it has."""
        id_headers = self._configuration().settings.session.id_headers
        return sessions.identify(headers, chat.session_hint, chat.opening(), caller.key_id, id_headers)

    async def prepare(
        self,
        caller: Caller,
        name: sessions.SessionKey,
        chat: ChatRequest,
        dialect: Dialect,
        asked: TurnHeaders,
        claim: IdempotencyClaim | None,
    ) -> TurnContext:
        """Find the session, count the prompt, and determine the eligible models."""
        catalog = self._configuration().catalog
        wish = guard.parse_model(chat.model, catalog)
        prompt = await self._tokens.count(chat.messages, chat.params)
        if chat.token_ids:
            prompt += PromptTokens(chat.token_ids, chat.token_ids)
        session_id, standing, outage = await self._resumed(caller, name, claim)
        if standing is None:
            raise NotFound("tenant: no such tenant")
        row = standing.session
        memory = sessions.SessionMemory.from_json(row.memory) if row is not None else sessions.SessionMemory()
        bound_to = sessions.answered_by(memory, chat.messages) if chat.open_tool_loop or chat.provider_bound else None
        options = guard.feasible(
            chat,
            wish,
            catalog,
            self._breaker,
            allow_lists=(caller.tenant_models, caller.key_models),
            bound_to=bound_to if bound_to in catalog.models else None,
            prompt_tokens=prompt.estimate,
        )
        guard.refuse_when_none(options, chat.model, prompt.estimate, chat.mode)
        return TurnContext(
            caller=caller,
            chat=chat,
            dialect=dialect,
            asked=asked,
            wish=wish,
            session_id=session_id,
            row=row,
            memory=memory,
            tenant=standing.tenant,
            prompt=prompt,
            options=options,
            terms=self._terms(caller, asked),
            idempotency=claim,
            started_ms=now_ms(self._clock),
            outage=outage,
        )

    async def refreshed(self, context: TurnContext) -> TurnContext:
        """The context with what its accounts have now."""
        standing = await self._ledger.snapshot(context.caller.tenant_id, context.session_id)
        if standing is None:
            raise NotFound("tenant: no such tenant")
        return replace(context, row=standing.session, tenant=standing.tenant)

    async def _resumed(
        self, caller: Caller, name: sessions.SessionKey, claim: IdempotencyClaim | None
    ) -> tuple[str, AccountSnapshot | None, OfflineLedger | None]:
        """The session that this turn continues; a fingerprint starts a new one when idle or closed."""
        session_id = name.session_id
        standing, outage = await self._standing(caller, session_id, claim)
        if not name.fingerprint or standing is None or not self._over(standing):
            return session_id, standing, outage
        newest = await self._ledger.newest_after(caller.tenant_id, session_id)
        if newest is not None:
            session_id = newest
            standing, outage = await self._standing(caller, session_id, claim)
            if standing is None or not self._over(standing):
                return session_id, standing, outage
        return sessions.next_of(session_id), AccountSnapshot(standing.tenant, None, standing.at_ms), outage

    def _over(self, standing: AccountSnapshot) -> bool:
        row, idle_s = standing.session, self._configuration().settings.session.idle_timeout_s
        return row is not None and sessions.is_over(row, idle_s, standing.at_ms)

    async def _standing(
        self, caller: Caller, session_id: str, claim: IdempotencyClaim | None
    ) -> tuple[AccountSnapshot | None, OfflineLedger | None]:
        """Tenant and session; in an outage the cap of an open tenant, and the offline ledger.

        A turn with an idempotency key needs the ledger, which stores the key.
        """
        may_open = claim is None and self._outage.allows(caller.outage)
        if not (may_open and self._outage.noticed):
            try:
                return await self._ledger.snapshot(caller.tenant_id, session_id), None
            except LedgerUnavailable:
                self._outage.notice()
                if not may_open:
                    raise
        return AccountSnapshot(self._outage.balance, None, now_ms(self._clock)), self._outage

    def _terms(self, caller: Caller, asked: TurnHeaders) -> SessionTerms:
        """The session's budget terms. Raises InvalidRequest above the tenant's limit."""
        settings = self._configuration().settings.session
        most = settings.max_budget_nanousd
        if caller.max_session_nanousd is not None:
            most = caller.max_session_nanousd
        wanted = asked.session_budget_nanousd
        if wanted is not None and wanted > most:
            raise InvalidRequest(
                f"X-Session-Budget-USD: expected at most {usd_string(most)}, the tenant's limit for a session",
                param="X-Session-Budget-USD",
            )
        return SessionTerms(
            default_nanousd=min(settings.default_budget_nanousd, most),
            ceiling_nanousd=wanted,
            expected_turns=asked.expected_turns,
            max_turns=settings.max_turns,
        )

    def claim(self, chat: ChatRequest, asked: TurnHeaders) -> IdempotencyClaim | None:
        """The claim of the request's idempotency key, if it has one."""
        if asked.idempotency_key is None:
            return None
        return IdempotencyClaim(
            key=asked.idempotency_key,
            body_sha256=chat.body_sha256,
            kept_ms=KEPT_MS,
        )

    async def replayed(self, caller: Caller, claim: IdempotencyClaim | None) -> Response | None:
        """The stored response of this idempotency key, if any."""
        if claim is None:
            return None
        found = await self._ledger.idempotent(caller.tenant_id, claim.key, claim.body_sha256)
        return None if found is None else answer_again(found)
