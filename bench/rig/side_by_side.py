"""Arena of contenders: one provider and Postgres, servers on one core, the load on another.

    async with Arena(folder) as arena:
        entry = await arena.enter("relay", CONTENDERS["relay"])
        async with arena.turn_of(entry):
            sample = await closed(entry.target, ..., meter=arena.meter(entry))

All servers are started once and frozen (SIGSTOP); only the measured one runs. So rounds can be interleaved without
restarts, and no server's background work takes another's core.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.rig import processes
from bench.rig.environments import ROOT, cache_folder
from bench.rig.gateways import Contender, Stage, free_port, plain_environment
from bench.rig.load import Meter, Target, closed, set_pace
from bench.rig.processes import Server
from migrations.upgrade import upgrade
from tests.harness.postgres import PostgresServer, TestDatabases

WARM_UP_S = 2.0
SETTLE_S = 0.2
"""Wait after a thaw, for timers that expired while the server was frozen."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A running contender; `server` is None for `direct`."""

    name: str
    target: Target
    server: Server | None
    idle_mib: float


class Arena:
    """Shared provider, database and cores of all contenders; with a single core, all share it.

    `spread`: servers and database may run on every core.
    """

    def __init__(self, folder: Path, *, spread: bool = False) -> None:
        self.folder = folder
        cores = sorted(os.sched_getaffinity(0))
        self.load_cores = {cores[0]}
        self.server_cores = set(cores) if spread else {cores[-1]}
        self._database_cores = set(cores) if spread else self.load_cores
        self.provider_port = free_port()
        self.postgres: PostgresServer | None = None
        self._databases: TestDatabases | None = None
        self._entries: list[Entry] = []
        self._provider: Server | None = None

    async def __aenter__(self) -> Self:
        processes.pin(0, self.load_cores)
        self._preferred_before = processes.prefer()
        command = (sys.executable, "-m", "bench.rig.provider", "--port", str(self.provider_port))
        environment = plain_environment() | {"PYTHONPATH": str(ROOT)}
        self._provider = await Server.start(
            "provider", command, environment, cores=self.load_cores, log=self.folder / "provider.log",
            port=self.provider_port, ready="/",
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        for entry in self._entries:
            if entry.server is not None:
                entry.server.stop()
        if self._provider is not None:
            self._provider.stop()
        if self.postgres is not None:
            self.postgres.destroy()
        processes.prefer(self._preferred_before)

    async def pace(self, *, delay_ms: float = 0, gap_ms: float = 0, chunks: int = 200) -> None:
        """Set the provider's timing."""
        await set_pace(self.provider_port, delay_ms=delay_ms, gap_ms=gap_ms, chunks=chunks)

    async def enter(self, name: str, contender: Contender, *, workers: int = 1, database_url: str = "") -> Entry:
        """Start a contender on the servers' cores, warm it up and freeze it.

        `database_url` names a database to use instead of a fresh one. Raises NotBuilt, NotStarted and RunFailed.
        """
        stage = Stage(self.provider_port, self.folder, cache_folder(), self.fresh_database, workers, database_url)
        recipe = contender(stage)
        server = None
        if recipe.command:
            server = await Server.start(
                name, recipe.command, recipe.environment, cores=self.server_cores, log=self.folder / f"{name}.log",
                port=recipe.target.port, ready=recipe.ready, headers=recipe.ready_headers,
            )  # fmt: skip
        idle_mib = processes.resident_mib(server.process_id) if server else 0.0
        self._pin_database()
        entry = Entry(name, recipe.target, server, idle_mib)
        self._entries.append(entry)
        await self.pace()
        await closed(entry.target, clients=4, window_s=WARM_UP_S, meter=self.meter(entry), label="warm")
        if server is not None:
            server.freeze()
        return entry

    @asynccontextmanager
    async def turn_of(self, entry: Entry) -> AsyncIterator[None]:
        """Run only this contender within the block; the others are frozen."""
        if entry.server is not None:
            entry.server.thaw()
        await asyncio.sleep(SETTLE_S)
        self._pin_database()
        try:
            yield
        finally:
            if entry.server is not None:
                entry.server.freeze()

    def meter(self, entry: Entry) -> Meter:
        """CPU seconds so far of the server, the database, the provider and the load generator."""

        def read() -> dict[str, float]:
            used = {"load": time.process_time()}
            if entry.server is not None:
                used["server"] = processes.cpu_seconds(entry.server.process_id)
            if self._provider is not None:
                used["provider"] = processes.cpu_seconds(self._provider.process_id)
            if self.postgres is not None:
                used["postgres"] = processes.cpu_seconds(self.postgres.process_id)
            return used

        return read

    def _pin_database(self) -> None:
        """Pin Postgres again: each connection has its own process."""
        if self.postgres is not None:
            processes.pin_family(self.postgres.process_id, self._database_cores)

    def fresh_database(self) -> str:
        """URL of a new, migrated database; the first call starts Postgres on the load's core."""
        if self._databases is None:
            self.postgres = PostgresServer({"shared_buffers": "512MB", "max_wal_size": "4GB"})
            self.postgres.start()
            self._databases = TestDatabases(self.postgres.url("postgres"), upgrade)
        return self._databases.create()[1]
