"""An upstream of its own for a test of one provider's calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.providers.providers import Upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    await upstream.start()
    yield upstream
    await upstream.close()
