"""Forecast of a session's cost to go: quantiles from the tenant's finished sessions.

A session of k turns is compared with the tenant's newest longer sessions: their turns after the k-th are possible
futures. Only the newest, because a new policy, budget or task changes what sessions cost.
Each future is priced as billed and at every point of the lambda sweep, where the logged candidates are chosen again by
`quality - lambda * cost`. The futures are scaled by the session's spend relative to its references at turn k, shrunk
towards 1 when there are few turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import Connection, func, select

from gateway.database.tables import decisions, sessions
from gateway.money import usd_string
from gateway.wording import counted

MAX_SESSIONS = 400
MIN_SESSIONS = 8
"""With fewer references the forecast is empty and says why."""
MAX_REFERENCES = 100
"""The fewest with a P99 of their own. With 400 the forecast follows a change of costs four times later."""
SHRINK_TURNS = 3.0
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class PastTurn:
    """One billed turn; `options` are (expected quality, nano-USD) of its feasible candidates."""

    cost_nanousd: int
    options: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Future:
    """The rest of one reference session after the current turn."""

    turns: int
    cost_nanousd: int
    cost_at_nanousd: Mapping[str, int]


def past_sessions(connection: Connection, tenant_id: str, *, idle_before_ms: int) -> dict[str, list[PastTurn]]:
    """Turns of ended sessions, newest first: closed, or idle since `idle_before_ms`."""
    s, d = sessions.c, decisions.c
    newest = (
        select(s.session_id, s.updated_at_ms)
        .where(s.tenant_id == tenant_id, s.turns > 0)
        .where((s.state == "closed") | (s.updated_at_ms < idle_before_ms))
        .order_by(s.updated_at_ms.desc())
        .limit(MAX_SESSIONS)
        .subquery()
    )
    rows = connection.execute(
        select(d.session_id, d.cost_nanousd, d.candidates)
        .join(newest, newest.c.session_id == d.session_id)
        .where(d.tenant_id == tenant_id, d.cost_nanousd.is_not(None))
        .order_by(newest.c.updated_at_ms.desc(), d.session_id, d.turn)
        .limit(MAX_SESSIONS * 50)
    )
    found: dict[str, list[PastTurn]] = {}
    for session_id, cost, candidates in rows:
        found.setdefault(session_id, []).append(PastTurn(cost, _options(orjson.loads(candidates))))
    return found


def spent_turns(connection: Connection, tenant_id: str, session_id: str) -> tuple[int, int]:
    """Billed turns and nano-USD of the session so far."""
    d = decisions.c
    turns, spent = connection.execute(
        select(func.count(), func.coalesce(func.sum(d.cost_nanousd), 0)).where(
            d.tenant_id == tenant_id, d.session_id == session_id, d.cost_nanousd.is_not(None)
        )
    ).one()
    return int(turns), int(spent)


def futures(
    past: Iterable[Sequence[PastTurn]], turns: int, spent_nanousd: int, lambdas: Mapping[str, float]
) -> list[Future]:
    """Possible futures after `turns` turns for `spent_nanousd`; `past` is newest first."""
    found = []
    for session in islice((each for each in past if len(each) > turns), MAX_REFERENCES):
        before = sum(turn.cost_nanousd for turn in session[:turns])
        weight = turns / (turns + SHRINK_TURNS)
        scale = (spent_nanousd / before) ** weight if before > 0 and spent_nanousd > 0 else 1.0
        rest = session[turns:]
        found.append(
            Future(
                turns=len(rest),
                cost_nanousd=round(scale * sum(turn.cost_nanousd for turn in rest)),
                cost_at_nanousd={
                    name: round(scale * sum(_cost_at(turn, per_usd) for turn in rest))
                    for name, per_usd in lambdas.items()
                },
            )
        )
    return found


def summarise(found: Sequence[Future], remaining_nanousd: int, sessions_read: int) -> dict[str, Any]:
    """The forecast as JSON; quantiles are empirical, with the finite-sample correction (n + 1)."""
    if len(found) < MIN_SESSIONS:
        return {
            "available": False,
            "why_not": f"{counted(len(found), 'finished session')} of this tenant went on from here; "
            f"{MIN_SESSIONS} are needed",
            "sessions_read": sessions_read,
        }
    return {
        "available": True,
        "sessions_read": sessions_read,
        "references": len(found),
        "turns_to_go": _quantiles([future.turns for future in found]),
        "cost_to_go": _money([future.cost_nanousd for future in found]),
        "finishes_within_budget": _share([future.cost_nanousd for future in found], remaining_nanousd),
        "at_lambda": {
            name: {
                "cost_to_go": _money([future.cost_at_nanousd[name] for future in found]),
                "finishes_within_budget": _share([future.cost_at_nanousd[name] for future in found], remaining_nanousd),
            }
            for name in found[0].cost_at_nanousd
        },
    }


def quantile(values: Sequence[int], share: float) -> int:
    """Conformal upper quantile: covers an exchangeable new value with probability >= `share`."""
    ordered = sorted(values)
    return ordered[min(len(ordered), math.ceil(share * (len(ordered) + 1))) - 1]


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    return {f"p{round(share * 100)}": quantile(values, share) for share in QUANTILES}


def _money(values: Sequence[int]) -> dict[str, int | str]:
    made: dict[str, int | str] = {}
    for name, nanousd in _quantiles(values).items():
        made |= {f"{name}_nano_usd": nanousd, f"{name}_usd": usd_string(nanousd)}
    return made


def _share(costs: Sequence[int], remaining_nanousd: int) -> float:
    return sum(cost <= remaining_nanousd for cost in costs) / len(costs)


def _cost_at(turn: PastTurn, per_usd: float) -> int:
    """Expected cost when `quality - lambda * cost` decides; the bill when no options were logged."""
    if not turn.options:
        return turn.cost_nanousd
    return max(turn.options, key=lambda option: option[0] - per_usd * option[1] / 1e9)[1]


def _options(candidates: Iterable[Mapping[str, Any]]) -> tuple[tuple[float, int], ...]:
    return tuple(
        (float(c["quality"]), int(c["cost_nano_usd"]))
        for c in candidates
        if c["feasible"] and c.get("quality") is not None
    )
