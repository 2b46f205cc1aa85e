"""Coverage of the forecasts of sessions' costs, on sessions that are held back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.decisions.session_forecast import MAX_SESSIONS, MIN_SESSIONS, PastTurn, futures, quantile
from gateway.money import NANOUSD_PER_USD
from policy.arrays import Bools
from train.log.episodes import Episodes

Costs = Sequence[PastTurn]
"""The turns of one session."""
ASKED_AFTER = (0, 1, 3)
"""Turns after which the rest of a session is forecast."""
TARGET = (0.85, 0.95)
"""Coverage of P90 that a calibrated forecast has."""


def forecast_coverage(training: Episodes, untouched: Episodes) -> dict[str, Any]:
    """Share of held-back sessions whose rest cost at most its P90, by the turns before it.

    The references are the tenant's own newest sessions, as `POST /v1/forecast` would have them: of the training part,
    and of the held-back ones before.
    """
    return coverage(_costs_by_tenant(training), _costs_by_tenant(untouched))


def coverage(past: Mapping[str, Sequence[Costs]], held_back: Mapping[str, Sequence[Costs]]) -> dict[str, Any]:
    """The coverage of forecasts for sessions by tenant, in the order of the log."""
    found: dict[str, Any] = {}
    for asked_after in ASKED_AFTER:
        covered = [
            fits
            for tenant, sessions in held_back.items()
            for before, session in _with_newest_before(past.get(tenant, []), sessions)
            if (fits := _covers(before, session, asked_after)) is not None
        ]
        if covered:
            share = sum(covered) / len(covered)
            found[f"after {asked_after} turns"] = {
                "sessions": len(covered),
                "p90_coverage": round(share, 4),
                "calibrated": TARGET[0] <= share <= TARGET[1],
            }
    return found


def coverage_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The coverage as lines of text."""
    return [
        f"forecast of a session's rest {when}: P90 covers {row['p90_coverage']:.1%} of {row['sessions']:,} held-back "
        f"sessions (calibrated is {TARGET[0]:.0%} to {TARGET[1]:.0%})"
        for when, row in found.items()
    ]


def _with_newest_before(past: Sequence[Costs], sessions: Sequence[Costs]) -> Iterator[tuple[Sequence[Costs], Costs]]:
    """Every session with those before it, newest first, as many as a forecast reads."""
    ordered = [*past, *sessions]
    for place, session in enumerate(sessions, len(past)):
        yield ordered[max(0, place - MAX_SESSIONS) : place][::-1], session


def _covers(before: Sequence[Costs], session: Costs, asked_after: int) -> bool | None:
    """True if P90 covers the session's rest; None where it has none, or too few references went on."""
    if len(session) <= asked_after:
        return None
    spent_nanousd = sum(turn.cost_nanousd for turn in session[:asked_after])
    costs = [future.cost_nanousd for future in futures(before, asked_after, spent_nanousd, {})]
    if len(costs) < MIN_SESSIONS:
        return None
    return sum(turn.cost_nanousd for turn in session[asked_after:]) <= quantile(costs, 0.9)


def session_costs(cost_usd: NDArray[np.floating], valid: Bools) -> list[Costs]:
    """Costs of every turn of the sessions (S, T) that have a turn."""
    sessions = [
        [PastTurn(round(float(cost) * NANOUSD_PER_USD), ()) for cost in costs[played]]
        for costs, played in zip(cost_usd, valid, strict=True)
    ]
    return [turns for turns in sessions if turns]


def _costs_by_tenant(episodes: Episodes) -> dict[str, list[Costs]]:
    """Each tenant's sessions with what every turn cost, in the order of the log."""
    tenants = np.array(episodes.tenant_ids)
    found = {
        tenant: session_costs(episodes.cost_usd[tenants == tenant], episodes.valid[tenants == tenant])
        for tenant in dict.fromkeys(episodes.tenant_ids)
    }
    return {tenant: sessions for tenant, sessions in found.items() if sessions}
