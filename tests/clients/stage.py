"""A gateway process before the played provider, and its books for the checks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import httpx
import uvicorn
import yaml
from sqlalchemy import select
from starlette.applications import Starlette

from gateway.database.database import transaction
from gateway.database.tables import decisions, holds, sessions
from migrations.upgrade import upgrade
from tests.clients.provider import PlayedProvider
from tests.harness.gateway import config
from tests.harness.processes import clean_environ, free_port

START_TIMEOUT_S = 120.0
SETTLE_TIMEOUT_S = 30.0
WORDS = "the session's budget has"
"""How the gateway begins to say that the money has ended."""


class Provider(Protocol):
    """What stands behind the gateway: the bodies of its calls, and the application that answers them."""

    bodies: list[dict[str, Any]]

    def app(self) -> Starlette: ...


P = TypeVar("P", bound=Provider)


@dataclass(frozen=True, slots=True)
class Stage(Generic[P]):
    """A running gateway process, and the provider behind it."""

    url: str
    master_key: str
    database_url: str
    provider: P

    async def tenant(self, name: str) -> tuple[str, str]:
        """A tenant of its own for a client: (tenant id, key)."""
        async with self._http() as http:
            made = await http.post("/admin/tenants", json={"name": name, "budget_usd": "100"})
            tenant_id: str = made.raise_for_status().json()["id"]
            key = await http.post("/admin/keys", json={"tenant_id": tenant_id})
            return tenant_id, key.raise_for_status().json()["key"]

    async def books(self, tenant_id: str, calls: int) -> list[str]:
        """Compare the books of a tenant with the provider's `calls`; answers the problems."""
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            while any(row["state"] == "open" for row in self.rows(holds, tenant_id)):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        async with self._http() as http:
            audit = (await http.get("/admin/audit")).json()
        problems = [] if audit["ok"] else [f"the audit found {audit['violations']}"]
        held = self.rows(holds, tenant_id)
        if len(held) != calls:
            problems.append(f"{calls} calls of the provider had {len(held)} holds")
        spent = sum(row["spent_nanousd"] for row in self.rows(sessions, tenant_id))
        billed = sum(row["cost_nanousd"] or 0 for row in self.rows(decisions, tenant_id))
        if spent != billed or spent == 0:
            problems.append(f"the sessions spent {spent} nano-USD, the bills of their turns are {billed}")
        return problems

    def rows(self, table: Any, tenant_id: str) -> list[Mapping[str, Any]]:
        """The rows of a tenant in one of the gateway's tables, read beside the gateway."""
        with transaction(self.database_url, read_only=True) as connection:
            found = connection.execute(select(table).where(table.c.tenant_id == tenant_id))
            return [dict(row) for row in found.mappings()]

    def _http(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.master_key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30.0)


@contextlib.asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage[PlayedProvider]]:
    """Serve the played provider and a gateway process on SQLite in `folder`."""
    more = {"modes": {"vectors": "vectors"}, "infos": {"vectors": {"mode": "embedding"}}}
    router = {"num_retries": 3, "allowed_fails": 1_000_000}
    async with gateway_before(PlayedProvider(), folder, router=router, **more) as stage:
        yield stage


@contextlib.asynccontextmanager
async def gateway_before(provider: P, folder: Path, **more: Any) -> AsyncIterator[Stage[P]]:
    """Serve a provider and a gateway process on SQLite; `more` is for `tests.harness.gateway.config`."""
    with provided(provider) as provider_url:
        database_url = f"sqlite:///{folder / 'gateway.db'}"
        path = config(folder, provider_url, database_url=database_url, **more)
        upgrade(database_url)
        with gateway_process(path, folder / "gateway.log") as (url, ended):
            await answering(url + "/readyz", ended)
            yield Stage(url, _master_key(path), database_url, provider)


@contextlib.contextmanager
def served_by(
    command: Sequence[str], port: int, log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Run a server on `port`; answers its address and a function: why it ended."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environ)

        def ended() -> str | None:
            return None if process.poll() is None else f"exit status {process.returncode}: {log.read_text()[-2000:]}"

        try:
            yield f"http://127.0.0.1:{port}", ended
        finally:
            process.terminate()
            process.wait()


def gateway_process(path: Path, log: Path) -> contextlib.AbstractContextManager[tuple[str, Callable[[], str | None]]]:
    """Run `serve` on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(path), "--port", str(port)]
    return served_by([*command, "--log-level", "warning"], port, log, clean_environ({}))


@contextlib.contextmanager
def provided(provider: Provider) -> Iterator[str]:
    """Serve the provider in a thread; answers its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = uvicorn.Server(uvicorn.Config(provider.app(), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _master_key(path: Path) -> str:
    key: str = yaml.safe_load(path.read_text())["general_settings"]["master_key"]
    return key


async def answering(url: str, ended: Callable[[], str | None]) -> None:
    """Wait for a 200 at `url`. Raises RuntimeError when the process has ended."""
    async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient() as http:
        while True:
            if (why := ended()) is not None:
                raise RuntimeError(f"the process ended: {why}")
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.05)
