"""Confidence sequences for the difference between two arms of a running trial.

A canary is checked every few seconds and stopped the first time it looks bad. A fixed-time interval would eventually
stop nearly every canary; a confidence sequence covers the true value at all looks together. These are the asymptotic
ones of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (arXiv 2103.06476, one-sided normal mixture); sessions are the
units, because turns within a session are correlated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arm:
    """Per-session sums of a numerator y and a denominator m, with their products.

    y is in cents, failures or scores, m in turns or graded turns; `sessions` counts those with m > 0.
    """

    sessions: int = 0
    y: float = 0.0
    m: float = 0.0
    yy: float = 0.0
    ym: float = 0.0
    mm: float = 0.0

    @property
    def rate(self) -> float:
        """y per m; NaN while m is 0."""
        return self.y / self.m if self.m > 0 else math.nan

    def variance(self, unit: float) -> float:
        """Variance of `rate` over independent sessions; infinite below two sessions.

        The ratio estimator of Cochran (1977). `unit` is the largest y of one m, 0 when unbounded: it adds one such
        observation, since fifty turns without a failure do not prove that failures are impossible.
        """
        if self.sessions < 2 or self.m <= 0:
            return math.inf
        scatter = max(self.yy - 2 * self.rate * self.ym + self.rate**2 * self.mm, 0.0)
        return float((scatter * self.sessions / (self.sessions - 1) + unit**2) / self.m**2)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Canary's rate - scale * control's rate; each bound holds at all looks with 1 - alpha."""

    mean: float
    low: float
    high: float


def compare(canary: Arm, control: Arm, *, alpha: float, best_at: int, scale: float = 1.0, unit: float = 0.0) -> Bounds:
    """Bound the canary's rate minus `scale` times the control's; infinite without data.

    The bounds are tightest for their level at about `best_at` canary sessions.
    """
    mean = canary.rate - scale * control.rate
    error = math.sqrt(canary.variance(unit) + scale**2 * control.variance(unit))
    if not (math.isfinite(mean) and math.isfinite(error)):
        return Bounds(mean, -math.inf, math.inf)
    radius = error * anytime_quantile(canary.sessions, alpha, best_at)
    return Bounds(mean, mean - radius, mean + radius)


def anytime_quantile(count: int, alpha: float, best_at: int) -> float:
    """Time-uniform quantile in standard errors: one-sided, with probability 1 - alpha.

    sqrt(2 (k+1)/k log(1 + sqrt(k+1) / (2 alpha))), k = count * rho^2; rho is the paper's optimum for `best_at`.
    """
    two_sided = 2.0 * alpha
    rho_squared = (-2.0 * math.log(two_sided) + math.log(-2.0 * math.log(two_sided)) + 1.0) / best_at
    k = count * rho_squared
    return math.sqrt(2.0 * (k + 1.0) / k * math.log(1.0 + math.sqrt(k + 1.0) / two_sided))
