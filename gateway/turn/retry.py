"""Retries: whether, where and after which pause a failed attempt is followed by another.

Retries and fallbacks have a budget together, so that they cannot multiply the load of providers that fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.catalog.models import Deployment
from gateway.providers.errors import CallRefused, UpstreamFault

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
BUDGET_SHARE = 0.1
"""Further attempts, as a share of the turns of the last BUDGET_WINDOW_S."""
BUDGET_WINDOW_S = 10.0
BUDGET_FLOOR = 20
"""Further attempts that are always allowed in the window: little load needs no protection."""


@dataclass(frozen=True, slots=True)
class Next:
    """The deployments that the next attempt may go to, and the pause before it."""

    deployments: tuple[Deployment, ...]
    pause_s: float


@dataclass(slots=True)
class Failures:
    """The failed attempts of one turn, which started at `since_s`."""

    since_s: float
    count: int = 0
    """Those that made a call."""
    on_model: int = 0
    """Those on the model that is being tried."""
    models: list[str] = field(default_factory=list)
    """The models that failed before it."""
    seen: set[str] = field(default_factory=set)
    refused: list[Deployment] = field(default_factory=list)

    def note(self, deployment: Deployment, fault: UpstreamFault) -> None:
        """Record a failed attempt; exclude the deployment's key if the fault requires it."""
        self.count += not isinstance(fault, CallRefused)
        self.on_model += 1
        self.seen.add(deployment.deployment_id)
        if not fault.on_same_key:
            self.refused.append(deployment)

    def leave(self, model: str) -> None:
        """Give a model up: the next attempt is at another."""
        self.models.append(model)
        self.on_model = 0


class RetryBudget:
    """Limit of the further attempts of this process: a tenth of its turns, or a few."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turns_s: deque[float] = deque()
        self._further_s: deque[float] = deque()

    def turn(self) -> None:
        """Count a turn's first attempt."""
        now_s = self._clock()
        self._turns_s.append(now_s)
        _forget(self._turns_s, now_s)

    def take(self) -> bool:
        """Count a further attempt, if one may be made."""
        now_s = self._clock()
        _forget(self._turns_s, now_s)
        _forget(self._further_s, now_s)
        if len(self._further_s) >= max(BUDGET_FLOOR, BUDGET_SHARE * len(self._turns_s)):
            return False
        self._further_s.append(now_s)
        return True


def _forget(times_s: deque[float], now_s: float) -> None:
    while times_s and times_s[0] <= now_s - BUDGET_WINDOW_S:
        times_s.popleft()


def pause_s(retries: int, retry_after_s: float | None, uniform: Callable[[], float]) -> float:
    """The pause before a retry: exponential, half of it random, at least the Retry-After."""
    most: float = min(FIRST_PAUSE_S * 2.0**retries, LONGEST_PAUSE_S)
    return max(most * (0.5 + 0.5 * uniform()), retry_after_s or 0.0)


def next_attempt(
    fault: UpstreamFault,
    failed: Deployment,
    healthy: Sequence[Deployment],
    refused: Sequence[Deployment],
    *,
    retries: int,
    most_retries: int,
    left_s: float,
    uniform: Callable[[], float],
) -> Next | None:
    """The next attempt, or None to return the fault.

    Another deployment is tried at once; the same one after a pause, which must fit into the turn's remaining time.
    `refused` are deployments whose provider rejected the key: they, and others with that key, are not tried again.
    """
    if not fault.retryable or retries >= most_retries:
        return None
    usable = [each for each in healthy if not any(same_key(each, other) for other in refused)]
    others = tuple(each for each in usable if each.deployment_id != failed.deployment_id)
    if others:
        return Next(others, 0.0)
    pause = pause_s(retries, fault.retry_after_s, uniform)
    return Next(tuple(usable), pause) if usable and pause < left_s else None


def same_key(one: Deployment, other: Deployment) -> bool:
    """True if two deployments use the same account; no key means the environment's."""
    return (one.api_key, one.provider_params, _provider(one)) == (
        other.api_key,
        other.provider_params,
        _provider(other),
    )


def _provider(deployment: Deployment) -> str:
    return deployment.litellm_model.partition("/")[0] if deployment.api_key is None else ""
