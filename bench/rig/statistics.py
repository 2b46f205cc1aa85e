"""Statistics of measurements: percentiles, median with range, paired ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Median over rounds, with minimum and maximum."""

    median: float
    least: float
    most: float

    def text(self, digits: int = 0) -> str:
        """Median with its range, rounded."""
        if self.least == self.most:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f}-{self.most:,.{digits}f})"


def percentile(ascending: Sequence[float], share: float) -> float:
    """Nearest-rank percentile: the smallest value that at least `share` do not exceed.

    Raises ValueError for no values or a share outside 0..1.
    """
    if not ascending or not 0 <= share <= 1:
        raise ValueError(f"percentile: expected values and a share of 0..1, got {len(ascending)} values, {share}")
    rank = -(-len(ascending) * share // 1)  # the ceiling, without intermediate rounding
    return ascending[max(0, int(rank) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum. Raises ValueError for no values."""
    if not values:
        raise ValueError("spread: expected at least one value, got none")
    return Spread(statistics.median(values), min(values), max(values))


def paired(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Ratios by round, as disturbances affect both. Raises ValueError for unequal lengths."""
    return spread([a / b for a, b in zip(over, under, strict=True)])
