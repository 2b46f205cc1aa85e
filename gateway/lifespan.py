"""Start, background loops and orderly shutdown of a gateway.

The database may become available after the gateway. Until it is up and migrated, turns get 503 and the log names what
is missing; the loops that need it start afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from gateway.accounts import tenants
from gateway.accounts.auth import DEFAULT_TENANT, Authenticator
from gateway.api.health import Lifecycle
from gateway.api.server import STATE_KEY, HttpLimits, Shedding
from gateway.catalog.live import LiveConfiguration
from gateway.catalog.tokens import TokenCounter
from gateway.clock import Clock, Uniform, now_ms
from gateway.config.settings import Settings
from gateway.database import diagnosis
from gateway.database.database import Database
from gateway.database.partitions import make_partition, missing_months
from gateway.decisions import response_store, rollups
from gateway.decisions.refused_turns import RefusedTurns
from gateway.errors import LedgerUnavailable
from gateway.ledger.leases import Leases, sweep_forever
from gateway.ledger.ledger import Ledger
from gateway.ledger.offline import OfflineLedger
from gateway.metrics import Metrics
from gateway.money import NANOUSD_PER_USD
from gateway.policies.registry import PolicyRegistry
from gateway.policies.trials import watch_forever
from gateway.providers.providers import Upstream
from gateway.routing import conversations
from gateway.routing.exploration import ExplorationBudget
from gateway.tasks import Background
from gateway.turn.endpoints import Endpoints
from gateway.turn.judge import Judge
from gateway.turn.second_answers import SecondAnswers
from gateway.turn.turn import Turns
from gateway.webhooks.delivery import Webhooks
from migrations.upgrade import is_behind

_log = logging.getLogger("seqroute.app")
DEFAULT_TENANT_BUDGET_NANOUSD = 1000 * NANOUSD_PER_USD
"""Initial budget of the tenant `default`, which the master key spends."""
RETRY_S = 0.5
ROLLUP_S = 5.0
FORGET_S = 600.0
CONVERSATIONS_KEPT_S = 86_400.0
"""How long the beginnings of conversations are remembered; longer when their sessions may rest for longer."""
WEBHOOK_S = 2.0
REMIND_S = 60.0
"""Interval at which an unchanged reason for waiting is logged again."""
LOOP_PAUSE_S = 5.0
POLICY_POLL_S = 1.0
HEARTBEAT_S = 2.0
STREAMS_END_SHARE = 0.8
"""Share of the drain time after which remaining streams are ended, to leave time to settle them."""
CONNECTIONS_END_SHARE = 0.9
"""Share of the drain time after which the server ends remaining requests."""
CLOSING_S = 2.0
"""Least time for the last settlements."""
HARD_STOP_S = 5.0
"""Time after the drain when the process exits even if a thread still waits for the database."""


@dataclass(slots=True)
class Gateway:
    """The parts of a running gateway; tests access them here."""

    settings: Settings
    configuration: LiveConfiguration
    database: Database
    ledger: Ledger
    outage: OfflineLedger
    upstream: Upstream
    authenticator: Authenticator
    turns: Turns
    endpoints: Endpoints
    leases: Leases
    background: Background
    policies: PolicyRegistry
    exploring: ExplorationBudget
    refused: RefusedTurns
    judge: Judge
    second_answers: SecondAnswers
    webhooks: Webhooks
    lifecycle: Lifecycle
    metrics: Metrics
    tokens: TokenCounter
    clock: Clock
    uniform: Uniform
    shedding: Shedding | None = None
    send_spans: Callable[[], None] = lambda: None
    """Send the spans that are waiting, at the end; blocks for some seconds at most."""
    on_started: Callable[[], None] = lambda: None
    """Called once, when everything is ready and before the first turn."""


class NotMigrated(Exception):
    """The database answers but lacks this version's tables."""


@contextlib.asynccontextmanager
async def running(parts: Gateway) -> AsyncIterator[Mapping[str, Any]]:
    """Run the gateway; yields the limits for the server's connections."""
    restore_signals = _on_stop_signals(parts)
    await parts.database.start()
    await parts.upstream.start()
    await parts.tokens.start()
    loops = [
        asyncio.create_task(_serve_when_ready(parts)),
        asyncio.create_task(parts.configuration.follow()),
        asyncio.create_task(_end_streams_in_time(parts)),
    ]
    own_turns = [
        asyncio.create_task(_run_forever(lambda: parts.judge.run(parts.turns.own_turn))),
        asyncio.create_task(_run_forever(lambda: parts.second_answers.run(parts.turns.second_turn))),
    ]
    restore = (restore_signals, parts.configuration.on_hangup())
    parts.lifecycle.serving = True
    try:
        yield {
            STATE_KEY: HttpLimits(
                parts.settings.limits.header_bytes, shedding=parts.shedding, on_refusal=parts.metrics.count_refusal
            )
        }
    finally:
        parts.lifecycle.drain()
        for undo in restore:
            undo()
        left_s = parts.lifecycle.draining_since_s + parts.settings.timings.drain_s - time.monotonic()
        try:
            async with asyncio.timeout(max(CLOSING_S, left_s)):
                await _close(parts, own_turns, loops)
        except TimeoutError:
            _log.error("stopped before everything was closed; the sweeper will resolve open holds")


