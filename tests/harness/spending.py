"""Every way to spend money, for tests that walk them all at shared gateways: each case is a tenant of its own."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from sqlalchemy import Table

from gateway.database.tables import decisions, holds, sessions
from tests.harness.gateway import config, serving
from tests.harness.scenario import HELLO, Play
from tests.harness.upstream import FaultUpstream
from tests.harness.upstream_answers import Attempt

BODIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "chat": ("/chat/completions", {"messages": HELLO, "model": "small"}),
    "messages": ("/messages", {"messages": HELLO, "max_tokens": 4_000, "model": "small"}),
    "responses": ("/responses", {"input": "hello there", "model": "small"}),
    "completions": ("/completions", {"prompt": "hello there", "model": "small"}),
    "embeddings": ("/embeddings", {"input": ["hello there"], "model": "vectors"}),
    "moderations": ("/moderations", {"input": ["hello there"], "model": "watch"}),
    "messages, hosted": (
        "/messages",
        {
            "messages": HELLO, "max_tokens": 4_000, "model": "claude",
            "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        },
    ),
    "responses, hosted": (
        "/responses", {"input": "hello there", "model": "gpt", "tools": [{"type": "web_search"}]}
    ),
}  # fmt: skip
"""Every way to spend: the route and its body. Hosted tools go to the provider in the dialect of the request."""
UNSTREAMED = ("embeddings", "moderations")
WAYS = [(way, stream) for way in BODIES for stream in (False, True) if not (stream and way in UNSTREAMED)]
OTHERS = {"small": "other", "vectors": "vectors-b", "watch": "watch-b", "claude": "claude-b", "gpt": "gpt-b"}
"""The fallback of each model."""
MODES = {"vectors": "embedding", "vectors-b": "embedding", "watch": "moderation", "watch-b": "moderation"}
NANOUSD_IN, NANOUSD_OUT, NANOUSD_SEARCH = 1_000, 2_000, 1_000_000
"""Prices of all models that are called, a token; the fee of a web search, which no tokens here add up to."""
FEES = {"search_context_cost_per_query": {"search_context_size_medium": "0.001"}}
INFOS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"mode": mode} for name, mode in MODES.items()},
    **{name: {"supported_endpoints": ["/v1/responses"], **FEES} for name in ("gpt", "gpt-b")},
    **dict.fromkeys(("claude", "claude-b"), FEES),
}


@dataclass(slots=True)
class QueuedUpstream(FaultUpstream):
    """The fault-injecting provider, with a mode for each request in turn."""

    queue: list[str] = field(default_factory=list)
    unexpected: int = 0
    """Requests beyond the queue."""

    def mode_of(self, model: str) -> tuple[str, dict[str, str]]:
        self.unexpected += not self.queue
        return FaultUpstream.mode_of(self, self.queue.pop(0) if self.queue else "e400")


@dataclass(frozen=True, slots=True)
class Case:
    """A new tenant at a shared gateway, and what the provider was asked since."""

    play: Play
    provider: QueuedUpstream
    http: httpx.AsyncClient
    tenant_id: str
    asked_before: int

    @property
    def attempts(self) -> list[Attempt]:
        """The provider's own books of this case."""
        return self.provider.bill[self.asked_before :]

    @property
    def bill_nanousd(self) -> int:
        return sum(
            a.prompt_tokens * NANOUSD_IN + a.output_tokens * NANOUSD_OUT + a.searches * NANOUSD_SEARCH
            for a in self.attempts
        )

    def rows(self, table: Table) -> list[Mapping[str, Any]]:
        """The tenant's rows of a table."""
        return self.play.rows(table, tenant_id=self.tenant_id)

    async def post(self, way: str, stream: bool, *, prefix: str = "/v1", **fields: Any) -> httpx.Response:
        path, body = BODIES[way]
        return await self.http.post(prefix + path, json={**body, "stream": stream, **fields})

    async def resolved(self) -> list[Mapping[str, Any]]:
        """The holds in their order, all resolved, with sound books."""
        await self.play.gateway.settled()
        return sorted(self.rows(holds), key=lambda row: (row["created_at_ms"], row["hold_id"]))

    async def chain(self, states: Sequence[str]) -> int:
        """Check that one decision has a hold for each state, all resolved and only the last one paid; its nano-USD."""
        held = await self.resolved()
        assert [row["state"] for row in held] == list(states)
        assert len({row["decision_id"] for row in held}) == 1
        (decision,) = self.rows(decisions)
        assert decision["decision_id"] == held[0]["decision_id"]
        posted = [row["posted_nanousd"] or 0 for row in held]
        assert posted[:-1] == [0] * (len(states) - 1)
        assert (decision["cost_nanousd"] or 0) == posted[-1]
        assert sum(row["spent_nanousd"] for row in self.rows(sessions)) == posted[-1]
        return int(posted[-1])


@dataclass(frozen=True, slots=True)
class Routes:
    """A gateway before a provider that answers as it is told."""

    play: Play
    provider: QueuedUpstream

    @contextlib.asynccontextmanager
    async def case(self, *queue: str, **tenant: Any) -> AsyncIterator[Case]:
        """A new tenant; the provider answers as `queue` says, and is asked so often. Then every book is sound."""
        asked_before = len(self.provider.bill)
        self.provider.queue[:], self.provider.unexpected = queue, 0
        tenant_id, key = await self.play.gateway.tenant(f"case-{secrets.token_hex(8)}", **tenant)
        async with self.play.gateway.http(key) as http:
            yield Case(self.play, self.provider, http, tenant_id, asked_before)
        await self.play.gateway.settled()
        await self.play.gateway.audit()
        assert (self.provider.queue, self.provider.unexpected) == ([], 0)


def maker(model: str) -> str:
    """LiteLLM's name of the provider."""
    return "anthropic" if model.startswith("claude") else "openai"


@contextlib.asynccontextmanager
async def routes(
    folder: Path,
    *,
    copies: int = 1,
    retries: int = 0,
    fallbacks: bool = False,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Routes]:
    """A gateway on SQLite whose every model has so many deployments; no failure takes one out of service.

    `sections` are those of `tests.harness.gateway.config`.
    """
    router = {"num_retries": retries, "allowed_fails": 1_000_000, **dict(sections.pop("router", {}))}
    router |= {"fallbacks": [{name: [other]} for name, other in OTHERS.items()]} if fallbacks else {}
    url = f"sqlite:///{folder / 'seqroute.db'}"
    async with QueuedUpstream() as provider:
        path = config(
            folder, provider.url, database_url=url, modes={name: name for pair in OTHERS.items() for name in pair},
            infos=INFOS, router=router, **sections,
        )  # fmt: skip
        tree = yaml.safe_load(path.read_text())
        tree["model_list"] = [
            entry
            | {"litellm_params": entry["litellm_params"] | {"model": f"{maker(entry['model_name'])}/copy-{number}"}}
            for entry in tree["model_list"]
            for number in range(copies)
        ]
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway:
            yield Routes(Play(gateway, provider, url, path), provider)
