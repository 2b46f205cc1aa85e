"""A provider in a process of its own, as the demo starts it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def provider_url() -> Iterator[str]:
    """The base URL of a provider with seed 7 that answers at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "demo.provider", "--port", str(port), "--seed", "7", "--latency-scale", "0"]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(f"{url}/v1/models", process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(400):
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            assert process.poll() is None, "the provider ended before it answered"
            time.sleep(0.05)
    raise AssertionError(f"nothing answered at {url}")