async def _close(parts: Gateway, own_turns: list[asyncio.Task[None]], loops: list[asyncio.Task[None]]) -> None:
    for task in own_turns:
        task.cancel()  # first: no client waits for these turns, and their cost is settled below
    await asyncio.gather(*own_turns, return_exceptions=True)
    unfinished = await parts.background.drain(parts.settings.timings.drain_s)
    if unfinished:
        _log.error("stopped with %d settlements unfinished; the sweeper will resolve them", unfinished)
    if parts.lifecycle.started:
        with contextlib.suppress(LedgerUnavailable):
            await parts.outage.post(parts.ledger, parts.database)
            await parts.exploring.share(parts.database)
            await parts.refused.share(parts.database)
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    await parts.upstream.close()
    await parts.tokens.close()
    await asyncio.to_thread(parts.send_spans)
    await parts.ledger.close()
    await parts.database.close()


# -- the start ---------------------------------------------------------------------------------------------------------


async def _serve_when_ready(parts: Gateway) -> None:
    """Wait for the database, then run the loops that need it."""
    await _bring_up(parts)
    loops: list[Callable[[], Coroutine[Any, Any, None]]] = [
        parts.leases.run,
        lambda: _poll_policies(parts),
        lambda: watch_forever(
            parts.database,
            lambda: parts.configuration.current.settings.policy,
            clock=parts.clock,
            uniform=parts.uniform,
            on_end=lambda action: parts.metrics.trials.labels(action).inc(),
            ready=lambda: parts.lifecycle.ledger_up,
        ),
        lambda: sweep_forever(
            parts.ledger, parts.leases, uniform=parts.uniform, interval_s=parts.settings.timings.sweep_s
        ),
        lambda: parts.webhooks.run(ready=lambda: parts.lifecycle.ledger_up, interval_s=WEBHOOK_S),
        lambda: _forget_old(parts),
        lambda: rollups.follow_forever(
            parts.database, parts.clock, ready=lambda: parts.lifecycle.ledger_up, interval_s=ROLLUP_S
        ),
    ]
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(_run_forever(loop))


