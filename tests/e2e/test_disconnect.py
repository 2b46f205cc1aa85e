"""Clients that leave at any moment: the provider is closed within a second, the hold settled within two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.client_disconnects import departures
from tests.harness.cluster import ground
from tests.harness.processes import ForkServer

pytestmark = pytest.mark.faults

MODELS = {"slow": "ok:tokens=400,delay=0.01"}
LONG_LEASES = {"SEQROUTE_HOLD_TTL_SECONDS": "120"}
"""So that nothing here can be the sweeper's work."""


async def test_clients_that_leave_are_settled_in_two_seconds_and_their_providers_closed_in_one(
    tmp_path: Path, nursery: ForkServer, database_url: str
) -> None:
    async with ground(tmp_path, nursery, database_url, modes=MODELS, environ=LONG_LEASES) as scene:
        await scene.fleet.start()
        client = await scene.client()
        await client.turn("small", session="warm")
        figures = await departures(scene, client, seed=1, count=60)
        assert figures.departures > 20
        assert max(figures.closed_s) <= 1.0
        assert max(figures.settled_s) <= 2.0
        assert figures.verdict.orphaned == 0
        assert scene.provider.open_connections <= 60  # idle ones of the pool, none of a call
