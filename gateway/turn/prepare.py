"""Preparation of a turn: session, balances, prompt length, and eligible models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from msgspec import structs
from starlette.responses import Response

from gateway.accounts.auth import Caller
from gateway.accounts.sessions import parent_refused
from gateway.catalog.live import Configuration
from gateway.catalog.tokens import PromptTokens, TokenCounter
from gateway.clock import Clock, now_ms
from gateway.dialects.dialect import Dialect
from gateway.dialects.request import ChatRequest
from gateway.errors import GatewayError, InvalidRequest, LedgerUnavailable, NotFound, SessionBudgetExceeded
from gateway.ledger.budget_headers import BudgetHeaders
from gateway.ledger.ledger import Ledger
from gateway.ledger.offline import OfflineLedger
from gateway.ledger.records import AccountSnapshot, Chain, SessionRow
from gateway.ledger.types import MAX_DEPTH, IdempotencyClaim, SessionTerms
from gateway.money import usd_string
from gateway.providers.balance import LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.request_ids import note_session
from gateway.routing import guard
from gateway.routing import session as sessions
from gateway.routing.conversations import Conversations, Place, conversation
from gateway.turn.context import TurnContext
from gateway.turn.fallback import cause_of_exclusion, eligible_fallback
from gateway.turn.headers import TurnHeaders
from gateway.turn.idempotency import KEPT_MS, answer_again
from gateway.turn.notes import budget_note, system_message
from gateway.turn.wrap_up import WRAP_UP_NOTE, closing_request

_log = logging.getLogger("seqroute.turn")
RETRY_HEADER = "x-stainless-retry-count"
"""How OpenAI's SDKs say that they send a request again."""


