"""Load balancing: which deployment of a model is called, within the deployments' own limits.

A session stays on its deployment while the provider's prompt cache is warm, the deployment is healthy and has room.
Otherwise `routing_strategy` chooses among those of the lowest `order`. Calls and tokens are counted in this process, so
each replica applies a deployment's limits to its own calls. Counters have no await between choice and count.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from gateway.catalog.models import Deployment
from gateway.clock import Clock
from gateway.config.settings import RouterSettings
from gateway.ledger.rates import (
    PARALLEL_RETRY_S,
    WINDOW_S,
    Second,
    counted,
    exceeded,
    tokens_to_count,
    wait_for_room,
)

LATENCIES = 10
"""Latencies that are kept of a deployment, as in LiteLLM."""


class Demand(Struct, frozen=True):
    """Needs of one call: its session, its expected tokens, and where its prompt is cached."""

    session_key: str
    prompt_tokens: int
    answer_tokens: float = 0.0
    stream: bool = False
    spare: bool = False
    """Whether the call may only use room that leaves half of each limit free."""
    home: str | None = None
    """Id of the deployment that has the session's prompt in its cache."""

    def tokens_at(self, deployment: Deployment) -> int:
        """Tokens that the call is counted with, no more of its answer than the limit allows."""
        return tokens_to_count(self.prompt_tokens, self.answer_tokens, [deployment.limits])


@dataclass(frozen=True, slots=True)
class Full:
    """Every deployment is at one of its limits; the first has room in `wait_s`."""

    wait_s: int


@dataclass(slots=True)
class _Load:
    """Calls of a deployment: under way, in the last minute by second, and recent latencies."""

    calls: int = 0
    seconds: deque[list[int]] = field(default_factory=deque)
    latencies: dict[bool, deque[tuple[float, float]]] = field(default_factory=dict)

    def window(self, now_s: float) -> list[Second]:
        """The last minute: (second, requests, tokens)."""
        while self.seconds and self.seconds[0][0] <= now_s - WINDOW_S:
            self.seconds.popleft()
        return [(second, requests, tokens) for second, requests, tokens in self.seconds]

    def tokens(self, now_s: float) -> int:
        """Tokens of the last minute."""
        return sum(tokens for _, _, tokens in self.window(now_s))

    def latency_s(self, stream: bool, since_s: float) -> float:
        """Mean of the recent latencies; 0 without any, so that an unknown deployment is tried."""
        found = [seconds for at_s, seconds in self.latencies.get(stream, ()) if at_s >= since_s]
        return sum(found) / len(found) if found else 0.0


class Slot:
    """One call's place at a deployment; `leave` may be called repeatedly, and before the others."""

    def __init__(self, load: _Load, counted_in: list[int], tokens: int, stream: bool, clock: Clock) -> None:
        self._load = load
        self._counted_in = counted_in
        self._tokens = tokens
        self._stream = stream
        self._clock = clock
        self._under_way = True

    def leave(self) -> None:
        """End the call."""
        if self._under_way:
            self._under_way = False
            self._load.calls -= 1

    def answered(self, latency_s: float) -> None:
        """Record the time to the response, or to the first part of a stream."""
        kept = self._load.latencies.setdefault(self._stream, deque(maxlen=LATENCIES))
        kept.append((self._clock(), latency_s))

    def used(self, tokens: int) -> None:
        """Replace the expected tokens by those that were billed."""
        self._counted_in[2] += tokens - self._tokens
        self._tokens = tokens

    def unsent(self) -> None:
        """End a call that was never made: it counts for nothing."""
        if self._under_way:
            self.leave()
            self.used(0)
            self._counted_in[1] -= 1


