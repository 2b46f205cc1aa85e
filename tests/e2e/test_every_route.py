"""Every route that spends, whole and streamed: one chain of holds, settled to the provider's bill."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.database.tables import decisions, holds, sessions
from tests.harness.gateway import config, serving
from tests.harness.scenario import HELLO, Play
from tests.harness.upstream import FaultUpstream

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
FREE = {
    "/feedback", "/forecast", "/messages/count_tokens", "/responses/compact", "/responses/{response_id}/cancel",
    "/route", "/router/outcomes", "/sessions/{session_id}", "/sessions/{session_id}/charges", "/tools/check_budget",
}  # fmt: skip
"""Posts that call no provider. Charges spend money elsewhere: tests/e2e/test_charges.py."""
UNSTREAMED = ("embeddings", "moderations")
WAYS = [(way, stream) for way in BODIES for stream in (False, True) if not (stream and way in UNSTREAMED)]
OTHERS = {"small": "other", "vectors": "vectors-b", "watch": "watch-b", "claude": "claude-b", "gpt": "gpt-b"}
"""The fallback of each model."""
MODES = {"vectors": "embedding", "vectors-b": "embedding", "watch": "moderation", "watch-b": "moderation"}
NANOUSD_IN, NANOUSD_OUT, NANOUSD_SEARCH = 1_000, 2_000, 3_000
"""Prices of all models that are called, a token; the fee of a web search."""
FEES = {"search_context_cost_per_query": {"search_context_size_medium": "0.000003"}}
INFOS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"mode": mode} for name, mode in MODES.items()},
    **{name: {"supported_endpoints": ["/v1/responses"], **FEES} for name in ("gpt", "gpt-b")},
    **dict.fromkeys(("claude", "claude-b"), FEES),
}


@dataclass(slots=True)
class QueuedUpstream(FaultUpstream):
    """The fault-injecting provider, with a mode for each request in turn."""

    queue: list[str] = field(default_factory=list)

    def mode_of(self, model: str) -> tuple[str, dict[str, str]]:
        return FaultUpstream.mode_of(self, self.queue.pop(0))

    @property
    def bill_nanousd(self) -> int:
        return sum(
            a.prompt_tokens * NANOUSD_IN + a.output_tokens * NANOUSD_OUT + a.searches * NANOUSD_SEARCH
            for a in self.bill
        )


def maker(model: str) -> str:
    """LiteLLM's name of the provider."""
    return "anthropic" if model.startswith("claude") else "openai"


async def post(http: httpx.AsyncClient, way: str, stream: bool, *, prefix: str = "/v1") -> httpx.Response:
    path, body = BODIES[way]
    return await http.post(prefix + path, json={**body, "stream": stream})


@contextlib.asynccontextmanager
async def scene(
    folder: Path,
    url: str,
    queue: Sequence[str],
    *,
    copies: int = 1,
    retries: int = 0,
    fallbacks: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Play, QueuedUpstream, httpx.AsyncClient]]:
    """A gateway whose every model has so many deployments, before a provider that answers as `queue` says."""
    fallbacks = fallbacks or {}
    async with QueuedUpstream(queue=list(queue)) as provider:
        path = config(
            folder, provider.url, database_url=url, modes={name: name for pair in OTHERS.items() for name in pair},
            infos=INFOS,
            router={"num_retries": retries, "fallbacks": [{name: [other]} for name, other in fallbacks.items()]},
        )  # fmt: skip
        tree = yaml.safe_load(path.read_text())
        tree["model_list"] = [
            entry
            | {"litellm_params": entry["litellm_params"] | {"model": f"{maker(entry['model_name'])}/copy-{number}"}}
            for entry in tree["model_list"]
            for number in range(copies)
        ]
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway, gateway.http() as http:
            yield Play(gateway, provider, url, path), provider, http


async def chain(play: Play, states: Sequence[str]) -> int:
    """Check that one decision has a hold for each state, all resolved and the last one paid; its nano-USD."""
    await play.gateway.settled()
    await play.gateway.audit()
    held = sorted(play.rows(holds), key=lambda row: (row["created_at_ms"], row["hold_id"]))
    assert [row["state"] for row in held] == list(states)
    assert len({row["decision_id"] for row in held}) == 1
    (decision,) = play.rows(decisions)
    assert decision["decision_id"] == held[0]["decision_id"]
    posted = [row["posted_nanousd"] or 0 for row in held]
    assert posted[:-1] == [0] * (len(states) - 1)
    assert decision["cost_nanousd"] == posted[-1]
    assert sum(row["spent_nanousd"] for row in play.rows(sessions)) == posted[-1]
    return int(posted[-1])


