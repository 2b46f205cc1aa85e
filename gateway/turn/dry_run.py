"""`POST /route`: the decision for a chat body and the session's forecast; spends nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts.auth import Authenticator
from gateway.catalog.live import Configuration
from gateway.decisions import log
from gateway.decisions.forecasts import SessionForecasts
from gateway.dialects.chat import ChatDialect
from gateway.dialects.request import parse_chat
from gateway.errors import LedgerUnavailable
from gateway.http import header_map, json_response, read_body
from gateway.turn.context import TurnContext
from gateway.turn.decide import Decider
from gateway.turn.exhausted import exhausted
from gateway.turn.funds import Shortage
from gateway.turn.headers import read_turn_headers
from gateway.turn.prepare import Preparation


class DryRuns:
    """Decisions that are not carried out."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        authenticator: Authenticator,
        preparation: Preparation,
        decider: Decider,
        forecasts: SessionForecasts,
    ) -> None:
        self._configuration = configuration
        self._authenticator = authenticator
        self._preparation = preparation
        self._decider = decider
        self._forecasts = forecasts

    async def route(self, request: Request) -> Response:
        """The decision for a chat body, with all candidates and a forecast; spends nothing."""
        headers, limits = header_map(request), self._configuration().settings.limits
        caller = await self._authenticator.reader(headers)
        chat = parse_chat(await read_body(request, limits), limits)
        session_id, place = await self._preparation.session_of(caller, chat, None, headers)
        context = await self._preparation.prepare(
            caller, session_id, place, chat, ChatDialect(chat.include_usage), read_turn_headers(headers), None, dry=True
        )
        choice = self._decider.decide(context, context.funds, patient=False)
        if isinstance(choice, Shortage):
            raise exhausted(context, choice)
        told = log.dry_run(context.session_id, choice.observation, choice.routed, choice.estimate)
        return json_response({**told, "forecast": await self._forecast(context)})

    async def _forecast(self, context: TurnContext) -> dict[str, Any] | None:
        """The session's forecast; None while the database is away, since the decision can be told without it."""
        left_nanousd = context.funds_of_accounts.left_nanousd
        try:
            return await self._forecasts.of(context.caller.tenant_id, context.session_id, left_nanousd)
        except LedgerUnavailable:
            return None