class LoadBalancer:
    """Load of this process's deployments."""

    def __init__(self, clock: Clock, settings: Callable[[], RouterSettings]) -> None:
        self._clock = clock
        self._settings = settings
        self._loads: dict[str, _Load] = {}

    def with_room(self, deployments: Sequence[Deployment], demand: Demand) -> list[Deployment]:
        """The deployments whose limits admit one more call."""
        return [each for each in deployments if not each.limits or self._wait_s(each, demand) == 0]

    def wait_s(self, deployments: Sequence[Deployment], demand: Demand) -> int:
        """Seconds until one of the deployments has room; 0 if one has, or if there are none."""
        if len(deployments) == 1 and not deployments[0].limits:
            return 0  # on every turn, for every model
        return min((self._wait_s(each, demand) if each.limits else 0 for each in deployments), default=0)

    def take(self, deployments: Sequence[Deployment], demand: Demand) -> tuple[Deployment, Slot] | Full:
        """Choose a deployment and count a call there."""
        able = self.with_room(deployments, demand)
        if not able:
            return Full(self.wait_s(deployments, demand))
        chosen = able[0] if len(able) == 1 else self._chosen(able, demand)
        return chosen, self._counted(chosen, demand)

    def _counted(self, deployment: Deployment, demand: Demand) -> Slot:
        load, now_s, tokens = self._load(deployment), int(self._clock()), demand.tokens_at(deployment)
        if not load.seconds or load.seconds[-1][0] < now_s:
            load.window(now_s)
            load.seconds.append([now_s, 0, 0])
        counted_in = load.seconds[-1]
        counted_in[1] += 1
        counted_in[2] += tokens
        load.calls += 1
        return Slot(load, counted_in, tokens, demand.stream, self._clock)

    def _load(self, deployment: Deployment) -> _Load:
        load = self._loads.get(deployment.deployment_id)
        if load is None:
            load = self._loads[deployment.deployment_id] = _Load()
        return load

    def _wait_s(self, deployment: Deployment, demand: Demand) -> int:
        """Seconds until a deployment's limits admit the call; 0: now."""
        load = self._loads.get(deployment.deployment_id)
        if load is None and not demand.spare:
            return 0
        load = load or _Load()
        now_s, limits, tokens = int(self._clock()), deployment.limits, demand.tokens_at(deployment)
        if demand.spare:
            limits = limits.halved()
        seconds = load.window(now_s)
        done = counted(seconds)
        alone = load.calls == 0 and done.tokens == 0 and not demand.spare
        resource = exceeded(limits, done, load.calls, 0 if alone else tokens)
        if resource is None:
            return 0
        if resource == "parallel":
            return PARALLEL_RETRY_S
        if resource == "requests":
            assert limits.rpm is not None
            return wait_for_room([(at, requests) for at, requests, _ in seconds], done.requests + 1 - limits.rpm, now_s)
        assert limits.tpm is not None
        return wait_for_room([(at, used) for at, _, used in seconds], done.tokens + tokens - limits.tpm, now_s)

    def _chosen(self, able: Sequence[Deployment], demand: Demand) -> Deployment:
        first = min(deployment.order for deployment in able)
        able = [deployment for deployment in able if deployment.order == first]
        for deployment in able:
            if deployment.deployment_id == demand.home:
                return deployment
        able = [deployment for deployment in able if deployment.weight > 0] or able
        settings, now_s = self._settings(), self._clock()
        ranks = [self._rank(deployment, demand, settings, now_s) for deployment in able]
        most = min(ranks)
        if settings.routing_strategy == "latency-based-routing":
            most *= 1.0 + settings.latency_buffer
        return by_weight([each for each, rank in zip(able, ranks, strict=True) if rank <= most], demand.session_key)

    def _rank(self, deployment: Deployment, demand: Demand, settings: RouterSettings, now_s: float) -> float:
        """The strategy's measure of a deployment, of which the least is called."""
        load = self._load(deployment)
        match settings.routing_strategy:
            case "least-busy":
                return load.calls
            case "latency-based-routing":
                return load.latency_s(demand.stream, now_s - settings.latency_ttl_s)
            case "usage-based-routing" | "usage-based-routing-v2":
                return load.tokens(now_s)
            case "cost-based-routing":
                rates = deployment.prices.at(demand.prompt_tokens)
                return rates.input_femtousd * demand.prompt_tokens + rates.output_femtousd * demand.answer_tokens
            case _:
                return 0.0


def by_weight(deployments: Sequence[Deployment], session_key: str) -> Deployment:
    """Choose a session's deployment in proportion to the weights.

    The choice is the same on every turn and replica; when a deployment is missing, only its sessions move (rendezvous
    hashing).
    """
    if len(deployments) == 1:
        return deployments[0]

    def distance(deployment: Deployment) -> float:
        digest = hashlib.sha256(f"{session_key}\0{deployment.deployment_id}".encode()).digest()
        uniform = (int.from_bytes(digest[:6], "big") + 1) / (2**48 + 1)
        return -math.log(uniform) / deployment.weight if deployment.weight > 0 else math.inf

    return min(deployments, key=distance)
