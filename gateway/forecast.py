"""How long answers will be: quantiles of output tokens per model, learnt while serving.

Answer lengths are close to log-normal with a heavy tail, so the running mean and variance of log tokens give every
quantile. A prior stands for the first answers; each model's own evidence then outweighs it. Forecasts size holds
and feed the policy's cost law; the binding amount is always the clamp, never the forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from policy.mdp import COST_LEVELS

PRIOR_MEAN_LOG = math.log(220.0)
PRIOR_VARIANCE_LOG = 1.0
PRIOR_ANSWERS = 8.0
"""How many answers the prior is worth."""
MEMORY_ANSWERS = 500.0
"""Older answers fade: beyond this many the forecast follows the model's present habits."""

_NORMAL_SCORES: tuple[float, ...] = tuple(NormalDist().inv_cdf(level) for level in COST_LEVELS)


@dataclass(slots=True)
class _Evidence:
    weight: float
    mean_log: float
    variance_log: float


class OutputForecast:
    """Per-model answer lengths seen by this process; `observe` after a turn, `quantiles` before one."""

    def __init__(self) -> None:
        self._evidence: dict[str, _Evidence] = {}

    def observe(self, model: str, output_tokens: int) -> None:
        """Learn from one complete answer (a truncated one says nothing about length)."""
        if output_tokens <= 0:
            return
        value = math.log(output_tokens)
        seen = self._evidence.setdefault(model, _Evidence(PRIOR_ANSWERS, PRIOR_MEAN_LOG, PRIOR_VARIANCE_LOG))
        weight = min(seen.weight + 1.0, MEMORY_ANSWERS)
        step = 1.0 / weight
        delta = value - seen.mean_log
        seen.mean_log += step * delta
        seen.variance_log = max((1.0 - step) * (seen.variance_log + step * delta * delta), 0.01)
        seen.weight = weight

    def quantiles(self, model: str, limit_tokens: int) -> tuple[float, ...]:
        """Output tokens at policy.mdp.COST_LEVELS, none above `limit_tokens`."""
        seen = self._evidence.get(model)
        mean, deviation = (
            (PRIOR_MEAN_LOG, math.sqrt(PRIOR_VARIANCE_LOG))
            if seen is None
            else (seen.mean_log, math.sqrt(seen.variance_log))
        )
        return tuple(min(math.exp(mean + deviation * score), float(limit_tokens)) for score in _NORMAL_SCORES)
