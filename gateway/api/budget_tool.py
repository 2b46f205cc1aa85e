"""The tool `check_budget`, which agents may offer their model, and the answer to its call.

The gateway does not run it: an agent puts the definition among its tools and answers a call with this route's object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts import sessions as session_accounts
from gateway.accounts.auth import Authenticator
from gateway.accounts.fields import balance_fields, money_fields, spend_control_fields
from gateway.accounts.remaining import budget_sentence, turns_left
from gateway.accounts.sessions import SESSION_ID
from gateway.catalog.live import Configuration
from gateway.database.database import Database
from gateway.dialects.request import parse_object
from gateway.errors import InvalidRequest
from gateway.http import header_map, json_response, read_body, refuse_unknown
from gateway.ledger.records import SessionRow
from gateway.routing.session import identify

NAME = "check_budget"
DESCRIPTION = (
    "Tells how much of this session's budget is left, in US dollars and turns. Call it before expensive work and when "
    "the work is longer than planned; when little is left, finish with what you have."
)
PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def definitions() -> dict[str, Any]:
    """The tool in the form of each dialect."""
    plain = {"name": NAME, "description": DESCRIPTION}
    return {
        "object": "tool",
        "name": NAME,
        "chat": {"type": "function", "function": {**plain, "parameters": PARAMETERS}},
        "responses": {"type": "function", **plain, "parameters": PARAMETERS},
        "messages": {**plain, "input_schema": PARAMETERS},
    }


class BudgetTool:
    """The tool's definition, and the answers to its calls; both are read-only and free."""

    def __init__(
        self, *, configuration: Callable[[], Configuration], database: Database, authenticator: Authenticator
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._authenticator = authenticator

    async def definition(self, request: Request) -> Response:
        """The definition of the tool `check_budget`, for each dialect."""
        await self._authenticator.reader(header_map(request))
        return json_response(definitions())

    async def call(self, request: Request) -> Response:
        """The result of a call of `check_budget` in the session that the headers or the body name."""
        headers = header_map(request)
        caller = await self._authenticator.reader(headers)
        settings = self._configuration().settings
        fields = parse_object(await read_body(request, settings.limits), settings.limits)
        refuse_unknown(fields, ("session_id",))
        session_id = fields.get("session_id")
        if session_id is not None and not (isinstance(session_id, str) and SESSION_ID.fullmatch(session_id)):
            raise InvalidRequest("session_id: expected 1 to 128 of A-Z a-z 0-9 . _ : -", param="session_id")
        named = session_id or identify(headers, None, settings.session.id_headers)
        if named is None:
            raise InvalidRequest(
                "X-Session-Id: expected a session, here or as session_id in the body", param="session_id"
            )
        found = await self._database.read(lambda c: session_accounts.get_session(c, caller.tenant_id, named))
        return json_response(told(found, settings.session.max_turns))


def told(session: SessionRow, max_turns: int | None) -> dict[str, Any]:
    """The rest of a session, also as one line for a model."""
    balance = session.balance
    left_nanousd = max(0, balance.spendable_nanousd)
    turns = turns_left(session.turns, balance.spent_nanousd, left_nanousd, (session.expected_turns, max_turns))
    return {
        "object": "session.budget",
        "session_id": session.session_id,
        "state": session.state,
        **spend_control_fields(session.budget_reached),
        **balance_fields(balance),
        **money_fields("kept", session.kept_nanousd),
        "turns": session.turns,
        "turns_left": None if turns is None else turns.turns,
        "turns_left_known": turns is not None and turns.known,
        "text": budget_sentence(left_nanousd, balance.granted_nanousd, session.turns, turns),
    }
