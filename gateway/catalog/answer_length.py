"""Forecasts of answer length and speed per model, learned while serving.

With few answers the running mean and variance of log tokens give every quantile, as of a log-normal; with many, the
model's last answers do, whose tails are often far from log-normal: an agent's sessions differ by orders of magnitude at
the short end and hardly at the long one. A prior covers a model's first answers until its own evidence outweighs it:
what the other models wrote, since a workload sets its lengths more than a model does, with the spread between models
added to the spread within one. Forecasts size holds and feed the policy's cost distribution; the amount that binds is
always the clamp, never the forecast.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from gateway.catalog.cache_hits import CacheHits
from policy.mdp import COST_LEVELS

PRIOR_MEAN_LOG = math.log(220.0)
PRIOR_VARIANCE_LOG = 1.0
"""What is expected before any answer of any model; among the others it weighs as much as one model."""
PRIOR_ANSWERS = 8.0
"""Weight of the prior, in answers."""
PRIOR_TOKENS_PER_S = 80.0
"""Typical of hosted models in 2026; weighs as much as one answer."""
OWN_ANSWERS = 25.0
"""Answers at which a model's last answers count as much as the log-normal."""
_EFFORT_LOG = {"": 0.0, "low": math.log(0.7), "medium": 0.0, "high": math.log(1.6)}
"""How much longer answers are expected to be by effort; mcpmark's runs of GPT-5, its mini and nano (2025-12)."""
MEMORY_ANSWERS = 500
"""Cap on the evidence's weight: older answers fade, so the forecast follows recent behaviour."""

_LONG = COST_LEVELS.index(0.98)
_NORMAL_SCORES: tuple[float, ...] = tuple(NormalDist().inv_cdf(level) for level in COST_LEVELS)


@dataclass(slots=True)
class _Evidence:
    weight: float
    mean_log: float
    variance_log: float
    last_log: deque[float] = field(default_factory=deque)
    sorted_log: list[float] = field(default_factory=list)
    """The last MEMORY_ANSWERS answers, as they came and sorted."""
    speed_weight: float = 1.0
    mean_log_speed: float = math.log(PRIOR_TOKENS_PER_S)
    shift_log: float = 0.0
    """What of `mean_log` is the effort's and not expected of other models."""
    quantiles: tuple[float, ...] = ()
    """At COST_LEVELS, without a limit; computed on first use."""


class OutputForecast:
    """Lengths, speeds and cache hits of the answers that this process has seen, per model."""

    def __init__(self) -> None:
        self._evidence: dict[str, _Evidence] = {}
        self._newcomers: dict[str, _Evidence] = {}
        self.cache = CacheHits()

    def observe(self, model: str, output_tokens: int, seconds: float = 0.0, effort: str = "") -> None:
        """Learn from one complete, untruncated answer; `seconds` is 0 when the speed is unknown.

        `model` is the name of a candidate, which differs for each of a model's efforts.
        """
        if output_tokens <= 0:
            return
        value = math.log(output_tokens)
        seen = self._evidence.get(model)
        if seen is None:
            seen = self._evidence[model] = pooled(self._evidence.values(), _EFFORT_LOG[effort])
        weight = min(seen.weight + 1.0, float(MEMORY_ANSWERS))
        step = 1.0 / weight
        delta = value - seen.mean_log
        seen.mean_log += step * delta
        seen.variance_log = max((1.0 - step) * (seen.variance_log + step * delta * delta), 0.01)
        seen.weight = weight
        seen.last_log.append(value)
        insort(seen.sorted_log, value)
        if len(seen.last_log) > MEMORY_ANSWERS:
            del seen.sorted_log[bisect_left(seen.sorted_log, seen.last_log.popleft())]
        seen.quantiles = ()
        self._newcomers.clear()
        if seconds > 0:
            seen.speed_weight = min(seen.speed_weight + 1.0, float(MEMORY_ANSWERS))
            seen.mean_log_speed += (math.log(output_tokens / seconds) - seen.mean_log_speed) / seen.speed_weight

    def generated(self, model: str, seconds: float, limit_tokens: int, effort: str = "") -> int:
        """Likely output tokens after `seconds` of generation, at most the model's p98 length."""
        seen = self._evidence.get(model)
        speed = PRIOR_TOKENS_PER_S if seen is None else math.exp(seen.mean_log_speed)
        longest = self.quantiles(model, limit_tokens, effort)[_LONG]
        return math.ceil(min(max(seconds, 0.0) * speed, longest))

    def quantiles(self, model: str, limit_tokens: int, effort: str = "") -> tuple[float, ...]:
        """Output tokens at policy.mdp.COST_LEVELS, none above `limit_tokens`."""
        seen = self._evidence.get(model)
        if seen is None:
            seen = self._newcomers.get(effort)
            if seen is None:
                seen = self._newcomers[effort] = pooled(self._evidence.values(), _EFFORT_LOG[effort])
        if not seen.quantiles:
            seen.quantiles = _quantiles(seen.mean_log, seen.variance_log, seen.sorted_log)
        unlimited, limit = seen.quantiles, float(limit_tokens)
        # Quantiles ascend: those behind the limit are the last.
        within = bisect_right(unlimited, limit)
        return unlimited if within == len(unlimited) else unlimited[:within] + (limit,) * (len(unlimited) - within)


def pooled(others: Iterable[_Evidence], shift_log: float = 0.0) -> _Evidence:
    """Expected answers of a model that none was seen of: a draw among the others and the prior.

    A model counts by the share of its evidence that is its own answers; the variance of the draw is the mean variance
    within a model plus that of the models' means. `shift_log`: what the effort adds to the mean.
    """
    shares = [(1.0, PRIOR_MEAN_LOG, PRIOR_VARIANCE_LOG)]
    shares += [
        (1.0 - PRIOR_ANSWERS / seen.weight, seen.mean_log - seen.shift_log, seen.variance_log) for seen in others
    ]
    whole = sum(share for share, _, _ in shares)
    mean = sum(share * mean_log for share, mean_log, _ in shares) / whole
    variance = sum(share * (within + (mean_log - mean) ** 2) for share, mean_log, within in shares) / whole
    return _Evidence(PRIOR_ANSWERS, mean + shift_log, variance, shift_log=shift_log)


def _quantiles(mean_log: float, variance_log: float, sorted_log: Sequence[float]) -> tuple[float, ...]:
    """Quantiles at COST_LEVELS: the weighted geometric mean of the log-normal's and those of the last answers."""
    deviation = math.sqrt(variance_log)
    own = len(sorted_log) / (len(sorted_log) + OWN_ANSWERS)
    return tuple(
        math.exp((1.0 - own) * (mean_log + deviation * score) + own * quantile_of(sorted_log, level))
        for level, score in zip(COST_LEVELS, _NORMAL_SCORES, strict=True)
    )


def quantile_of(ordered: Sequence[float], level: float) -> float:
    """Median-unbiased quantile of a sample, 0 of an empty one (Hyndman & Fan 1996, no. 8)."""
    if not ordered:
        return 0.0
    place = level * (len(ordered) + 1 / 3) - 2 / 3
    below = min(max(math.floor(place), 0), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + min(max(place - below, 0.0), 1.0) * (ordered[above] - ordered[below])
