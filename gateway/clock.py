"""Clock, randomness and identifiers, which `app.build` passes to the code that needs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

Clock = Callable[[], float]
"""Seconds since the Unix epoch."""


elapsed_s: Clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Monotonic seconds from an arbitrary start, including system sleep where supported."""


class SteadyClock:
    """Monotonic seconds since the Unix epoch: the wall clock read once plus elapsed time.

    Changes of the machine's clock (NTP, an operator, a restored machine) do not affect it.
    """

    def __init__(self, wall: Clock, elapsed: Clock = elapsed_s) -> None:
        self._elapsed = elapsed
        self._start_s = wall() - elapsed()

    def __call__(self) -> float:
        return self._start_s + self._elapsed()


Uniform = Callable[[], float]
"""A draw from [0, 1)."""

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)
"""Ten bits at a time, for speed: a turn makes three identifiers."""


class Entropy:
    """Buffered random bytes of the operating system, for identifiers and draws.

    A system call lets another thread take the interpreter, so bytes are fetched in bulk. Secrets do not use it.
    """

    def __init__(self, source: Callable[[int], bytes] = os.urandom, pool_bytes: int = 4096) -> None:
        self._source = source
        self._pool_bytes = pool_bytes
        self._pool = b""
        self._at = 0

    def bytes(self, count: int) -> bytes:
        """The next random bytes; none is returned twice."""
        if self._at + count > len(self._pool):
            self._pool, self._at = self._source(max(self._pool_bytes, count)), 0
        self._at += count
        return self._pool[self._at - count : self._at]

    def uniform(self) -> float:
        """A draw from [0, 1) of 53 bits, like `random.SystemRandom`."""
        return (int.from_bytes(self.bytes(7), "big") >> 3) * 2**-53


class NewId(Protocol):
    """Factory of identifiers such as `dec_01k...`: a prefix and 26 characters that sort by time."""

    def __call__(self, prefix: str) -> str: ...


def time_ordered_ids(clock: Clock, entropy: Callable[[int], bytes] = os.urandom) -> NewId:
    """Identifiers of 48 bits of milliseconds and 80 random bits, in base 32 (like ULID)."""

    def new_id(prefix: str) -> str:
        number = (now_ms(clock) & ((1 << 48) - 1)) << 80 | int.from_bytes(entropy(10), "big")
        return f"{prefix}_" + "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])

    return new_id


def now_ms(clock: Clock) -> int:
    """The clock in whole milliseconds, as every table stores it."""
    return int(clock() * 1000)
