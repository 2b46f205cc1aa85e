"""What is said of many measurements: percentiles, a median with its spread, ratios of runs that lay side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over rounds, with the least and the most."""

    median: float
    least: float
    most: float

    def text(self, digits: int = 0) -> str:
        if self.least == self.most:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f}-{self.most:,.{digits}f})"


def percentile(ascending: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `share` of them do not exceed.

    Raises ValueError for no values or a share outside 0..1.
    """
    if not ascending or not 0 <= share <= 1:
        raise ValueError(f"percentile: expected values and a share of 0..1, got {len(ascending)} values, {share}")
    rank = -(-len(ascending) * share // 1)  # the ceiling, without a float in between that could round up
    return ascending[max(0, int(rank) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("spread: expected at least one value, got none")
    return Spread(statistics.median(values), min(values), max(values))


def paired(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Ratios round by round: what disturbed a round disturbed both. Raises ValueError for unequal rounds."""
    return spread([a / b for a, b in zip(over, under, strict=True)])
