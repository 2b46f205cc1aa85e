"""Grading of an answer by its task's check, in a sandbox (train/rollout/sandbox.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAGE = Path(__file__).with_name("sandbox.py")
MAX_VERDICT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one check. `wall_s` is generous, because a busy machine slows every process."""

    cpu_s: int = 5
    wall_s: float = 60.0
    memory_bytes: int = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Grade:
    """A score in [0, 1], with a note on a low one."""

    score: float
    note: str = ""


async def run_check(
    check: Mapping[str, Any], answer: str, messages: Sequence[Mapping[str, str]], limits: Limits
) -> Grade:
    """Score `answer` after the conversation `messages`. Never raises for a hostile answer."""
    if set(check) <= {"exact", "ignore_case"}:  # a comparison needs no process
        return Grade(float(_bare(check["exact"], check) == _bare(answer, check)))
    job = {
        "check": dict(check),
        "answer": answer,
        "messages": list(messages),
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="seqroute-check-") as empty:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(CAGE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=empty,
            env={},
            start_new_session=True,
        )
        try:
            said = await asyncio.wait_for(_verdict(process, json.dumps(job).encode()), limits.wall_s)
        except TimeoutError:
            return Grade(0.0, "timeout")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return _read(said)


def _bare(text: str, check: Mapping[str, Any]) -> str:
    return text.strip().casefold() if check.get("ignore_case") else text.strip()


async def _verdict(process: asyncio.subprocess.Process, job: bytes) -> bytes:
    """Output of the check up to a limit, which also bounds memory here."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(job)
        await process.stdin.drain()
    process.stdin.close()
    said = b""
    while len(said) <= MAX_VERDICT_BYTES:
        more = await process.stdout.read(MAX_VERDICT_BYTES)
        if not more:
            break
        said += more
    return said


def _read(said: bytes) -> Grade:
    try:
        verdict = json.loads(said)
        return Grade(min(1.0, max(0.0, float(verdict["score"]))), str(verdict["note"])[:200])
    except (ValueError, TypeError, KeyError):
        return Grade(0.0, "killed" if not said else "no verdict")
