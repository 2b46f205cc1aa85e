"""Memory of what calls taught about deployments.

One that keeps failing is put into cooldown for `cooldown_s`.

The state is per process; each replica learns it separately, at a cost of at most `allowed_fails` calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.catalog.models import Deployment
from gateway.clock import Clock
from gateway.config.settings import RouterSettings

WINDOW_S = 60.0
RECENT_CALLS = 50
MOST_FAILS = 1000
LOST_FOR_S = 3_600.0
MOST_LOST = 1_000
"""How many losses are remembered, of all tenants and deployments."""


class _Sums(NamedTuple):
    """Sums over a deployment's recent calls, updated once per call; every decision reads them."""

    calls: int
    answered: int
    seconds: float


class Breaker:
    """Circuit breaker: counts failures per deployment."""

    def __init__(self, clock: Clock, settings: Callable[[], RouterSettings]) -> None:
        self._clock = clock
        self._settings = settings
        self._failed_at_s: dict[str, deque[float]] = {}
        self._resting_until_s: dict[str, float] = {}
        self._recent: dict[str, deque[tuple[bool, float]]] = {}
        self._sums: dict[str, _Sums] = {}
        self._lost_until_s: dict[tuple[str, str, str, str], float] = {}

    def record(self, deployment_id: str, *, failed: bool, latency_s: float, counts: bool = True) -> None:
        """Record the outcome of a call; only provider faults are failures.

        `counts=False` marks a further failure of the same turn, which adds no information about other turns.
        """
        recent_calls = self._recent.setdefault(deployment_id, deque(maxlen=RECENT_CALLS))
        recent_calls.append((failed, latency_s))
        answered = [seconds for broken, seconds in recent_calls if not broken]
        self._sums[deployment_id] = _Sums(len(recent_calls), len(answered), sum(answered))
        if not failed:
            self._failed_at_s.pop(deployment_id, None)
            self._resting_until_s.pop(deployment_id, None)
            return
        if not counts:
            return
        now_s, settings = self._clock(), self._settings()
        times = self._failed_at_s.setdefault(deployment_id, deque(maxlen=MOST_FAILS))
        times.append(now_s)
        recent = sum(now_s - at_s <= WINDOW_S for at_s in times)
        if recent > settings.allowed_fails:
            self._resting_until_s[deployment_id] = now_s + settings.cooldown_s

    def note_lost(self, tenant_id: str, deployment: Deployment, part: str) -> None:
        """Remember for a while that a deployment's provider had no place for a kind of part.

        For its tenant alone: an odd part may be lost for another reason than its kind, and must not move others' turns.
        """
        lost = (tenant_id, deployment.deployment_id, deployment.litellm_model, part)
        self._lost_until_s.pop(lost, None)
        while len(self._lost_until_s) >= MOST_LOST:
            del self._lost_until_s[next(iter(self._lost_until_s))]
        self._lost_until_s[lost] = self._clock() + LOST_FOR_S

    @property
    def knows_losses(self) -> bool:
        """True once a provider had no place for a part."""
        return bool(self._lost_until_s)

    def loses(self, tenant_id: str, deployments: Sequence[Deployment], parts: frozenset[str]) -> bool:
        """True if each deployment lately had no place for one of these kinds of parts."""
        now_s, until_s = self._clock(), self._lost_until_s
        return all(
            any(until_s.get((tenant_id, each.deployment_id, each.litellm_model, part), 0.0) > now_s for part in parts)
            for each in deployments
        )

    def healthy(self, deployments: Sequence[Deployment]) -> list[Deployment]:
        """The deployments that are not in cooldown."""
        if not self._resting_until_s:
            return list(deployments)
        now_s = self._clock()
        return [d for d in deployments if self._resting_until_s.get(d.deployment_id, 0.0) <= now_s]

    def recent(self, deployments: Sequence[Deployment]) -> tuple[float, float]:
        """Failed share of a group's recent calls, and mean seconds of the others; else 0."""
        calls, answered, seconds = 0, 0, 0.0
        for deployment in deployments:
            sums = self._sums.get(deployment.deployment_id)
            if sums is not None:
                calls, answered, seconds = calls + sums.calls, answered + sums.answered, seconds + sums.seconds
        return 1.0 - answered / calls if calls else 0.0, seconds / answered if answered else 0.0
