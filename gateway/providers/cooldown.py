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
        self._lost: dict[tuple[str, str], set[str]] = {}

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

    def note_lost(self, deployment: Deployment, part: str) -> None:
        """Remember a kind of part that the form of a deployment's provider has no place for."""
        self._lost.setdefault((deployment.deployment_id, deployment.litellm_model), set()).add(part)

    @property
    def knows_losses(self) -> bool:
        """True once a provider had no place for a part."""
        return bool(self._lost)

    def loses(self, deployments: Sequence[Deployment], parts: frozenset[str]) -> bool:
        """True if every deployment is known to have no place for one of these kinds of parts."""
        return all(
            not parts.isdisjoint(self._lost.get((each.deployment_id, each.litellm_model), ())) for each in deployments
        )

    def healthy(self, deployments: Sequence[Deployment]) -> list[Deployment]:
        """The deployments that are not in cooldown."""
        if not self._resting_until_s:
            return list(deployments)
        now_s = self._clock()
        return [d for d in deployments if self._resting_until_s.get(d.deployment_id, 0.0) <= now_s]

    def recent(self, deployments: Sequence[Deployment]) -> tuple[float, float]:
        """Failed share of a group's recent calls, and mean seconds of the others; else 0."""
        sums = [self._sums[d.deployment_id] for d in deployments if d.deployment_id in self._sums]
        calls = sum([each.calls for each in sums])
        answered = sum([each.answered for each in sums])
        failure_rate = 1.0 - answered / calls if calls else 0.0
        return failure_rate, sum([each.seconds for each in sums]) / answered if answered else 0.0
