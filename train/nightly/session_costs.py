"""Coverage of the forecasts of sessions' costs, on the sessions that the run holds back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.decisions.session_forecast import MAX_SESSIONS, MIN_SESSIONS, PastTurn, futures, quantile
from gateway.money import NANOUSD_PER_USD
from train.log.episodes import Episodes

ASKED_AFTER = (0, 1, 3)
"""Turns after which the rest of a session is forecast."""
TARGET = (0.85, 0.95)
"""Coverage of P90 that a calibrated forecast has."""


def forecast_coverage(training: Episodes, untouched: Episodes) -> dict[str, Any]:
    """Share of held-back sessions whose rest cost at most its P90, by the turns before it.

    The references are the tenant's own sessions of the training part, as `POST /v1/forecast` would have them.
    """
    past = {tenant: costs[-MAX_SESSIONS:] for tenant, costs in _costs_by_tenant(training).items()}
    held_back = _costs_by_tenant(untouched)
    found: dict[str, Any] = {}
    for asked_after in ASKED_AFTER:
        covered = [
            fits
            for tenant, sessions in held_back.items()
            for session in sessions
            if (fits := _covers(past.get(tenant, []), session, asked_after)) is not None
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


def _covers(past: Sequence[Sequence[PastTurn]], session: Sequence[PastTurn], asked_after: int) -> bool | None:
    """True if P90 covers the session's rest; None where it has none, or too few references went on."""
    if len(session) <= asked_after:
        return None
    spent_nanousd = sum(turn.cost_nanousd for turn in session[:asked_after])
    costs = [future.cost_nanousd for future in futures(past, asked_after, spent_nanousd, {})]
    if len(costs) < MIN_SESSIONS:
        return None
    return sum(turn.cost_nanousd for turn in session[asked_after:]) <= quantile(costs, 0.9)


def _costs_by_tenant(episodes: Episodes) -> dict[str, list[list[PastTurn]]]:
    """Each tenant's sessions with what every turn cost, in the order of the log."""
    found: defaultdict[str, list[list[PastTurn]]] = defaultdict(list)
    for tenant, costs_usd, valid in zip(episodes.tenant_ids, episodes.cost_usd, episodes.valid, strict=True):
        turns = [PastTurn(round(float(cost) * NANOUSD_PER_USD), ()) for cost in costs_usd[valid]]
        if turns:
            found[tenant].append(turns)
    return dict(found)
