"""Starts gateways by fork: importing LiteLLM and JAX costs seconds, and a crash test starts hundreds of processes.

A child is a process like any other: a session of its own, its own log, `seqroute` with the arguments it was given. It
reads one JSON object per line (`arguments`, `environ`, `log`, `limits`) and writes `{"started": pid}` for each, and
`{"ended": pid, "code": status}` when a child is gone (negative: the signal that ended it).

A gateway loads hundreds of modules only when it starts or answers for the first time. A rehearsal in a child tells
which, and this process imports them too: the children inherit code and a vocabulary, never a thread or a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.catalog.tokens import load_tokenizer
from tests.harness.gateway import config, serving
from tests.harness.upstream import FaultUpstream

PRELOADED = ("gateway.app", "gateway.cli.serve", "migrations.upgrade", "litellm", "policy.learned", "uvicorn")
_PR_SET_PDEATHSIG = 1


def serve() -> None:
    """Until standard input ends: start what is asked for, tell what has ended. Children die with this process."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name in _rehearsed():
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
            importlib.import_module(name)
    load_tokenizer()
    _say({"ready": os.getpid()})
    pending = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        if readable:
            read = os.read(0, 65536)
            if not read:
                return
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                _say({"started": _start(json.loads(line))})
        _reap()


def _rehearsed() -> list[str]:
    """The modules that a gateway has loaded after its first answer."""
    reading, writing = os.pipe()
    process_id = os.fork()
    if process_id == 0:
        code = 1
        try:
            os.dup2(2, 1)
            asyncio.run(_rehearse())
            with os.fdopen(writing, "w") as told:
                told.write(json.dumps(sorted(sys.modules)))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as heard:
        names: list[str] = json.loads(heard.read())
    os.waitpid(process_id, 0)
    return names


async def _rehearse() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with FaultUpstream() as provider, serving(config(Path(folder), provider.url)) as gateway:
            for stream in (False, True):
                question = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "stream": stream}
                async with gateway.http() as http:
                    answer = await http.post("/v1/chat/completions", json=question)
                    assert answer.status_code == 200, answer.text


def _start(order: Mapping[str, Any]) -> int:
    process_id = os.fork()
    if process_id:
        return process_id
    code = 70
    try:
        code = _be(order)
    finally:
        os._exit(code)


def _be(order: Mapping[str, Any]) -> int:
    """The child: nothing of the fork server is left but its imports."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order["environ"])
    for name, most in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    command = importlib.import_module("gateway.__main__")
    try:
        code: int = command.run(order["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            process_id, status = os.waitpid(-1, os.WNOHANG)
            if process_id == 0:
                return
            _say({"ended": process_id, "code": os.waitstatus_to_exitcode(status)})


def _say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
