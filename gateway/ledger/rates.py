"""Rate limits: requests and tokens of the last minute by second, and parallel turns.

A window is the running second and the 60 before it, so no 60 seconds ever hold more than the limit; what was counted
leaves it between 60 and 61 seconds later. Seconds are those of the ledger's clock: the database's own on Postgres.
`migrations/sql/limits.sql` judges by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.config.settings import RateQuota

WINDOW_S = 61
PARALLEL_RETRY_S = 1
LimitedAccount = Literal["tenant", "key"]
Resource = Literal["requests", "tokens", "parallel"]
Second = tuple[int, int, int]
"""(second, requests, tokens): what one account did in one second."""


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """One account's limits; `account_id` is the tenant's or the key's."""

    account: LimitedAccount
    account_id: str
    quota: RateQuota

    @property
    def counter(self) -> str:
        """The name of its counters."""
        return f"{self.account[0]}:{self.account_id}"


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """The limits of a turn's tenant and key, and the tokens that it is counted with."""

    accounts: tuple[AccountLimits, ...]
    key_id: str
    tokens: int

    @property
    def mask(self) -> int:
        """1: the tenant is limited, 2: the key is."""
        return sum(1 if each.account == "tenant" else 2 for each in self.accounts)


@dataclass(frozen=True, slots=True)
class Counted:
    """Sums of an account over the window. `oldest_s`: the first second; None: nothing."""

    requests: int
    tokens: int
    oldest_s: int | None


@dataclass(frozen=True, slots=True)
class RateReading:
    """The rest of each limit after this turn, and the seconds until there is more.

    A limit of None does not exist.
    """

    limit_requests: int | None = None
    remaining_requests: int = 0
    reset_requests_s: int = 0
    limit_tokens: int | None = None
    remaining_tokens: int = 0
    reset_tokens_s: int = 0

    def as_headers(self) -> dict[str, str]:
        """OpenAI's header names and its form of durations."""
        headers: dict[str, str] = {}
        for name, limit, remaining, reset_s in (
            ("requests", self.limit_requests, self.remaining_requests, self.reset_requests_s),
            ("tokens", self.limit_tokens, self.remaining_tokens, self.reset_tokens_s),
        ):
            if limit is not None:
                headers |= {
                    f"x-ratelimit-limit-{name}": str(limit),
                    f"x-ratelimit-remaining-{name}": str(remaining),
                    f"x-ratelimit-reset-{name}": duration(reset_s),
                }
        return headers


@dataclass(frozen=True, slots=True)
class Limited:
    """A refused turn; nothing changed. `never`: it is larger than the limit itself."""

    account: LimitedAccount
    resource: Resource
    limit: int
    retry_after_s: int
    reading: RateReading
    never: bool = False


def duration(seconds: int) -> str:
    """Seconds as OpenAI writes them: `59s`, `1m1s`."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def counted(seconds: Sequence[Second]) -> Counted:
    """The sums of a window."""
    return Counted(
        sum(requests for _, requests, _ in seconds),
        sum(tokens for _, _, tokens in seconds),
        min((second for second, requests, tokens in seconds if requests or tokens), default=None),
    )


def exceeded(quota: RateQuota, done: Counted, parallel: int, tokens: int) -> Resource | None:
    """The limit that one more turn of `tokens` would exceed."""
    if quota.parallel is not None and parallel >= quota.parallel:
        return "parallel"
    if quota.rpm is not None and done.requests >= quota.rpm:
        return "requests"
    # A turn that is larger than what a minute allows is admitted alone, unless its prompt is: see `TurnLimits.tokens`.
    if quota.tpm is not None and done.tokens + tokens > quota.tpm:
        return "tokens"
    return None


def limited(
    limits: TurnLimits, account: AccountLimits, resource: Resource, seconds: Sequence[Second], now_s: int
) -> Limited:
    """The refusal of a turn, from what the account did in the window."""
    quota, done = account.quota, counted(seconds)
    limit = {"requests": quota.rpm, "tokens": quota.tpm, "parallel": quota.parallel}[resource]
    assert limit is not None
    if resource == "parallel":
        wait_s = PARALLEL_RETRY_S
    elif resource == "requests":
        wait_s = wait_for_room(
            [(second, requests) for second, requests, _ in seconds], done.requests + 1 - limit, now_s
        )
    else:
        excess = done.tokens + limits.tokens - limit
        wait_s = wait_for_room([(second, tokens) for second, _, tokens in seconds], excess, now_s)
    never = resource == "tokens" and limits.tokens > limit
    return Limited(account.account, resource, limit, wait_s, reading([(account, done)], now_s), never)


def wait_for_room(seconds: Sequence[tuple[int, int]], excess: int, now_s: int) -> int:
    """The seconds until `excess` of what was counted has left the window."""
    for second, amount in sorted(seconds):
        excess -= amount
        if excess <= 0:
            return max(1, second + WINDOW_S - now_s)
    return WINDOW_S


def reading(accounts: Sequence[tuple[AccountLimits, Counted]], now_s: int) -> RateReading:
    """The tightest of an account's and another's limits, each resource for itself."""
    requests = min(
        ((q.quota.rpm - done.requests, q.quota.rpm, done) for q, done in accounts if q.quota.rpm is not None),
        key=lambda found: found[:2],
        default=None,
    )
    tokens = min(
        ((q.quota.tpm - done.tokens, q.quota.tpm, done) for q, done in accounts if q.quota.tpm is not None),
        key=lambda found: found[:2],
        default=None,
    )
    return RateReading(
        limit_requests=None if requests is None else requests[1],
        remaining_requests=0 if requests is None else max(0, requests[0]),
        reset_requests_s=0 if requests is None else _reset_s(requests[2], now_s),
        limit_tokens=None if tokens is None else tokens[1],
        remaining_tokens=0 if tokens is None else max(0, tokens[0]),
        reset_tokens_s=0 if tokens is None else _reset_s(tokens[2], now_s),
    )


def tokens_to_count(prompt_tokens: int, answer_tokens: float, quotas: Sequence[RateQuota]) -> int:
    """The tokens of an admitted turn: its prompt and its likely answer.

    An answer is not foreseen to be longer than what a whole minute allows: such a turn would never be admitted.
    """
    wanted = prompt_tokens + math.ceil(answer_tokens)
    return max(prompt_tokens, min([wanted, *(quota.tpm for quota in quotas if quota.tpm is not None)]))


def _reset_s(done: Counted, now_s: int) -> int:
    return 0 if done.oldest_s is None else max(0, done.oldest_s + WINDOW_S - now_s)
