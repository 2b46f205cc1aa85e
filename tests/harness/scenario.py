"""What end-to-end tests do again and again: a gateway set up for one story, turns over plain HTTP, rows of tables."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Table, select

from gateway.database.database import transaction
from tests.harness.gateway import Served, config, serving
from tests.harness.upstream import FaultUpstream

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello there"}]


@dataclass(frozen=True, slots=True)
class Play:
    """A gateway over `url`, the provider behind it and the file it was configured by."""

    gateway: Served
    provider: FaultUpstream
    url: str
    path: Path

    def rows(self, table: Table, **where: Any) -> list[Mapping[str, Any]]:
        """What a table holds now, read beside the gateway."""
        query = select(table)
        for name, value in where.items():
            query = query.where(table.c[name] == value)
        with transaction(self.url, read_only=True) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


@contextlib.asynccontextmanager
async def playing(
    folder: Path, url: str, *, modes: Mapping[str, str] | None = None, audited: bool = True, **sections: Any
) -> AsyncIterator[Play]:
    """`sections` are those of `tests.harness.gateway.config`; at the end the books are compared."""
    async with FaultUpstream() as provider:
        path = config(folder, provider.url, database_url=url, modes=modes, **sections)
        async with serving(path) as gateway:
            play = Play(gateway, provider, url, path)
            yield play
            if audited:
                await gateway.ledger_matches(provider)
            else:
                await gateway.settled()
                await gateway.audit()


async def turn(
    http: httpx.AsyncClient,
    model: str = "small",
    messages: list[dict[str, Any]] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> httpx.Response:
    """One chat turn over plain HTTP."""
    body = {"model": model, "messages": HELLO if messages is None else messages} | fields
    return await http.post("/v1/chat/completions", json=body, headers=dict(headers or {}))


def session(name: str, **more: str) -> dict[str, str]:
    """Headers of a session: `session("s", budget_usd="0.1")` sets X-Session-Budget-USD too."""
    named = {"budget_usd": "X-Session-Budget-USD", "expected": "X-Session-Expected-Turns", "end": "X-Session-End"}
    return {"X-Session-Id": name} | {named[key]: value for key, value in more.items()}


def seqroute(response: httpx.Response, name: str) -> str:
    """One of the gateway's own response headers."""
    value: str = response.headers[f"x-seqroute-{name}"]
    return value
