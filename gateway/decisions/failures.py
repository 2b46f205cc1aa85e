"""Failed attempts of a turn in its decision's row, as `explain` shows them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson

MAX_LOGGED = 16
"""Failed attempts of one turn that its decision keeps."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One failed attempt; `provider_message` is without secrets, "" if there was none."""

    model: str
    deployment: str
    status: int
    reason: str
    type: str
    code: str
    param: str
    provider_message: str
    started_ms: int = 0
    ended_ms: int = 0


def column(failures: tuple[FailedAttempt, ...]) -> str | None:
    """The decision's column `failures`: JSON, or None without a failure."""
    return orjson.dumps([asdict(failure) for failure in failures[-MAX_LOGGED:]]).decode() if failures else None


def shown(stored: str | None) -> list[dict[str, Any]]:
    """The failed attempts of a row; what is not known is null."""
    failures = [] if stored is None else orjson.loads(stored)
    return [{name: value or None for name, value in failure.items()} for failure in failures]
