"""`POST /sessions/{id}/charges`: what an agent spends elsewhere, under the same ceiling.

    reserve --> settle     the amount spent, at most the reserved one
            --> release    nothing was spent
            --> expires    after `expires_in_seconds`; a settle that comes later is still posted
    charge                 reserve and settle in one request

A charge is a hold of the ledger without a decision: the same operations, entries and checks as for a turn. Its hold's
id is derived from the session and the client's `charge_id`, so a repeated request finds it and changes nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING
from typing import Any

from sqlalchemy import Connection, Row, select
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts import sessions
from gateway.accounts.auth import Authenticator, Caller
from gateway.accounts.fields import money_fields, read_usd, spend_control_fields
from gateway.accounts.sessions import session_refuses
from gateway.accounts.spent import spent_account
from gateway.catalog.live import Configuration
from gateway.clock import NewId
from gateway.database.database import Database
from gateway.database.tables import holds
from gateway.dialects.request import parse_object
from gateway.errors import (
    ChargeResolved,
    GatewayError,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
)
from gateway.http import header_map, json_response, read_body, refuse_unknown
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import CHARGE_PREFIX, SessionRow
from gateway.ledger.types import (
    ParentRefused,
    Refused,
    Release,
    Reserve,
    Reserved,
    SessionClosed,
    SessionTerms,
    Settle,
    TenantMissing,
)
from gateway.money import usd_string

ACTIONS = ("charge", "reserve", "settle", "release")
_FIELDS = frozenset({"action", "charge_id", "amount_usd", "name", "expires_in_seconds"})
_CHARGE_ID = re.compile(r"[\x21-\x7e]{1,255}")
_NAME = re.compile(r"[A-Za-z0-9._:/ -]{1,64}")
DEFAULT_EXPIRY_S = 600
MAX_EXPIRY_S = 86_400
_STATES = {"open": "reserved", "orphaned": "expired"}
"""States of a charge that differ from those of its hold."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One validated request."""

    action: str
    charge_id: str
    amount_nanousd: int | None
    name: str | None
    expires_in_s: int

    @property
    def model(self) -> str:
        """The ledger's name of the charge, where a turn has its model."""
        return "charge" if self.name is None else f"charge:{self.name}"

    @property
    def amount(self) -> int:
        """The amount of a reserve or a charge."""
        assert self.amount_nanousd is not None
        return self.amount_nanousd


