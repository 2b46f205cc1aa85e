"""End to end: the official OpenAI SDK, real uvicorn, real LiteLLM, a real database, a provider that keeps its books.

Every test ends with the auditor: the ledger's invariants, and the provider's bill against what was settled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.gateway import Served, config, serving
from tests.harness.processes import ForkServer
from tests.harness.upstream import FaultUpstream

MODES = {
    "words": "ok:tokens=30",
    "slow": "ok:tokens=40,delay=0.02",
    "held": "ok:tokens=40,gate=1",
    "unreported": "nousage",
    "silent": "oknousage",
    "cut": "rst",
    "unfinished": "nofinish",
    "inband": "inband-mid",
    "first": "inband-first",
    "down": "e500",
    "busy": "e429",
    "echo": "e401echo",
    "wrong": "e400",
    "negative": "neg",
    "absurd": "huge",
    "free": "zero",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A gateway and the provider behind it."""

    gateway: Served
    provider: FaultUpstream


@pytest.fixture
async def stage(tmp_path: Path, database_url: str) -> AsyncIterator[Stage]:
    """On SQLite and on Postgres; audited at the end."""
    async with FaultUpstream() as provider:
        path = config(tmp_path, provider.url, database_url=database_url, modes=MODES)
        async with serving(path) as gateway:
            yield Stage(gateway, provider)
            await gateway.ledger_matches(provider)


@pytest.fixture(scope="session")
def nursery() -> Iterator[ForkServer]:
    """Starts gateway processes quickly; see `tests.harness.processes`."""
    with ForkServer() as started:
        yield started
