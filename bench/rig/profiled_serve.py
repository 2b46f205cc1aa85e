"""`seqroute` with clocks on functions: `python -m bench.rig.profiled_serve serve ...`.

Each clock adds up the CPU time of its thread. Time within a nested clocked function counts only for the inner one, so
that the phases add up; the rest is the difference to the thread's total. `GET /__clocks` returns the figures since the
last call and resets them.
"""

from __future__ import annotations

import cProfile
import functools
import gc
import importlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PROFILE = "BENCH_PROFILE"
"""Environment variable with a file for cProfile's statistics of the loop's thread, instead of clocks."""

PHASES: tuple[tuple[str, str, str], ...] = (
    ("gateway.turn.turn", "header_map", "read the request"),
    ("gateway.turn.turn", "read_body", "read the request"),
    ("gateway.turn.turn", "parse_chat", "parse"),
    ("gateway.turn.turn", "read_turn_headers", "parse"),
    ("gateway.accounts.auth", "Authenticator.caller", "key"),
    ("gateway.routing.session", "identify", "session"),
    ("gateway.routing.session", "SessionMemory.from_json", "session"),
    ("gateway.ledger.ledger", "Ledger.snapshot", "ledger: snapshot"),
    ("gateway.catalog.tokens", "TokenCounter.count", "tokens"),
    ("gateway.routing.guard", "feasible", "guard"),
    ("gateway.turn.decide", "estimate", "estimates"),
    ("gateway.routing.observe", "Observer.observe", "observation"),
    ("gateway.routing.router", "Router.decide", "decision"),
    ("gateway.decisions.log", "pack", "log facts"),
    ("gateway.turn.reserve", "pending_row", "log row"),
    ("gateway.ledger.ledger", "Ledger.reserve", "ledger: reserve"),
    ("gateway.providers.providers", "Upstream.outgoing", "provider: the request"),
    ("gateway.providers.providers", "Upstream._prepared", "provider: the request"),
    ("gateway.providers.direct", "DirectCall.whole", "provider: send, wait, read"),
    ("gateway.providers.providers", "Upstream.complete", "provider: the rest"),
    ("gateway.turn.settle", "implicit_signals", "settlement: signals"),
    ("gateway.routing.session", "memory_update", "settlement: memory"),
    ("gateway.turn.settle", "bill_of", "settlement: bill"),
    ("gateway.ledger.ledger", "Ledger.settle", "ledger: settle"),
    ("gateway.turn.settle", "Settlements.reply", "settlement: the rest"),
    ("gateway.turn.turn", "Turns.serve", "turn: the rest"),
    ("starlette.responses", "Response.__call__", "send the answer"),
    ("gateway.api.server", "BoundedHttp.data_received", "HTTP parser, and what it starts"),
    ("gateway.database.sqlite_thread", "SqliteThread._run_group", "in the database's thread"),
    ("gateway.database.sqlite_thread", "SqliteThread._answer", "ledger: hand results over"),
    ("gateway.ledger.postgres_batches", "BatchCommitter._answer", "ledger: hand results over"),
    ("gateway.ledger.postgres_batches", "_Worker._apply", "in the database's thread"),
)
COLLECTOR = "garbage collection"


