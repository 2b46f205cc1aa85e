"""The killer: real `seqroute serve` processes on one database, and every way to hurt them.

    with ForkServer() as nursery:                                once per test session: imports LiteLLM a single time
        async with Fleet(nursery, config_path) as fleet:
            replica = await fleet.start()                     SQLite or Postgres, as the configuration says
            replica.kill()                                    or terminate(), freeze(), thaw()
            await replica.ended()                             its exit status; -9 after a kill

Every process is in a session of its own and is killed with all its workers when the fleet ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

START_TIMEOUT_S = 240.0
TIMINGS: Mapping[str, str] = {
    "SEQROUTE_HOLD_TTL_SECONDS": "2",
    "SEQROUTE_SWEEP_SECONDS": "0.5",
    "SEQROUTE_DRAIN_SECONDS": "20",
    "SEQROUTE_UPSTREAM_IDLE_SECONDS": "10",
}
TTL_AND_TWO_SWEEPS_S = 3.0
"""Of TIMINGS: when every hold of a dead process must have come to rest."""


class ForkServer:
    """The fork server (see `tests.harness.forkserver`): one per test session, whatever event loops come and go."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environ({}),
        )
        self._started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._codes: dict[int, int] = {}
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        ends_s = time.monotonic() + START_TIMEOUT_S
        while not self._ready.wait(0.2):
            code = self._process.poll()
            if code is not None:
                raise RuntimeError(f"the fork server ended with {code} before it was ready; it says why above")
            if time.monotonic() > ends_s:
                raise RuntimeError(f"the fork server was not ready in {START_TIMEOUT_S:g} s")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def start(
        self, arguments: list[str], environ: Mapping[str, str], log: Path, limits: Mapping[str, int] | None = None
    ) -> int:
        """Run `seqroute` with these arguments; answers its process id."""
        assert self._process.stdin is not None
        order = {"arguments": arguments, "environ": dict(environ), "log": str(log), "limits": dict(limits or {})}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        process_id = self._started.get(timeout=START_TIMEOUT_S)
        self._codes.pop(process_id, None)
        return process_id

    def code_of(self, process_id: int) -> int | None:
        """The exit status of a process that has ended; negative: the signal that ended it."""
        return self._codes.get(process_id)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, Any] = json.loads(line)
            if "ready" in said:
                self._ready.set()
            elif "started" in said:
                self._started.put(said["started"])
            else:
                self._codes[said["ended"]] = said["code"]


class Replica:
    """One `seqroute serve`, with all its workers."""

    def __init__(self, nursery: ForkServer, process_id: int, port: int, log: Path) -> None:
        self._nursery = nursery
        self.process_id = process_id
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"

    @property
    def alive(self) -> bool:
        return self._nursery.code_of(self.process_id) is None

    def kill(self) -> None:
        """kill -9, to every process of it at once."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """What an orchestrator does: SIGTERM to the main process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process_id, signal.SIGTERM)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def workers(self) -> list[int]:
        """The processes that serve: itself, or its children when there are several."""
        children = psutil.Process(self.process_id).children()
        spawned = [c.pid for c in children if "resource_tracker" not in " ".join(c.cmdline())]
        return spawned or [self.process_id]

    async def ended(self, timeout_s: float = 60.0) -> int:
        async with asyncio.timeout(timeout_s):
            while (code := self._nursery.code_of(self.process_id)) is None:  # noqa: ASYNC110 - told by a thread
                await asyncio.sleep(0.01)
        return code

    async def serving(self, workers: int = 1, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until it is ready for turns, every worker of it: the one that starts last takes its share of them too."""
        await self.answering("/readyz", 200, timeout_s)
        async with asyncio.timeout(timeout_s):
            while workers > 1 and self._connected() < workers:  # noqa: ASYNC110 - other processes have no event here
                await asyncio.sleep(0.05)
        for _ in range(10 * (workers - 1)):
            await self.answering("/readyz", 200, timeout_s)

    def _connected(self) -> int:
        """Workers that have opened their database, the last thing before they are ready."""
        with contextlib.suppress(psutil.Error):
            return sum(
                any(link.status == psutil.CONN_ESTABLISHED for link in psutil.Process(worker).net_connections("tcp"))
                for worker in self.workers()
            )
        return 0

    async def answering(self, path: str, status: int, timeout_s: float = START_TIMEOUT_S) -> float:
        """Until `path` answers `status`; the seconds that took."""
        started_s = time.monotonic()
        async with httpx.AsyncClient(timeout=5.0) as http:
            while True:
                if not self.alive:
                    raise AssertionError(f"the gateway ended: {self.log_text()[-3000:]}")
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(self.url + path)).status_code == status:
                        return time.monotonic() - started_s
                if time.monotonic() - started_s > timeout_s:
                    raise AssertionError(f"{path} did not answer {status} in {timeout_s} s: {self.log_text()[-3000:]}")
                await asyncio.sleep(0.02)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process_id, number)


class Fleet:
    """The replicas of one deployment: one configuration, so one database."""

    def __init__(self, nursery: ForkServer, config: Path, *, environ: Mapping[str, str] | None = None) -> None:
        self._nursery = nursery
        self._config = config
        self._environ = clean_environ(dict(TIMINGS) | dict(environ or {}))
        self.replicas: list[Replica] = []
        self._number = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        living = [replica for replica in self.replicas if replica.alive]
        for replica in living:
            replica.thaw()
            replica.kill()
        for replica in living:
            await replica.ended()

    async def start(
        self,
        *,
        port: int | None = None,
        workers: int = 1,
        ready: bool = True,
        config: Path | None = None,
        limits: Mapping[str, int] | None = None,
        options: Sequence[str] = (),
    ) -> Replica:
        """Start a replica, on a fresh port unless it comes back on its old one."""
        self._number += 1
        port = port or free_port()
        log = self._config.parent / f"replica-{self._number}.log"
        arguments = ["serve", "--config", str(config or self._config), "--port", str(port), "--log-level", "warning"]
        if workers > 1:
            arguments += ["--workers", str(workers)]
        arguments += options
        process_id = self._nursery.start(arguments, self._environ, log, limits)
        replica = Replica(self._nursery, process_id, port, log)
        self.replicas.append(replica)
        if ready:
            await replica.serving(workers)
        return replica

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas if replica.alive]


def clean_environ(more: Mapping[str, str]) -> dict[str, str]:
    """This environment without a developer's own settings, and never the network for prices."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEQROUTE_")}
    return kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"} | dict(more)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