class Preparation:
    """Builds the context of a turn from its request."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        ledger: Ledger,
        outage: OfflineLedger,
        tokens: TokenCounter,
        breaker: Breaker,
        balancer: LoadBalancer,
        conversations: Conversations,
        clock: Clock,
    ) -> None:
        self._configuration = configuration
        self._ledger = ledger
        self._outage = outage
        self._tokens = tokens
        self._breaker = breaker
        self._balancer = balancer
        self._conversations = conversations
        self._clock = clock

    async def session_of(
        self, caller: Caller, chat: ChatRequest, claim: IdempotencyClaim | None, headers: Mapping[str, str]
    ) -> tuple[str, Place | None]:
        """The session that the request names or its conversation continues, and its place there."""
        id_headers = self._configuration().settings.session.id_headers
        named = sessions.identify(headers, chat.session_hint, id_headers)
        if named is not None or chat.mode != "chat":
            # Inputs to embed are no conversation: without an id each request is a session of its own.
            return named or self._conversations.new_session(), None
        asked = conversation(caller.tenant_id, caller.key_id, chat.messages)
        place = self._conversations.new_place(asked)
        may_open = self._may_open(caller, claim)
        if not (may_open and self._outage.noticed):
            try:
                place = await self._conversations.place(asked, retried=headers.get(RETRY_HEADER, "0") not in ("", "0"))
            except LedgerUnavailable:
                self._outage.notice()
                if not may_open:
                    raise
        return place.session_id, place

    async def prepare(
        self,
        caller: Caller,
        session_id: str,
        place: Place | None,
        chat: ChatRequest,
        dialect: Dialect,
        asked: TurnHeaders,
        claim: IdempotencyClaim | None,
        *,
        dry: bool = False,
    ) -> TurnContext:
        """Find the session, count the prompt, determine the eligible models. `dry`: change nothing."""
        catalog = self._configuration().catalog
        requested = guard.parse_model(chat.model, catalog)
        prompt = await self._counted(chat) + PromptTokens(chat.token_ids, chat.token_ids)
        accounts, outage = await self._snapshot(caller, session_id, claim)
        if place is not None and self._over(accounts):
            # A conversation continues in a new session after a pause or a close.
            place = self._conversations.new_place(place.conversation)
            session_id = place.session_id
            accounts = AccountSnapshot(accounts.tenant, None, accounts.at_ms)
        note_session(caller.tenant_id, session_id)
        may_get_parent = asked.parent_required and outage is None and _unused(accounts.session)
        if may_get_parent and not dry:
            accounts = await self._put_below(caller, session_id, accounts, asked.parent_session_id)
        row = accounts.session
        child = None if dry and may_get_parent else row
        parent_id, chain = await self._parent(caller, session_id, child, asked, outage)
        memory = sessions.SessionMemory.from_json(row.memory) if row is not None else sessions.SessionMemory()
        bound_to = sessions.answered_by(memory, chat.digests) if chat.open_tool_loop or chat.provider_bound else None
        is_chat = chat.mode == "chat"
        context = TurnContext(
            caller=caller,
            chat=chat,
            dialect=dialect,
            asked=asked,
            requested=requested,
            session_id=session_id,
            row=row,
            memory=memory,
            tenant=accounts.tenant,
            prompt=prompt,
            options=self._options(caller, chat, requested, bound_to, prompt.estimate),
            terms=self._terms(caller, asked, chain, row, memory.budget),
            idempotency=claim,
            started_ms=now_ms(self._clock),
            outage=outage,
            place=place if outage is None else None,
            parent_session_id=parent_id,
            chain=chain,
            # A chat turn frees what an earlier one kept for the last answer, or keeps it again; other calls leave it.
            kept_nanousd=0 if is_chat or row is None else row.kept_nanousd,
            decides_kept=is_chat,
        )
        if asked.budget_visible in ("note", "task_budget") and is_chat:
            context = await self._with_note(context, budget_note(context), bound_to)
        context = self._with_fallback(context)
        guard.refuse_when_none(context.options, chat, context.prompt.estimate)
        return context

    async def closing(self, context: TurnContext) -> TurnContext:
        """The context of the session's last answer: without tools, and with a note that says so."""
        chat = closing_request(context.chat)
        prompt = await self._counted(chat, (*context.notes, WRAP_UP_NOTE))
        bound_to = sessions.answered_by(context.memory, chat.digests) if chat.provider_bound else None
        options = self._options(context.caller, chat, context.requested, bound_to, prompt.estimate)
        return structs.replace(
            context, chat=chat, prompt=prompt, options=options, notes=(*context.notes, WRAP_UP_NOTE), closing=True
        )

    async def _counted(self, chat: ChatRequest, notes: Sequence[str] = ()) -> PromptTokens:
        """The prompt's tokens with the notes; of one that may be forwarded, the larger of its two forms."""
        messages = [*chat.messages, *map(system_message, notes)]
        if chat.forwarded is None or chat.forwarded.is_chat:
            return await self._tokens.count(messages, chat.params)
        extra = chat.forwarded.beside_messages()
        return await self._tokens.count_forms(messages, chat.params, extra.tools, extra.pictures)

    def _options(
        self,
        caller: Caller,
        chat: ChatRequest,
        requested: guard.RequestedModel,
        bound_to: str | None,
        prompt_tokens: int,
    ) -> list[guard.Eligibility]:
        catalog = self._configuration().catalog
        return guard.feasible(
            chat,
            requested,
            catalog,
            self._breaker,
            self._balancer,
            allow_lists=(caller.tenant_models, caller.key_models),
            bound_to=bound_to if bound_to in catalog.models else None,
            prompt_tokens=prompt_tokens,
            tenant_id=caller.tenant_id,
        )

    async def _with_note(self, context: TurnContext, note: str, bound_to: str | None) -> TurnContext:
        """The context with a line more in its system prompt, which its hold pays for."""
        prompt = context.prompt + await self._tokens.count([system_message(note)], {})
        options = self._options(context.caller, context.chat, context.requested, bound_to, prompt.estimate)
        return structs.replace(context, notes=(*context.notes, note), prompt=prompt, options=options)

    async def keep_session(self, context: TurnContext, error: GatewayError) -> bool:
        """Keep the session of a refused turn with the budget that it asked for; True if kept.

        Without such a budget it is kept for a conversation without an id, whose next try is then found: the error said
        which session's budget to raise.
        """
        row, terms = context.row, context.terms
        found_again = row is None and context.place is not None and isinstance(error, SessionBudgetExceeded)
        if context.outage is not None or (terms.ceiling_nanousd is None and not found_again):
            return False
        if row is None and context.parent_session_id is not None:  # the first served turn puts it below its parent
            return False
        known = row is not None and terms.asked in context.memory.budget.asked
        if known and row is not None and row.balance.granted_nanousd == context.budget_nanousd:
            return False
        try:
            await self._conversations.keep_session(
                context.caller.tenant_id,
                context.session_id,
                context.place if row is None else None,
                terms,
            )
        except (LedgerUnavailable, InvalidRequest):
            _log.warning("session %s could not be kept", context.session_id)
            return False
        return True

    async def raise_below(self, context: TurnContext) -> None:
        """Raise the budgets of the sessions below this turn's, which it has raised."""
        try:
            await self._conversations.raise_below(context.caller.tenant_id, context.session_id)
        except LedgerUnavailable:
            _log.warning("the budgets below session %s could not be raised", context.session_id)

    def _with_fallback(self, context: TurnContext) -> TurnContext:
        """The turn at the fallback of a requested model that cannot be called; else with the one to go to later."""
        pinned, configuration = context.requested.pinned, self._configuration()
        router = configuration.settings.router
        cause = cause_of_exclusion(context.options, pinned)
        if pinned is None or (cause is None and not (router.fallbacks or router.default_fallbacks)):
            return context
        found = eligible_fallback(
            cause or "failure", (pinned,), context.chat, context.caller, context.prompt.estimate,
            configuration=configuration, breaker=self._breaker, balancer=self._balancer,
        )  # fmt: skip
        if cause is None:
            return structs.replace(context, stand_in=found)
        return context if found is None else context.at_fallback(found)

    async def _put_below(
        self, caller: Caller, session_id: str, accounts: AccountSnapshot, parent_id: str | None
    ) -> AccountSnapshot:
        """The accounts after a session that was opened before its first turn has the parent that this turn names."""
        if parent_id is None:
            return accounts
        await self._conversations.put_below(caller.tenant_id, session_id, parent_id)
        return await self._ledger.snapshot(caller.tenant_id, session_id) or accounts

    async def _parent(
        self,
        caller: Caller,
        session_id: str,
        row: SessionRow | None,
        asked: TurnHeaders,
        outage: OfflineLedger | None,
    ) -> tuple[str | None, Chain | None]:
        """The parent of a new session, and what the sessions above allow. The ledger has the final say."""
        parent_id = asked.parent_session_id
        known = None if row is None else row.chain
        if parent_id is None:
            return None, known
        if outage is not None:
            raise LedgerUnavailable(
                "the ledger is unavailable, and a session with a parent cannot be served without it",
                headers={"Retry-After": "5"},
            )
        if row is not None or parent_id == session_id:
            if (row is None or parent_id != row.parent_session_id) and asked.parent_required:
                raise parent_refused("other")
            return None, known
        found = await self._ledger.snapshot(caller.tenant_id, parent_id)
        if found is None or found.session is None:
            if asked.parent_required:
                raise parent_refused("unknown")
            return None, None
        chain = found.session.as_parent
        if chain.depth > MAX_DEPTH:
            raise parent_refused("depth")
        return parent_id, chain

    def _may_open(self, caller: Caller, claim: IdempotencyClaim | None) -> bool:
        """Whether the turn may be served without the ledger. An idempotency key cannot be kept without it."""
        return claim is None and self._outage.allows(caller.outage)

    def _over(self, accounts: AccountSnapshot) -> bool:
        row, idle_s = accounts.session, self._configuration().settings.session.idle_timeout_s
        return row is not None and sessions.is_over(row, idle_s, accounts.at_ms)

    async def _snapshot(
        self, caller: Caller, session_id: str, claim: IdempotencyClaim | None
    ) -> tuple[AccountSnapshot, OfflineLedger | None]:
        """The accounts of tenant and session; in an outage those of the capped ledger that serves open tenants."""
        may_open = self._may_open(caller, claim)
        if not (may_open and self._outage.noticed):
            try:
                found = await self._ledger.snapshot(caller.tenant_id, session_id)
            except LedgerUnavailable:
                self._outage.notice()
                if not may_open:
                    raise
            else:
                if found is None:
                    raise NotFound("tenant: no such tenant")
                return found, None
        return AccountSnapshot(self._outage.balance, None, now_ms(self._clock)), self._outage

    def _terms(
        self, caller: Caller, asked: TurnHeaders, chain: Chain | None, row: SessionRow | None, known: BudgetHeaders
    ) -> SessionTerms:
        """The session's budget terms. Raises InvalidRequest above the tenant's limit, and for a share of nothing."""
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
        if asked.budget_share_percent is not None:
            if chain is None:
                raise InvalidRequest(
                    "X-Session-Budget-Share: expected a session with a known parent; name it in X-Parent-Session-Id, "
                    "or give the budget in X-Session-Budget-USD",
                    param="X-Session-Budget-Share",
                )
            wanted = min(chain.granted_nanousd * asked.budget_share_percent // 100, most)
        return SessionTerms(
            default_nanousd=min(settings.default_budget_nanousd, most),
            ceiling_nanousd=wanted,
            expected_turns=asked.expected_turns,
            max_turns=settings.max_turns,
            share_percent=asked.budget_share_percent,
            # The header of a first turn changes nothing yet: it holds as if it came before a budget set by hand.
            times_by_hand=known.times_by_hand if known.asked or (row is not None and row.turns) else 0,
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


def _unused(row: SessionRow | None) -> bool:
    """True for a session that was opened and has had no turn, which may still get a parent."""
    return row is not None and not row.turns and row.parent_session_id is None