async def test_every_route_that_takes_a_post_is_walked_here_or_spends_nothing(tmp_path: Path, sqlite_url: str) -> None:
    """A new route that spends has to be added to the bodies above."""
    async with scene(tmp_path, sqlite_url, []) as (_, _, http):
        paths = (await http.get("/openapi.json")).json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    turns = {path for path in posts if not path.removeprefix("/v1").startswith(("/admin/", "/ui"))}
    assert turns == {prefix + path for prefix in ("/v1", "") for path in {path for path, _ in BODIES.values()} | FREE}


@pytest.mark.parametrize(("way", "stream"), WAYS)
async def test_an_answer_is_one_hold_settled_to_the_bill(
    tmp_path: Path, sqlite_url: str, way: str, stream: bool
) -> None:
    async with scene(tmp_path, sqlite_url, ["ok"]) as (play, provider, http):
        answer = await post(http, way, stream, prefix="" if stream else "/v1")
        assert answer.status_code == 200
        assert await chain(play, ["settled"]) == provider.bill_nanousd > 0


@pytest.mark.parametrize(("way", "stream"), WAYS)
@pytest.mark.parametrize("copies", [1, 2], ids=["same deployment", "other deployment"])
async def test_a_second_attempt_is_a_second_hold_of_the_same_turn(
    tmp_path: Path, sqlite_url: str, way: str, stream: bool, copies: int
) -> None:
    """The same deployment again, or the other one of a balanced group."""
    async with scene(tmp_path, sqlite_url, ["e503", "ok"], copies=copies, retries=1) as (play, provider, http):
        answer = await post(http, way, stream)
        assert answer.status_code == 200
        assert await chain(play, ["released", "settled"]) == provider.bill_nanousd > 0
        assert len({attempt.model for attempt in provider.bill}) == copies


@pytest.mark.parametrize(("way", "stream"), WAYS)
async def test_a_fallback_is_a_second_hold_of_the_same_turn(
    tmp_path: Path, sqlite_url: str, way: str, stream: bool
) -> None:
    async with scene(tmp_path, sqlite_url, ["e503", "ok"], fallbacks=OTHERS) as (play, provider, http):
        answer = await post(http, way, stream)
        assert answer.status_code == 200
        assert await chain(play, ["released", "settled"]) == provider.bill_nanousd > 0
        (decision,) = play.rows(decisions)
        assert (decision["model"], decision["reason"]) == (OTHERS[BODIES[way][1]["model"]], "fallback")
        assert answer.headers["x-seqroute-reason"] == "fallback"


@pytest.mark.parametrize(("way", "stream"), WAYS)
async def test_a_failure_is_one_hold_given_back(tmp_path: Path, sqlite_url: str, way: str, stream: bool) -> None:
    async with scene(tmp_path, sqlite_url, ["e503"]) as (play, provider, http):
        answer = await post(http, way, stream)
        assert answer.status_code >= 500
        await play.gateway.settled()
        await play.gateway.audit()
        assert [(row["state"], row["posted_nanousd"] or 0) for row in play.rows(holds)] == [("released", 0)]
        assert provider.bill_nanousd == 0


@pytest.mark.parametrize("way", [way for way, stream in WAYS if stream])
async def test_a_client_that_leaves_a_stream_pays_no_less_than_what_came(
    tmp_path: Path, sqlite_url: str, way: str
) -> None:
    async with scene(tmp_path, sqlite_url, ["ok:tokens=400,delay=0.02"]) as (play, provider, http):
        path, body = BODIES[way]
        async with http.stream("POST", f"/v1{path}", json={**body, "stream": True}) as leaving:
            async for _ in leaving.aiter_bytes():
                break
        posted = await chain(play, ["settled"])
        (attempt,) = provider.bill
        assert attempt.cut
        # Without a report, a hosted tool counts as called once: at most what was held for it.
        held = sum(row["amount_nanousd"] for row in play.rows(holds))
        assert 0 < posted < (held if "hosted" in way else 400 * NANOUSD_OUT)


@pytest.mark.parametrize("way", BODIES)
async def test_a_client_that_leaves_before_its_answer_is_one_hold_that_is_resolved(
    tmp_path: Path, sqlite_url: str, way: str
) -> None:
    async with scene(tmp_path, sqlite_url, ["ok:first=5"]) as (play, provider, http):
        leaving = asyncio.create_task(post(http, way, stream=False))
        async with asyncio.timeout(20):
            while not provider.bill:  # noqa: ASYNC110 - the provider has no event for it
                await asyncio.sleep(0.01)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        posted = await chain(play, ["settled"])
        (attempt,) = provider.bill
        assert attempt.cut
        assert posted >= attempt.prompt_tokens * NANOUSD_IN
