"""Where gateways are hurt: real processes on one database, a provider with books, clients that remember, an auditor.

async with ground(folder, nursery, database_url) as scene:
    replica = await scene.fleet.start()
    client = await scene.client()
    ...
    await scene.judge()          every law of the ledger, and three sets of books against each other
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import func, select

from gateway.database.database import transaction
from gateway.database.tables import holds, ledger_entries
from tests.harness.auditor import Verdict, assert_books_agree, assert_url_sound
from tests.harness.clients import Client, Turn, make_tenant
from tests.harness.faultproxy import FaultProxy
from tests.harness.gateway import config
from tests.harness.processes import Fleet, ForkServer
from tests.harness.upstream import FaultUpstream


@dataclass(slots=True)
class Ground:
    """Real gateway processes on one database, a provider with books, clients that remember."""

    fleet: Fleet
    provider: FaultUpstream
    provider_proxy: FaultProxy
    database_url: str
    master_key: str
    config_path: Path
    clients: list[Client] = field(default_factory=list)
    tenants: int = 0

    async def client(self, urls: list[str] | None = None, **tenant: Any) -> Client:
        """A client with a tenant of its own."""
        urls = urls or self.fleet.urls
        self.tenants += 1
        _, key = await make_tenant(urls[0], self.master_key, f"tenant-{self.tenants}", **tenant)
        return self.client_of(key, urls)

    def client_of(self, key: str, urls: list[str] | None = None) -> Client:
        made = Client(urls or self.fleet.urls, key, name=f"client{len(self.clients)}")
        self.clients.append(made)
        return made

    @property
    def history(self) -> list[Turn]:
        return [turn for client in self.clients for turn in client.history]

    async def until(self, happened: Callable[[], bool], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not happened():  # noqa: ASYNC110 - what other processes do has no event here
                await asyncio.sleep(0.005)

    def open_holds(self) -> int:
        with transaction(self.database_url, read_only=True) as connection:
            query = select(func.count()).select_from(holds).where(holds.c.state == "open")
            return int(connection.execute(query).scalar_one())

    def entries(self) -> list[dict[str, Any]]:
        with transaction(self.database_url, read_only=True) as connection:
            query = select(ledger_entries).where(ledger_entries.c.hold_id.is_not(None))
            rows = connection.execute(query.order_by(ledger_entries.c.entry_id))
            return [dict(row._mapping) for row in rows]

    async def at_rest(self, timeout_s: float = 15.0) -> float:
        """Until no hold is open; the seconds that took."""
        started_s = time.monotonic()
        while await asyncio.to_thread(self.open_holds):
            if time.monotonic() - started_s > timeout_s:
                raise AssertionError(f"{self.open_holds()} holds are open after {timeout_s} s")
            await asyncio.sleep(0.05)
        return time.monotonic() - started_s

    async def judge(self) -> Verdict:
        """The auditor over everything that happened: the ledger's own laws, then the three sets of books."""
        await self.at_rest()
        assert_url_sound(self.database_url, at_ms=int(time.time() * 1000), grace_ms=0)
        return assert_books_agree(self.database_url, self.history, self.provider.bill)


@contextlib.asynccontextmanager
async def ground(
    folder: Path,
    nursery: ForkServer,
    database_url: str,
    *,
    served_url: str | None = None,
    provider_proxy: bool = False,
    environ: dict[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Ground]:
    """A provider and an empty fleet over a migrated database.

    `served_url`: how the gateways reach the database, for example through a FaultProxy; the auditor goes straight.
    """
    async with FaultUpstream() as provider, FaultProxy(provider.host, provider.port) as between:
        provider_url = f"http://127.0.0.1:{between.port}/v1" if provider_proxy else provider.url
        path = config(folder, provider_url, database_url=served_url or database_url, **options)
        master_key: str = yaml.safe_load(path.read_text())["general_settings"]["master_key"]
        async with Fleet(nursery, path, environ=environ) as fleet:
            made = Ground(fleet, provider, between, database_url, master_key, path)
            try:
                yield made
            finally:
                for client in made.clients:
                    await client.close()
