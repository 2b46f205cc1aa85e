"""Measured processes: pinned to cores, frozen between runs, CPU time read from /proc.

Linux only, because of /proc and CPU affinity.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

START_TIMEOUT_S = 120.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class NotStarted(Exception):
    """A server exited or was not ready in time."""


class Server:
    """One server with its children; `started_s` is the time from the command to the first 200."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self.started_s = 0.0

    @property
    def process_id(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], environment: Mapping[str, str], *, cores: Set[int], log: Path,
        port: int, ready: str, headers: Mapping[str, str] | None = None,
    ) -> Server:  # fmt: skip
        """Start pinned to `cores`, and wait until `GET ready` is answered 200. Raises NotStarted."""
        started_s = time.perf_counter()
        process = _spawn(command, environment, cores, log)
        server = cls(name, process, log)
        try:
            while not await _is_ready(port, ready, headers or {}):
                if process.poll() is not None:
                    raise NotStarted(f"{name} ended with status {process.returncode}: {server.last_words()}")
                if time.perf_counter() - started_s > START_TIMEOUT_S:
                    raise NotStarted(f"{name} was not ready in {START_TIMEOUT_S:.0f} s: {server.last_words()}")
                await asyncio.sleep(0.02)
        except BaseException:
            server.stop()
            raise
        server.started_s = time.perf_counter() - started_s
        return server

    def last_words(self) -> str:
        """The end of the server's log."""
        return self._log.read_text(errors="replace").strip()[-400:]

    def freeze(self) -> None:
        """Suspend the server and its children."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the server and its children."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after ten seconds."""
        self.thaw()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], cores: Set[int], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: pin(0, cores),
        )


def pin(process_id: int, cores: Set[int]) -> None:
    """Pin a process (0: this one) to cores; children inherit it."""
    os.sched_setaffinity(process_id, cores)


def prefer(policy: tuple[int, int] = (os.SCHED_RR, 1)) -> tuple[int, int]:
    """Give this process and its future children real-time priority; return the previous one.

    Does nothing without the permission. Without real-time priority a woken server waits some milliseconds for the time
    slice of any other job on its core, however low that job's priority.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, policy[0], os.sched_param(policy[1]))
    return before


def pin_family(process_id: int, cores: Set[int]) -> None:
    """Pin a process and all its children with their threads."""
    for member in family(process_id):
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{member}/task"):
                pin(int(thread), cores)


def family(process_id: int) -> list[int]:
    """A process and its living descendants."""
    found = [process_id]
    for member in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{member}/task"):
                found.extend(map(int, Path(f"/proc/{member}/task/{thread}/children").read_text().split()))
    return found


def cpu_seconds(process_id: int) -> float:
    """CPU time of a process, its descendants, and the children they have waited for."""
    total_ticks = 0
    for member in family(process_id):
        with contextlib.suppress(OSError):
            total_ticks += cpu_ticks(Path(f"/proc/{member}/stat").read_text())
    return total_ticks / _TICKS_PER_S


def cpu_ticks(stat: str) -> int:
    """utime + stime + cutime + cstime of a line of /proc/PID/stat (proc(5), fields 14 to 17)."""
    # The second field is the program's name in brackets, and may contain spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def resident_mib(process_id: int) -> float:
    """Resident memory of a process and its descendants, shared pages counted in each."""
    pages = 0
    for member in family(process_id):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * _PAGE_BYTES / 2**20


async def _is_ready(port: int, path: str, headers: Mapping[str, str]) -> bool:
    lines = [f"GET {path} HTTP/1.1", f"host: 127.0.0.1:{port}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write("\r\n".join([*lines, "", ""]).encode())
                return b" 200" in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