class Charges:
    """The route of charges."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        database: Database,
        ledger: Ledger,
        authenticator: Authenticator,
        new_id: NewId,
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._ledger = ledger
        self._authenticator = authenticator
        self._new_id = new_id

    async def charge(self, request: Request) -> Response:
        """Reserve, settle or release an amount that is spent outside the gateway."""
        headers = header_map(request)
        caller = await self._authenticator.caller(headers)
        limits = self._configuration().settings.limits
        asked = self._read(parse_object(await read_body(request, limits), limits), headers.get("idempotency-key"))
        session_id = request.path_params["session_id"]
        session = await self._session(caller, session_id)
        hold_id = _hold_id(caller.tenant_id, session_id, asked.charge_id)
        hold = await self._hold(hold_id)
        if asked.action in ("charge", "reserve"):
            hold = await self._reserved(caller, session, asked, hold_id, hold)
        if hold is None:
            raise NotFound("charge_id: no such charge in this session", param="charge_id")
        if asked.action == "release":
            await self._release(hold)
        elif asked.action != "reserve":
            await self._settle(hold, asked)
        hold, session = await self._hold(hold_id), await self._session(caller, session_id)
        return json_response(_described(asked.charge_id, hold, session))

    def _read(self, fields: Mapping[str, Any], idempotency_key: str | None) -> _Asked:
        """The validated request. Raises InvalidRequest."""
        refuse_unknown(fields, _FIELDS)
        action = fields.get("action", "charge")
        if action not in ACTIONS:
            raise InvalidRequest(f"action: expected one of {', '.join(ACTIONS)}", param="action")
        charge_id = fields.get("charge_id", idempotency_key)
        if charge_id is None and action in ("charge", "reserve"):
            charge_id = self._new_id("charge")
        if not isinstance(charge_id, str) or not _CHARGE_ID.fullmatch(charge_id):
            raise InvalidRequest(
                "charge_id: expected 1 to 255 printable ASCII characters without spaces, the same for all requests of "
                "a charge",
                param="charge_id",
            )
        amount_nanousd = read_usd(fields, "amount_usd", rounding=ROUND_CEILING)  # spent, as a bill is
        if amount_nanousd is None and action in ("charge", "reserve"):
            raise InvalidRequest("amount_usd: expected a decimal amount", param="amount_usd")
        if amount_nanousd is not None and action == "release":
            raise InvalidRequest("amount_usd: a release gives back the whole reserved amount", param="amount_usd")
        name = fields.get("name")
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise InvalidRequest("name: expected 1 to 64 of A-Z a-z 0-9 . _ : / - and space", param="name")
        expires_in_s = fields.get("expires_in_seconds", DEFAULT_EXPIRY_S)
        if isinstance(expires_in_s, bool) or not isinstance(expires_in_s, int) or not 1 <= expires_in_s <= MAX_EXPIRY_S:
            raise InvalidRequest(
                f"expires_in_seconds: expected an integer from 1 to {MAX_EXPIRY_S}", param="expires_in_seconds"
            )
        return _Asked(action, charge_id, amount_nanousd, name, expires_in_s)

    async def _session(self, caller: Caller, session_id: str) -> SessionRow:
        return await self._database.read(lambda c: sessions.get_session(c, caller.tenant_id, session_id))

    async def _hold(self, hold_id: str) -> Row[Any] | None:
        def find(connection: Connection) -> Row[Any] | None:
            return connection.execute(select(holds).where(holds.c.hold_id == hold_id)).one_or_none()

        return await self._database.read(find)

    async def _reserved(
        self, caller: Caller, session: SessionRow, asked: _Asked, hold_id: str, hold: Row[Any] | None
    ) -> Row[Any] | None:
        """The hold of this charge, made now or found as an earlier request left it."""
        if hold is None:
            outcome = await self._ledger.reserve(
                Reserve(
                    hold_id=hold_id,
                    attempt_id=hold_id,
                    decision_id=hold_id,
                    tenant_id=caller.tenant_id,
                    session_id=session.session_id,
                    key_id=caller.key_id if caller.has_budget else None,
                    model=asked.model,
                    amount_nanousd=asked.amount,
                    ttl_ms=asked.expires_in_s * 1000,
                    terms=SessionTerms(session.balance.granted_nanousd),
                    repeatable=True,
                )
            )
            # The same charge, asked for at the same moment, may have taken the money: then it is found below.
            hold = await self._hold(hold_id)
            if isinstance(outcome, Refused) and hold is None:
                raise _too_much(session, asked, outcome)
            if not isinstance(outcome, Reserved | Refused):
                assert isinstance(outcome, SessionClosed | TenantMissing | ParentRefused)
                raise session_refuses(outcome, session.session_id)
        if hold is not None and (hold.amount_nanousd, hold.model) != (asked.amount, asked.model):
            raise IdempotencyMismatch(
                f'charge_id: this charge was made as "{hold.model}" with {usd_string(hold.amount_nanousd)} USD; use a '
                "new charge_id",
                param="charge_id",
            )
        return hold

    async def _settle(self, hold: Row[Any], asked: _Asked) -> None:
        """Post what was spent; a charge that was settled before must have the same amount."""
        amount_nanousd = hold.amount_nanousd if asked.amount_nanousd is None else asked.amount_nanousd
        if hold.state == "settled" or hold.late:
            if hold.posted_nanousd != amount_nanousd:
                raise ChargeResolved(
                    f"charge_id: this charge is settled at {usd_string(hold.posted_nanousd)} USD", param="charge_id"
                )
            return
        if hold.state == "released":
            raise ChargeResolved("charge_id: this charge was released; make a new one", param="charge_id")
        if amount_nanousd > hold.amount_nanousd:
            raise InvalidRequest(
                f"amount_usd: expected at most the reserved {usd_string(hold.amount_nanousd)} USD; make another charge "
                "for the rest",
                param="amount_usd",
            )
        resolved = await self._ledger.settle(Settle(hold.hold_id, amount_nanousd, "reported"))
        if resolved.kind == "already":  # another request of this charge was faster
            found = await self._hold(hold.hold_id)
            if found is not None:
                await self._settle(found, asked)

    async def _release(self, hold: Row[Any]) -> None:
        """Give the amount back; an expired charge holds nothing."""
        if hold.state == "settled" or hold.late:
            raise ChargeResolved(
                f"charge_id: this charge is settled at {usd_string(hold.posted_nanousd)} USD", param="charge_id"
            )
        if hold.state == "open":
            await self._ledger.release(Release(hold.hold_id))


def _hold_id(tenant_id: str, session_id: str, charge_id: str) -> str:
    digest = hashlib.sha256(f"{tenant_id}\0{session_id}\0{charge_id}".encode()).hexdigest()
    return f"{CHARGE_PREFIX}{digest[:48]}"


def _too_much(session: SessionRow, asked: _Asked, refused: Refused) -> GatewayError:
    left_nanousd = max(0, refused.free_nanousd)
    spent, held = spent_account(refused.account, session.session_id), refused.balance.reserved_nanousd
    how = f"{usd_string(held)} USD are reserved and may come back" if refused.pending else spent.remedy
    return spent.error(
        f"the {spent.name}'s budget has {usd_string(left_nanousd)} USD left; this charge needs "
        f"{usd_string(asked.amount)} USD; {how}",
        headers={"Retry-After": "1"} if refused.pending else {"x-should-retry": "false"},
        details={
            "session_id": session.session_id,
            **money_fields("remaining", left_nanousd),
            **money_fields("needed", asked.amount),
            **spend_control_fields(not refused.pending and left_nanousd == 0),
        },
    )


def _described(charge_id: str, hold: Row[Any] | None, session: SessionRow) -> dict[str, Any]:
    assert hold is not None
    state = "settled" if hold.late else _STATES.get(hold.state, hold.state)
    return {
        "object": "session.charge",
        "charge_id": charge_id,
        "session_id": session.session_id,
        "name": hold.model.removeprefix("charge").removeprefix(":") or None,
        "state": state,
        **money_fields("amount", hold.amount_nanousd),
        **money_fields("spent", hold.posted_nanousd),
        "expires_at_ms": hold.expires_at_ms if state == "reserved" else None,
        **{f"session_{name}": value for name, value in money_fields("spent", session.balance.spent_nanousd).items()},
        **{
            f"session_{name}": value
            for name, value in money_fields("remaining", session.balance.spendable_nanousd).items()
        },
    }
