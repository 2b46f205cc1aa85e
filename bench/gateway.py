"""What the gateway adds to a call, and what it weighs: the same provider asked directly and through the gateway.

    make bench        or        python -m bench.gateway --rounds 5 --turns 200 --soak 10000 [--postgres URL]

Rounds are interleaved (direct, gateway, direct, gateway, ...) so that a noisy machine disturbs both alike; the figures
are medians over rounds, with the least and the most beside them. The provider answers 20 tokens at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import yaml

BODY: Mapping[str, object] = {
    "model": "small",
    "messages": [{"role": "user", "content": "What is the capital of France? " * 4}],
}
AUTO_BODY: Mapping[str, object] = {**BODY, "model": "auto"}
START_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class Round:
    """One measured round: latencies in ms, ascending, and requests per second."""

    latencies_ms: list[float]
    requests_per_s: float

    def percentile(self, share: float) -> float:
        return self.latencies_ms[min(int(share * len(self.latencies_ms)), len(self.latencies_ms) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=200, help="turns per round and client count")
    parser.add_argument("--soak", type=int, default=10_000, help="turns whose memory is watched")
    parser.add_argument("--postgres", help="a Postgres URL; SQLite without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        provider_port, gateway_port = 18080, 18081
        key = "sk-" + secrets.token_urlsafe(32)
        config = _config(Path(folder), provider_port, key, options.postgres)
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
        commands = [
            [sys.executable, "-m", "tests.harness.upstream", "--port", str(provider_port), "--tokens", "20"],
            [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", str(gateway_port),
             "--log-level", "error"],
        ]  # fmt: skip
        processes = [subprocess.Popen(command, env=environment) for command in commands]
        try:
            urls = f"http://127.0.0.1:{provider_port}/v1", f"http://127.0.0.1:{gateway_port}"
            asyncio.run(_measure(*urls, key, processes[1].pid, options))
        finally:
            for process in processes:
                process.terminate()
                process.wait()


async def _measure(provider: str, gateway: str, key: str, gateway_pid: int, options: argparse.Namespace) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64), headers=headers) as client:
        await _until_ready(client, gateway)
        await _round(client, f"{gateway}/v1", AUTO_BODY, 200, 8)
        process = psutil.Process(gateway_pid)
        print(f"{'':24}{'p50 ms':>16}{'p99 ms':>16}{'requests/s':>18}")
        for clients in (1, 16, 32):
            direct, through = [], []
            for _ in range(options.rounds):
                direct.append(await _round(client, provider, BODY, options.turns, clients))
                through.append(await _round(client, f"{gateway}/v1", AUTO_BODY, options.turns, clients))
            _print(f"direct, {clients} clients", direct)
            _print(f"gateway, {clients} clients", through)
            added = [t.percentile(0.5) - d.percentile(0.5) for d, t in zip(direct, through, strict=True)]
            print(f"  added p50 {statistics.median(added):.2f} ms (from {min(added):.2f} to {max(added):.2f})")
        if options.soak:
            await _round(client, f"{gateway}/v1", AUTO_BODY, 1000, 16)
            before = process.memory_info().rss
            await _round(client, f"{gateway}/v1", AUTO_BODY, options.soak, 16)
            after = process.memory_info().rss
            slope = (after - before) / 2**20 / (options.soak / 10_000)
            print(f"memory of one worker: {before / 2**20:.0f} MiB, {after / 2**20:.0f} MiB after {options.soak} more "
                  f"turns ({slope:+.2f} MiB per 10,000)")  # fmt: skip


async def _round(
    client: aiohttp.ClientSession, base: str, body: Mapping[str, object], turns: int, clients: int
) -> Round:
    latencies: list[float] = []
    left = iter(range(turns))

    async def one_client(number: int) -> None:
        for turn in left:
            session = {"X-Session-Id": f"bench-{number}-{turn // 8}"}
            started = time.perf_counter()
            async with client.post(f"{base}/chat/completions", json=body, headers=session) as answer:
                text = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{base} answered {answer.status}: {text[:200]!r}")
            latencies.append((time.perf_counter() - started) * 1000)

    started = time.perf_counter()
    await asyncio.gather(*(one_client(number) for number in range(clients)))
    return Round(sorted(latencies), turns / (time.perf_counter() - started))


def _print(name: str, rounds: Sequence[Round]) -> None:
    columns = [
        [r.percentile(0.5) for r in rounds],
        [r.percentile(0.99) for r in rounds],
        [r.requests_per_s for r in rounds],
    ]
    cells = [f"{statistics.median(c):8.2f} ({min(c):.0f}-{max(c):.0f})" for c in columns]
    print(f"{name:24}" + "".join(f"{cell:>18}" for cell in cells))


async def _until_ready(client: aiohttp.ClientSession, gateway: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    started = time.monotonic()
    while time.monotonic() < deadline:
        try:
            async with client.get(f"{gateway}/readyz") as answer:
                if answer.status == 200:
                    print(f"start-up to ready: {time.monotonic() - started:.1f} s")
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("the gateway did not become ready")


def _config(folder: Path, provider_port: int, key: str, postgres_url: str | None) -> Path:
    models = [("small", 1), ("middle", 4), ("large", 16)]
    tree = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": "openai/ok",
                    "api_base": f"http://127.0.0.1:{provider_port}/v1",
                    "api_key": "sk-none",
                },
                "model_info": {
                    "input_cost_per_token": 1e-8 * factor,
                    "output_cost_per_token": 4e-8 * factor,
                    "max_input_tokens": 100_000,
                    "max_output_tokens": 2_000,
                    "quality_prior": 0.6 + 0.02 * factor,
                },
            }
            for name, factor in models
        ],
        "general_settings": {"master_key": key, "database_url": postgres_url or f"sqlite:///{folder / 'bench.db'}"},
        "session_settings": {"default_budget_usd": 1},
        "policy_settings": {"directory": str(folder / "policies")},
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


if __name__ == "__main__":
    main()
