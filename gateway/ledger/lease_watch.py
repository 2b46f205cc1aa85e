"""Abandoned holds on a database whose clock may be set forward or back.

A live call renews its lease every quarter of its time, at least every `RENEW_S`. So a lease that stays unchanged for
longer than that, by the elapsed time of the process that looks, has no owner, whatever the database's clock did
in between: a step forward ends no live call's lease, and a step back keeps no dead call's money for its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.clock import Clock

RENEW_S = 15.0
"""The longest time between two renewals of a live lease."""


@dataclass(frozen=True, slots=True)
class OpenLease:
    """An open hold's lease and the time that it has left by the database's clock."""

    hold_id: str
    expires_at_ms: int
    left_ms: int


class LeaseWatch:
    """Remembers since when leases are unchanged; `clock` must be monotonic."""

    def __init__(self, clock: Clock, *, ttl_s: float) -> None:
        self._clock = clock
        self._since_s: dict[tuple[str, int], float] = {}
        self._patience_s = ttl_s * 3 / 8
        self._far_patience_s = max(ttl_s, 4 * RENEW_S)
        self.ahead_ms = int(ttl_s * 500)
        """Leases with less time left are watched; a live call's lease has at least three quarters of its time."""
        self.beyond_ms = int(ttl_s * 1000)
        """Leases with more time left were granted before the database's clock was set back."""

    def abandoned(self, leases: Sequence[OpenLease]) -> list[OpenLease]:
        """Find the abandoned ones among all leases that are watched now."""
        now_s = self._clock()
        self._since_s = {key: self._since_s.get(key, now_s) for key in map(_key, leases)}
        return [lease for lease in leases if self._is_over(lease, now_s - self._since_s[_key(lease)])]

    def _is_over(self, lease: OpenLease, unchanged_s: float) -> bool:
        if lease.left_ms > self.beyond_ms:
            return unchanged_s >= self._far_patience_s
        return lease.left_ms <= 0 and unchanged_s >= self._patience_s


def _key(lease: OpenLease) -> tuple[str, int]:
    return lease.hold_id, lease.expires_at_ms
