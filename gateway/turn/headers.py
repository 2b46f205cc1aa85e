"""The gateway's own request and response headers of a turn.

`gateway/routing/session.py` reads those that name the session, `gateway/accounts/auth.py` those that name the caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast
from urllib.parse import quote

from msgspec import Struct

from gateway.accounts.sessions import MAX_EXPECTED_TURNS, named_parent, normalize_id
from gateway.errors import InvalidRequest
from gateway.http import read_budget
from gateway.ledger.rates import RateReading
from gateway.ledger.types import Balance
from gateway.money import usd_string

_PREFIX = "x-seqroute-"
MAX_IDEMPOTENCY_KEY = 255
BudgetVisible = Literal["note", "task_budget", "usage"]
"""A line in the system prompt; Anthropic's token budget, and the line for models without one."""
_SWITCHES: Mapping[str, bool] = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
PARENT_ALIASES = ("x-codex-parent-thread-id", "x-opencode-parent-session")
"""How coding agents name the session of the agent that started this one."""


class TurnHeaders(Struct, frozen=True):
    """The request headers of one turn."""

    session_budget_nanousd: int | None
    expected_turns: int | None
    end_session: bool
    lambda_per_usd: float | None
    idempotency_key: str | None
    budget_share_percent: int | None = None
    """A child's ceiling in hundredths of its parent's budget (X-Session-Budget-Share)."""
    max_cost_nanousd: int | None = None
    """The most that this one request may cost (X-Route-Max-USD)."""
    budget_visible: BudgetVisible | None = None
    """Form in which the model sees what is left of the session's budget (X-Budget-Visible); None: it does not."""
    wrap_up: bool | None = None
    """Serve the last affordable turn as a closing one (X-Wrap-Up); None: as configured."""
    parent_session_id: str | None = None
    """The session whose money this one spends too (X-Parent-Session-Id, or a client's own header)."""
    parent_required: bool = False
    """An unknown parent is an error; not so when a client's own header named it."""
    explore: bool | None = None
    """Exploration in this session from now on; None: unchanged."""
    traceparent: str | None = None
    """The client's span, of which the turn's is a part (W3C Trace Context); read only when tracing is on."""


def read_turn_headers(headers: Mapping[str, str]) -> TurnHeaders:
    """Parse the request headers of a turn. Raises InvalidRequest with the header's name."""
    key = headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= MAX_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key: expected 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters", param="Idempotency-Key"
        )
    parent, required = _parent(headers)
    share = _share(headers.get("x-session-budget-share"))
    if share is not None and "x-session-budget-usd" in headers:
        raise InvalidRequest(
            "X-Session-Budget-Share: expected this or X-Session-Budget-USD, got both", param="X-Session-Budget-Share"
        )
    return TurnHeaders(
        parent_session_id=parent,
        parent_required=required,
        session_budget_nanousd=read_budget(headers, "X-Session-Budget-USD"),
        expected_turns=_expected_turns(headers.get("x-session-expected-turns")),
        budget_share_percent=share,
        max_cost_nanousd=read_budget(headers, "X-Route-Max-USD"),
        end_session=_switch(headers, "X-Session-End") is True,
        budget_visible=_budget_visible(headers),
        wrap_up=_switch(headers, "X-Wrap-Up"),
        explore=_switch(headers, "X-Route-Explore"),
        lambda_per_usd=_lambda(headers.get("x-route-lambda")),
        idempotency_key=key,
        traceparent=headers.get("traceparent"),
    )