@dataclass(slots=True)
class Clocks:
    """CPU seconds and calls by phase of one thread; `running` is the stack of phases."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    since_s: float = 0.0
    inner_s: float = 0.0
    outer_s: float = 0.0
    """Cost of a clock to its phase and to the enclosing phase, which is subtracted."""

    def enter(self, phase: str) -> None:
        """Start a phase."""
        self._charge(self.outer_s)
        self.running.append(phase)

    def leave(self) -> None:
        """End the innermost phase."""
        self._charge(self.inner_s)
        self.running.pop()

    def calibrate(self, clocked: Callable[[], object], rounds: int = 20_000) -> None:
        """Measure the clocks' own cost with a clocked function that does nothing, in this thread."""
        self.enter("around")
        for _ in range(rounds):
            clocked()
        self.leave()
        self.outer_s, self.inner_s = self.seconds.pop("around") / rounds, self.seconds.pop("nothing") / rounds
        self.calls.clear()

    def _charge(self, own_s: float) -> None:
        now_s = time.thread_time()
        if self.running:
            phase = self.running[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now_s - self.since_s - own_s
        self.since_s = now_s


class AllClocks(threading.local):
    """One `Clocks` per thread; all are in `every`."""

    every: list[Clocks]

    def __init__(self, every: list[Clocks]) -> None:
        self.every = every
        self.own = Clocks()
        every.append(self.own)
        self.own.calibrate(self.clocked(lambda: None, "nothing"))

    def clocked(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The function with a clock; a coroutine's clock runs only while the coroutine runs."""

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            clocks = self.own
            clocks.calls[phase] = clocks.calls.get(phase, 0) + 1
            clocks.enter(phase)
            try:
                return function(*arguments, **named)
            finally:
                clocks.leave()

        @functools.wraps(function)
        async def start(*arguments: Any, **named: Any) -> Any:
            clocks = self.own
            clocks.calls[phase] = clocks.calls.get(phase, 0) + 1
            return await _steps(function(*arguments, **named), clocks, phase)

        return start if inspect.iscoroutinefunction(function) else run

    def collected(self, moment: str, _: dict[str, int]) -> None:
        """Time garbage collections, as a member of `gc.callbacks`."""
        if moment == "start":
            self.own.calls[COLLECTOR] = self.own.calls.get(COLLECTOR, 0) + 1
            self.own.enter(COLLECTOR)
        else:
            self.own.leave()


@coroutine
def _steps(work: Coroutine[Any, Any, Any], clocks: Clocks, phase: str) -> Generator[Any, Any, Any]:
    step: Callable[[], Any] = functools.partial(work.send, None)
    while True:
        clocks.enter(phase)
        try:
            awaited = step()
        except StopIteration as ended:
            return ended.value
        finally:
            clocks.leave()
        try:
            value = yield awaited
        except BaseException as error:  # noqa: BLE001 - it belongs to the clocked coroutine
            step = functools.partial(work.throw, error)
        else:
            step = functools.partial(work.send, value)


class Measured:
    """The gateway with the endpoint for its clocks."""

    def __init__(self, app: ASGIApp, clocks: AllClocks, profile: cProfile.Profile | None) -> None:
        self._app = app
        self._clocks = clocks
        self._profile = profile
        self._thread_s = self._process_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/__clocks":
            await Response(self._figures(), media_type="application/json")(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _figures(self) -> bytes:
        if self._profile is not None:
            self._profile.disable()
            self._profile.dump_stats(os.environ[PROFILE])
            self._profile.clear()  # the last file has the last window alone, without the start
            self._profile.enable()
        thread_s, process_s = time.thread_time(), time.process_time()
        seconds: dict[str, float] = {}
        calls: dict[str, int] = {}
        for clocks in self._clocks.every:
            for phase, spent_s in clocks.seconds.items():
                seconds[phase] = seconds.get(phase, 0.0) + spent_s
            for phase, times in clocks.calls.items():
                calls[phase] = calls.get(phase, 0) + times
            clocks.seconds, clocks.calls = {}, {}
        figures = {
            "seconds": seconds,
            "calls": calls,
            "thread_s": thread_s - self._thread_s,
            "process_s": process_s - self._process_s,
        }
        self._thread_s, self._process_s = thread_s, process_s
        return orjson.dumps(figures)


def main() -> None:
    """Install the clocks or the profiler, then run `seqroute`."""
    clocks = AllClocks([])
    profile = cProfile.Profile() if os.environ.get(PROFILE) else None
    if profile is None:
        for module_name, path, phase in PHASES:
            owner: Any = importlib.import_module(module_name)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            _put(owner, name, clocks, phase)
        gc.callbacks.append(clocks.collected)
    else:
        profile.enable()
    app: Any = importlib.import_module("gateway.app")
    made = app.from_environment
    app.from_environment = lambda: Measured(made(), clocks, profile)
    importlib.import_module("gateway.__main__").main()


def _put(owner: Any, name: str, clocks: AllClocks, phase: str) -> None:
    held = inspect.getattr_static(owner, name)
    if isinstance(held, classmethod):
        setattr(owner, name, classmethod(clocks.clocked(held.__func__, phase)))
    else:
        setattr(owner, name, clocks.clocked(held, phase))


if __name__ == "__main__":
    main()
