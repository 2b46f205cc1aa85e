"""A real gateway for tests: real uvicorn on a free port in a thread of its own, real database, real LiteLLM.

    async with FaultUpstream() as provider, serving(config(provider, folder)) as gateway:
        client = gateway.client(gateway.tenant("acme", budget_usd="1"))

`ledger_matches` is the second half of the auditor: the provider's own books against the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml
from openai import AsyncOpenAI

from gateway.api.server import BoundedHttp
from gateway.app import app_parts, build
from gateway.catalog.build import load
from gateway.composition.lifespan import Gateway
from tests.harness.migrated import migrate
from tests.harness.upstream import FaultUpstream

PRICES: Mapping[str, tuple[str, str]] = {"small": ("0.000001", "0.000002"), "big": ("0.00001", "0.00002")}
"""USD per token in and out of the two test models; each token of `small` is 1,000 and 2,000 nano-USD."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running gateway and its admin key."""

    url: str
    master_key: str
    parts: Gateway
    clients: list[AsyncOpenAI] = field(default_factory=list)

    def client(self, key: str | None = None, **options: Any) -> AsyncOpenAI:
        """The official SDK, without its own retries unless asked for; closed with the gateway."""
        made = AsyncOpenAI(base_url=self.url + "/v1", api_key=key or self.master_key, **({"max_retries": 0} | options))
        self.clients.append(made)
        return made

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {key or self.master_key}"}, timeout=30.0
        )

    async def tenant(self, name: str, *, budget_usd: str = "100", role: str = "tenant", **more: Any) -> tuple[str, str]:
        """A new tenant with a key: (tenant id, key)."""
        async with self.http() as http:
            made = await http.post("/admin/tenants", json={"name": name, "budget_usd": budget_usd} | more)
            assert made.status_code == 200, made.text
            tenant_id = made.json()["id"]
            key = await http.post("/admin/keys", json={"tenant_id": tenant_id, "role": role})
            assert key.status_code == 200, key.text
            return tenant_id, key.json()["key"]

    async def audit(self) -> None:
        """Every invariant of the ledger holds now."""
        async with self.http() as http:
            verdict = (await http.get("/admin/audit")).json()
        assert verdict == {"ok": True, "violations": []}

    async def entries(self, **query: Any) -> list[dict[str, Any]]:
        async with self.http() as http:
            answer = await http.get("/admin/ledger", params={"limit": 10_000} | query)
        rows: list[dict[str, Any]] = answer.json()["data"]
        return rows

    async def settled(self) -> None:
        """Wait until no call is under way and every bill is posted."""
        for _ in range(400):
            if self.parts.services.leases.count == 0 and await self.parts.services.background.drain(0.05) == 0:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("calls are still under way")

    async def ledger_matches(self, provider: FaultUpstream) -> None:
        """What the ledger settled on reports is what the provider billed and reported, to the nano; and no more."""
        await self.settled()
        await self.audit()
        entries = await self.entries()
        settled = sum(
            e["amount_nano_usd"]
            for e in entries
            if e["usage_source"] == "reported" and e["kind"] in ("settle", "overage", "late_post")
        )
        billed = sum(
            a.prompt_tokens * nano_in + a.output_tokens * nano_out
            for a in provider.bill
            if a.usage_reported and a.status == 200 and a.mode not in ("neg", "huge")
            for nano_in, nano_out in [_nano_prices(a.model)]
        )
        assert settled == billed, f"settled {settled}, the provider billed {billed}"


def config(
    folder: Path,
    provider_url: str,
    *,
    database_url: str | None = None,
    modes: Mapping[str, str] | None = None,
    general: Mapping[str, Any] | None = None,
    session: Mapping[str, Any] | None = None,
    router: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    model_info: Mapping[str, Any] | None = None,
    infos: Mapping[str, Mapping[str, Any]] | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a gateway.yaml. `modes` maps model names to the provider's modes; `small` and `big` always exist.

    `infos` and `params` are further `model_info` and `litellm_params` by model name.
    """
    deployments = {"small": "small", "big": "big"} | dict(modes or {})
    tree = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{mode}",
                    "api_base": provider_url,
                    "api_key": "sk-provider-canary",
                }
                | dict((params or {}).get(name, {})),
                "model_info": {
                    "input_cost_per_token": PRICES["big" if name == "big" else "small"][0],
                    "output_cost_per_token": PRICES["big" if name == "big" else "small"][1],
                    "max_input_tokens": 100_000,
                    "max_output_tokens": 4_000,
                    "supports_function_calling": True,
                    "supports_response_schema": True,
                    "quality_prior": 0.9 if name == "big" else 0.6,
                }
                | dict(model_info or {})
                | dict((infos or {}).get(name, {})),
            }
            for name, mode in deployments.items()
        ],
        "general_settings": {
            "master_key": "sk-" + secrets.token_urlsafe(32),
            "database_url": database_url or f"sqlite:///{folder / 'gateway.database.database'}",
            # Where many tests share a few cores, a crowd takes longer to be started; that is no overload here.
            "admission_queue_timeout_seconds": 30,
        }
        | dict(general or {}),
        "session_settings": {"default_budget_usd": 1, "max_budget_usd": 1000} | dict(session or {}),
        "router_settings": {"num_retries": 0, "timeout": 20} | dict(router or {}),
        # Without exploration a decision is the same each time; a test of exploration asks for it.
        "policy_settings": {"directory": str(folder / "policies"), "exploration_floor": 0.0} | dict(policy or {}),
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class PromptServer(uvicorn.Server):
    """Stops as soon as it is told: uvicorn looks every tenth of a second, and waits for another without need."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        await self._told.wait()

    def stop(self) -> None:
        """From another thread."""
        self._loop.call_soon_threadsafe(self._told.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        await self.lifespan.shutdown()


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Served]:
    """Serve the configuration at `path` until the block ends; then drain as a SIGTERM would."""
    settings, catalog = load(path, {})
    migrate(settings.general.database_url.reveal())
    app = build(settings, catalog)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        server = PromptServer(
            uvicorn.Config(app, http=BoundedHttp, lifespan="on", log_level="warning", timeout_graceful_shutdown=10)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        parts = app_parts(app)
        while not parts.services.lifecycle.started:
            assert thread.is_alive(), "the gateway did not start"
            await asyncio.sleep(0.02)
        assert settings.general.master_key is not None
        port = listener.getsockname()[1]
        served = Served(f"http://127.0.0.1:{port}", settings.general.master_key.reveal(), parts)
        try:
            yield served
        finally:
            for client in served.clients:
                await client.close()
            server.stop()
            await asyncio.to_thread(thread.join)


def _nano_prices(model: str) -> tuple[int, int]:
    return (10_000, 20_000) if model == "big" else (1_000, 2_000)