class TurnReport(Struct, frozen=True):
    """Facts about a turn for its client; None where unknown at the start of a stream."""

    decision_id: str
    session_id: str
    model: str
    policy_id: str
    reason: str
    reserved_nanousd: int
    max_tokens: int | None
    dropped: tuple[str, ...] = ()
    """Names of the client's parameters that were not sent."""
    effort: str | None = None
    """The effort of reasoning, the client's own or the chosen one."""
    finish: str | None = None
    """"wrap-up": the last answer of this session, without tools."""
    cost_nanousd: int | None = None
    usage_source: str | None = None
    session: Balance | None = None
    tenant: Balance | None = None
    budget_nanousd: int | None = None
    """The session's budget, where it is less than its client asked for."""
    rates: RateReading | None = None
    tenant_soft_nanousd: int | None = None
    key_over_soft: bool = False

    @property
    def over_soft_budget(self) -> tuple[str, ...]:
        """The accounts that have spent their soft budget; the key's as of its last look-up."""
        soft = self.tenant_soft_nanousd
        over = soft is not None and self.tenant is not None and self.tenant.spent_nanousd >= soft
        return (*(("tenant",) if over else ()), *(("key",) if self.key_over_soft else ()))

    def as_headers(self) -> dict[str, str]:
        """The `x-seqroute-...` response headers."""
        values: dict[str, str | None] = {
            "decision-id": self.decision_id,
            "session-id": self.session_id,
            "model": self.model,
            "effort": self.effort,
            "policy": self.policy_id,
            "reason": self.reason,
            "reserved-usd": usd_string(self.reserved_nanousd),
            "max-tokens": None if self.max_tokens is None else str(self.max_tokens),
            "dropped": ", ".join(self.dropped) or None,
            "soft-budget-exceeded": ", ".join(self.over_soft_budget) or None,
            "finish": self.finish,
            **self._money(),
        }
        own = {_PREFIX + name: header_value(value) for name, value in values.items() if value is not None}
        return own if self.rates is None else own | self.rates.as_headers()

    def as_object(self) -> dict[str, str | int | list[str]]:
        """The `seqroute` object of a stream's usage chunk and closing comment."""
        values: dict[str, str | int | list[str] | None] = {
            "decision_id": self.decision_id,
            "session_id": self.session_id,
            "model": self.model,
            "effort": self.effort,
            "policy": self.policy_id,
            "reason": self.reason,
            "reserved_usd": usd_string(self.reserved_nanousd),
            "reserved_nano_usd": self.reserved_nanousd,
            "max_tokens": self.max_tokens,
            "dropped": list(self.dropped) or None,
            "soft_budget_exceeded": list(self.over_soft_budget) or None,
            "finish": self.finish,
            "cost_nano_usd": self.cost_nanousd,
            "session_spent_nano_usd": None if self.session is None else self.session.spent_nanousd,
            "session_remaining_nano_usd": None if self.session is None else self.session.spendable_nanousd,
            "tenant_remaining_nano_usd": None if self.tenant is None else self.tenant.available_nanousd,
            "usage_source": self.usage_source,
            **{name.replace("-", "_"): value for name, value in self._money().items()},
        }
        return {name: value for name, value in values.items() if value is not None}

    def _money(self) -> dict[str, str | None]:
        session, tenant = self.session, self.tenant
        return {
            "cost-usd": None if self.cost_nanousd is None else usd_string(self.cost_nanousd),
            "session-spent-usd": None if session is None else usd_string(session.spent_nanousd),
            "session-remaining-usd": None if session is None else usd_string(session.spendable_nanousd),
            "session-budget-usd": None if self.budget_nanousd is None else usd_string(self.budget_nanousd),
            "tenant-remaining-usd": None if tenant is None else usd_string(tenant.available_nanousd),
        }


def header_value(text: str) -> str:
    """The text, if a header can carry it, else percent-encoded UTF-8 (RFC 3986).

    It never fails: an invalid header would lose a response that was paid for.
    """
    if text.isprintable() and (text.isascii() or max(text) <= "\xff"):
        return text
    return quote(text, errors="replace")


def _expected_turns(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and 1 <= int(value) <= MAX_EXPECTED_TURNS):
        raise InvalidRequest(
            f"X-Session-Expected-Turns: expected an integer from 1 to {MAX_EXPECTED_TURNS}",
            param="X-Session-Expected-Turns",
        )
    return int(value)


def _share(value: str | None) -> int | None:
    if value is None:
        return None
    number = value.strip().removesuffix("%")
    whole = value.strip().endswith("%") and number.isascii() and number.isdigit() and len(number) <= 3
    if not (whole and 1 <= int(number) <= 100):
        raise InvalidRequest(
            'X-Session-Budget-Share: expected a whole share of the parent\'s budget from "1%" to "100%"',
            param="X-Session-Budget-Share",
        )
    return int(number)


def _parent(headers: Mapping[str, str]) -> tuple[str | None, bool]:
    """The parent session, and whether it must exist."""
    own = named_parent(headers)
    if own is not None:
        return own, True
    alias = next((headers[name] for name in PARENT_ALIASES if headers.get(name)), None)
    return None if alias is None else normalize_id(alias), False


def _budget_visible(headers: Mapping[str, str]) -> BudgetVisible | None:
    name, forms = "X-Budget-Visible", ("usage", "task_budget")
    value = headers.get(name.lower(), "").lower()
    if value in forms:
        return cast(BudgetVisible, value)
    return "note" if _switch(headers, name, forms) else None


def _switch(headers: Mapping[str, str], name: str, further: Sequence[str] = ()) -> bool | None:
    """The header's value; None without it. `further`: the values that a client may send instead."""
    value = headers.get(name.lower())
    if value is None:
        return None
    if value.lower() not in _SWITCHES:
        expected = ", ".join(("true or on", "false or off", *further))
        raise InvalidRequest(f"{name}: expected {expected}", param=name)
    return _SWITCHES[value.lower()]


def _lambda(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if len(value) <= 32 else math.nan
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and 0.0 <= number <= 1e9):
        raise InvalidRequest(
            "X-Route-Lambda: expected a number from 0 to 1e9 (quality per USD)", param="X-Route-Lambda"
        )
    return number
