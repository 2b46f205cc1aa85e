"""A provider that misbehaves on purpose, and an upstream of its own for a test of its calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.providers.providers import Upstream
from tests.harness.lanes import OnLane
from tests.harness.upstream import FaultUpstream


@pytest.fixture
async def provider() -> AsyncIterator[FaultUpstream]:
    async with FaultUpstream() as provider:
        yield provider


@pytest.fixture
def lane() -> str | None:
    """The lane that every call takes; None: its provider's. A file that tests both has a fixture of this name."""
    return None


@pytest.fixture
async def upstream(lane: str | None) -> AsyncIterator[Upstream]:
    upstream = Upstream() if lane is None else OnLane(lane)
    await upstream.start()
    yield upstream
    await upstream.close()