async def _run_forever(loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Restart a loop that fails: without sweeper or heartbeat, serving would go on unchecked."""
    while True:
        try:
            await loop()
            return
        except Exception:  # noqa: BLE001 - the loop is needed after any error
            _log.exception("a background loop failed; it restarts in %g s", LOOP_PAUSE_S)
            await asyncio.sleep(LOOP_PAUSE_S)


async def _bring_up(parts: Gateway) -> None:
    """Wait until the database is up and migrated, and start the ledger."""
    waiting = _Reminder()
    migrate = f"run `seqroute migrate --config {parts.settings.path}`"
    while not parts.lifecycle.started:
        try:
            await parts.ledger.start()
            await _open_accounts(parts)
            parts.on_started()
            parts.lifecycle.started = parts.lifecycle.ledger_up = True
            _log.info("ready: %d models, database %s", len(parts.configuration.current.catalog.models), _where(parts))
            return
        except NotMigrated:
            waiting.say(f"the database {_where(parts)} lacks the tables of this version: {migrate}")
        except LedgerUnavailable as error:
            waiting.say(diagnosis.outage(parts.database.url, error))
        except Exception as error:  # noqa: BLE001 - unexpected answers of a starting server are waited out too
            if waiting.say(f"the database {_where(parts)} cannot be used: {type(error).__name__}; {migrate}"):
                _log.debug("the start failed", exc_info=True)
        await asyncio.sleep(RETRY_S)


async def _open_accounts(parts: Gateway) -> None:
    await parts.database.read(_check_tables)
    await parts.database.write(
        lambda c: tenants.ensure_tenant(
            c,
            DEFAULT_TENANT,
            DEFAULT_TENANT,
            budget_nanousd=DEFAULT_TENANT_BUDGET_NANOUSD,
            actor="start",
            now_ms=now_ms(parts.clock),
        )
    )
    await parts.policies.refresh()


def _check_tables(connection: Connection) -> None:
    if is_behind(connection):
        raise NotMigrated


def _where(parts: Gateway) -> str:
    return diagnosis.address(parts.database.url)


class _Reminder:
    """Logs a reason for waiting when it is new, and again every REMIND_S."""

    def __init__(self) -> None:
        self._reason = ""
        self._logged_s = 0.0

    def say(self, reason: str) -> bool:
        """Log the reason if it is due; True when it was."""
        now_s = time.monotonic()
        due = reason != self._reason or now_s - self._logged_s >= REMIND_S
        if due:
            self._reason, self._logged_s = reason, now_s
            _log.warning("%s (retried every %g s)", reason, RETRY_S)
        return due


# -- serving -----------------------------------------------------------------------------------------------------------


async def _forget_old(parts: Gateway) -> None:
    """Delete what is stored for a time, and prepare the log for the next months."""
    while True:
        await asyncio.sleep(FORGET_S)
        with contextlib.suppress(LedgerUnavailable):
            await parts.database.write(lambda c: response_store.forget(c, now_ms(parts.clock)))
            await forget_conversations(parts)
            await _make_partitions(parts)  # last: while the log is in use it may fail


async def _make_partitions(parts: Gateway) -> None:
    """Make the log's next monthly partitions; without the right to, rows go to a partition for all others."""
    try:
        for month in await parts.database.read(lambda c: missing_months(c, now_ms(parts.clock))):
            await parts.database.write(partial(make_partition, month=month))
    except ProgrammingError:
        _log.warning("no right to make the log's next partition: run `seqroute migrate` as the tables' owner")


async def forget_conversations(parts: Gateway) -> None:
    """Batch by batch, with room for turns between; a batch that is not full was the last."""
    idle_s = parts.configuration.current.settings.session.idle_timeout_s
    before_ms = now_ms(parts.clock) - int(max(CONVERSATIONS_KEPT_S, idle_s) * 1000)
    while True:
        gone = await parts.database.write(lambda c: conversations.forget(c, before_ms))
        if gone < conversations.FORGET_BATCH:
            return


async def _poll_policies(parts: Gateway) -> None:
    """Load published policies within a second; also the database heartbeat for readiness."""
    failures = 0
    refresh: asyncio.Task[None] | None = None
    try:
        while True:
            await asyncio.sleep(POLICY_POLL_S)
            # A frozen database gives no answer at all, which counts as a failure. One query at a time.
            refresh = refresh or asyncio.create_task(parts.policies.refresh())
            await asyncio.wait({refresh}, timeout=HEARTBEAT_S)
            failures += 1
            if refresh.done():
                asked, refresh = refresh, None
                with contextlib.suppress(LedgerUnavailable):
                    asked.result()
                    failures = 0
                    await parts.outage.post(parts.ledger, parts.database)
                    await parts.exploring.share(parts.database)
                    await parts.refused.share(parts.database)
            # One slow answer is not an outage: flapping readiness would take out every replica at once.
            parts.lifecycle.ledger_up = failures < 2
    finally:
        if refresh is not None:
            refresh.cancel()


async def _end_streams_in_time(parts: Gateway) -> None:
    """End and settle remaining streams with an error before the server cuts their connections."""
    while not parts.lifecycle.draining:  # noqa: ASYNC110 - a signal handler sets it
        await asyncio.sleep(0.1)
    await asyncio.sleep(parts.settings.timings.drain_s * STREAMS_END_SHARE)
    for pump in list(parts.turns.live_streams):
        pump.stop()


def _on_stop_signals(parts: Gateway) -> Callable[[], None]:
    """On SIGTERM or SIGINT turn readiness off, then run the server's handler; return the undo."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGTERM)):
        return lambda: None  # the program that embeds the gateway handles its signals
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def drain(number: int, frame: FrameType | None) -> None:
        if not parts.lifecycle.serving:
            os._exit(0)  # no client is being served, and the imports may take longer than the drain time
        if not parts.lifecycle.draining:
            parts.lifecycle.drain()
            exit_after(parts.settings.timings.drain_s + HARD_STOP_S)
        handler = before[signal.Signals(number)]
        assert callable(handler)
        handler(number, frame)

    def restore() -> None:
        for number, handler in before.items():
            if signal.getsignal(number) is drain:
                signal.signal(number, handler)

    for number in before:
        signal.signal(number, drain)
    return restore


def exit_after(seconds: float) -> None:
    """Exit the process after this time in any case; the sweeper resolves its holds."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
