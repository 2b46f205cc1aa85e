"""A provider that caches per key: a session stays where its prompt is warm, and the plan knows how warm it is."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.harness.gateway import config, serving
from tests.harness.processes import clean_environ
from tests.harness.scenario import session, turn

SESSIONS, TURNS = 12, 6
HIT_SHARE = 0.95


@contextlib.asynccontextmanager
async def caching_provider() -> AsyncIterator[str]:
    """A process of its own; yields its address."""
    command = ["-m", "tests.harness.caching_provider"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=clean_environ({}), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


def two_keys(path: Path, address: str) -> None:
    """Make `small` a group of two deployments with a key each."""
    tree = yaml.safe_load(path.read_text())
    (small,) = [entry for entry in tree["model_list"] if entry["model_name"] == "small"]
    small["litellm_params"] |= {"api_base": f"{address}/v1"}
    other = small | {"litellm_params": small["litellm_params"] | {"api_key": "sk-provider-second"}}
    small["model_info"] |= {"cache_read_input_token_cost": float(small["model_info"]["input_cost_per_token"]) / 10}
    tree["model_list"] = [small, other]
    path.write_text(yaml.safe_dump(tree))


async def play(http: httpx.AsyncClient, number: int) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"agent {number} " + "rule " * 300}]
    for step in range(TURNS):
        messages.append({"role": "user", "content": f"step {step} " + "word " * 80})
        answer = await turn(http, "small", messages, headers=session(f"agent-{number}"))
        assert answer.status_code == 200, answer.text
        messages.append(answer.json()["choices"][0]["message"])


async def test_two_deployments_reach_what_one_cache_could(tmp_path: Path, sqlite_url: str) -> None:
    async with caching_provider() as address:
        path = config(tmp_path, f"{address}/v1", database_url=sqlite_url)
        two_keys(path, address)
        async with serving(path) as gateway, gateway.http() as http:
            await asyncio.gather(*(play(http, number) for number in range(SESSIONS)))
            figures = (await http.get(f"{address}/figures")).json()
            assert figures["keys"] == 2
            assert figures["cached"] >= HIT_SHARE * figures["possible"] > 0, figures
            metrics = (await http.get("/metrics")).text
            counted = next(
                line for line in metrics.splitlines() if line.startswith("seqroute_cached_tokens_ratio_count")
            )
            assert float(counted.split()[-1]) == SESSIONS * (TURNS - 1)
            await gateway.audit()
