"""Temporary gateway for a rollout: `seqroute serve` on a free port in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from train.rollout.budget import GatewayRefused

START_TRIES, TRY_AGAIN_S = 600, 0.2
STOP_S = 60.0
PR_SET_PDEATHSIG = 1


@contextlib.asynccontextmanager
async def own_gateway(config: Path, log: Path) -> AsyncIterator[str]:
    """Start a gateway with this configuration and yield its URL. Raises GatewayRefused.

    When the rollout is killed, the kernel sends the gateway a SIGTERM: it finishes the running calls, keeps their
    responses for retries, and ends.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    process = _start(config, port, log)
    try:
        await _ready(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with httpx.AsyncClient(timeout=5.0) as http:
        for _ in range(START_TRIES):
            if process.poll() is not None:
                raise GatewayRefused(f"the gateway did not start: {_last_line(log)}")
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(f"{url}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(TRY_AGAIN_S)
    raise GatewayRefused(f"the gateway did not answer within {START_TRIES * TRY_AGAIN_S:.0f} s (see {log})")


def _start(config: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", str(port)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, "--log-level", "warning"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it wrote nothing"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
