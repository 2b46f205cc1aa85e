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

from sqlalchemy import Connection, update
from sqlalchemy.exc import ProgrammingError

from gateway.accounts import tenants
from gateway.accounts.auth import DEFAULT_TENANT
from gateway.api.server import STATE_KEY, HttpLimits, Shedding
from gateway.clock import now_ms
from gateway.composition.services import Services
from gateway.database import diagnosis, tables
from gateway.database.partitions import make_partition, missing_months
from gateway.decisions import response_store, rollups
from gateway.decisions.forecasts import SessionForecasts
from gateway.errors import LedgerUnavailable
from gateway.ledger.leases import sweep_forever
from gateway.money import NANOUSD_PER_USD
from gateway.policies.trials import watch_forever
from gateway.routing import conversations
from gateway.routing.exploration import ExplorationBudget
from gateway.turn.dry_run import DryRuns
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

    services: Services
    turns: Turns
    endpoints: Endpoints
    dry_runs: DryRuns
    forecasts: SessionForecasts
    exploring: ExplorationBudget
    judge: Judge
    second_answers: SecondAnswers
    webhooks: Webhooks
    shedding: Shedding | None = None
    send_spans: Callable[[], None] = lambda: None
    """Send the spans that are waiting, at the end; blocks for some seconds at most."""
    on_started: Callable[[], None] = lambda: None
    """Called once, when everything is ready and before the first turn."""


class NotMigrated(Exception):
    """The database answers but lacks this version's tables."""


@contextlib.asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[Mapping[str, Any]]:
    """Run the gateway; yields the limits for the server's connections."""
    services = gateway.services
    restore_signals = _on_stop_signals(services)
    await services.database.start()
    await services.upstream.start()
    await services.tokens.start()
    loops = [
        asyncio.create_task(_serve_when_ready(gateway)),
        asyncio.create_task(services.configuration.follow()),
        asyncio.create_task(_end_streams_in_time(gateway)),
    ]
    own_turns = [
        asyncio.create_task(_run_forever(lambda: gateway.judge.run(gateway.turns.own_turn))),
        asyncio.create_task(_run_forever(lambda: gateway.second_answers.run(gateway.turns.second_turn))),
    ]
    restore = (restore_signals, services.configuration.on_hangup())
    services.lifecycle.serving = True
    try:
        yield {
            STATE_KEY: HttpLimits(
                services.settings.limits.header_bytes,
                shedding=gateway.shedding,
                on_refusal=services.metrics.count_refusal,
            )
        }
    finally:
        services.lifecycle.drain()
        for undo in restore:
            undo()
        left_s = services.lifecycle.draining_since_s + services.settings.timings.drain_s - time.monotonic()
        try:
            async with asyncio.timeout(max(CLOSING_S, left_s)):
                await _close(gateway, own_turns, loops)
        except TimeoutError:
            _log.error("stopped before everything was closed; the sweeper will resolve open holds")


async def _close(gateway: Gateway, own_turns: list[asyncio.Task[None]], loops: list[asyncio.Task[None]]) -> None:
    services = gateway.services
    for task in own_turns:
        task.cancel()  # first: no client waits for these turns, and their cost is settled below
    await asyncio.gather(*own_turns, return_exceptions=True)
    unfinished = await services.background.drain(services.settings.timings.drain_s)
    if unfinished:
        _log.error("stopped with %d settlements unfinished; the sweeper will resolve them", unfinished)
    if services.lifecycle.started:
        with contextlib.suppress(LedgerUnavailable):
            await _share(gateway)
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    await services.upstream.close()
    await services.tokens.close()
    await asyncio.to_thread(gateway.send_spans)
    await services.ledger.close()
    await services.database.close()


async def _share(gateway: Gateway) -> None:
    """Write what this replica kept in memory for all of them."""
    services = gateway.services
    await services.outage.post(services.ledger, services.database)
    await gateway.exploring.share(services.database)
    await services.refused.share(services.database)


# -- the start ---------------------------------------------------------------------------------------------------------


async def _serve_when_ready(gateway: Gateway) -> None:
    """Wait for the database, then run the loops that need it."""
    services = gateway.services
    await _bring_up(gateway)
    loops: list[Callable[[], Coroutine[Any, Any, None]]] = [
        services.leases.run,
        lambda: _poll_policies(gateway),
        lambda: watch_forever(
            services.database,
            lambda: services.current().settings.policy,
            clock=services.clock,
            uniform=services.uniform,
            on_end=lambda action: services.metrics.trials.labels(action).inc(),
            ready=lambda: services.lifecycle.ledger_up,
        ),
        lambda: sweep_forever(
            services.ledger,
            services.leases,
            uniform=services.uniform,
            interval_s=services.settings.timings.sweep_s,
        ),
        lambda: gateway.webhooks.run(ready=lambda: services.lifecycle.ledger_up, interval_s=WEBHOOK_S),
        lambda: _forget_old(services),
        lambda: rollups.follow_forever(
            services.database,
            services.clock,
            ready=lambda: services.lifecycle.ledger_up,
            interval_s=ROLLUP_S,
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


async def _bring_up(gateway: Gateway) -> None:
    """Wait until the database is up and migrated, and start the ledger."""
    services = gateway.services
    waiting = _Reminder(RETRY_S)
    migrate = f"run `seqroute migrate --config {services.settings.path}`"
    while not services.lifecycle.started:
        try:
            await services.ledger.start()
            await _open_accounts(services)
            gateway.on_started()
            services.lifecycle.started = services.lifecycle.ledger_up = True
            _log.info("ready: %d models, database %s", len(services.current().catalog.models), _where(services))
            return
        except NotMigrated:
            waiting.say(f"the database {_where(services)} lacks the tables of this version: {migrate}")
        except LedgerUnavailable as error:
            waiting.say(diagnosis.outage(services.database.url, error))
        except Exception as error:  # noqa: BLE001 - unexpected answers of a starting server are waited out too
            if waiting.say(f"the database {_where(services)} cannot be used: {type(error).__name__}; {migrate}"):
                _log.debug("the start failed", exc_info=True)
        await asyncio.sleep(RETRY_S)


async def _open_accounts(services: Services) -> None:
    await services.database.read(_check_tables)
    await services.database.write(
        lambda c: tenants.ensure_tenant(
            c,
            DEFAULT_TENANT,
            DEFAULT_TENANT,
            budget_nanousd=DEFAULT_TENANT_BUDGET_NANOUSD,
            actor="start",
            now_ms=now_ms(services.clock),
        )
    )
    await services.policies.refresh()


def _check_tables(connection: Connection) -> None:
    if is_behind(connection):
        raise NotMigrated


def _where(services: Services) -> str:
    return diagnosis.address(services.database.url)


class _Reminder:
    """Logs a reason for waiting when it is new, and again every REMIND_S."""

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._reason = ""
        self._logged_s = 0.0

    def say(self, reason: str) -> bool:
        """Log the reason if it is due; True when it was."""
        now_s = time.monotonic()
        due = reason != self._reason or now_s - self._logged_s >= REMIND_S
        if due:
            self._reason, self._logged_s = reason, now_s
            _log.warning("%s (retried every %g s)", reason, self._retry_s)
        return due


# -- serving -----------------------------------------------------------------------------------------------------------


async def _forget_old(services: Services) -> None:
    """Delete what is stored for a time, and prepare the log for the next months."""
    while True:
        await asyncio.sleep(FORGET_S)
        with contextlib.suppress(LedgerUnavailable):
            await services.database.write(lambda c: response_store.forget(c, now_ms(services.clock)))
            await forget_conversations(services)
            await _make_partitions(services)  # last: while the log is in use it may fail


async def _make_partitions(services: Services) -> None:
    """Make the log's next monthly partitions; without the right to, rows go to a partition for all others."""
    try:
        for month in await services.database.read(lambda c: missing_months(c, now_ms(services.clock))):
            await services.database.write(partial(make_partition, month=month))
    except ProgrammingError:
        _log.warning(
            "no permission to create the log's next partition: run `seqroute migrate` as the owner of the tables"
        )


async def forget_conversations(services: Services) -> None:
    """Batch by batch, with room for turns between; a batch that is not full was the last."""
    idle_s = services.current().settings.session.idle_timeout_s
    before_ms = now_ms(services.clock) - int(max(CONVERSATIONS_KEPT_S, idle_s) * 1000)
    while True:
        gone = await services.database.write(lambda c: conversations.forget(c, before_ms))
        if gone < conversations.FORGET_BATCH:
            return


async def _poll_policies(gateway: Gateway) -> None:
    """Load published policies within a second; also the database heartbeat for readiness."""
    services = gateway.services
    failures = 0
    waiting = _Reminder(POLICY_POLL_S)
    beat: asyncio.Task[None] | None = None
    try:
        while True:
            await asyncio.sleep(POLICY_POLL_S)
            # A frozen database gives no answer at all, which counts as a failure. One query at a time.
            beat = beat or asyncio.create_task(_beat(services))
            await asyncio.wait({beat}, timeout=HEARTBEAT_S)
            problem: LedgerUnavailable | None = LedgerUnavailable(f"no answer within {HEARTBEAT_S:g} s")
            if beat.done():
                asked, beat = beat, None
                try:
                    asked.result()
                    problem = None
                    await _share(gateway)
                except LedgerUnavailable as error:
                    problem = problem and error
            failures = 0 if problem is None else failures + 1
            # One slow answer is not an outage: flapping readiness would take out every replica at once.
            if problem is not None and failures >= 2:
                services.outage.notice()
                waiting.say(diagnosis.outage(services.database.url, problem))
            elif problem is None and not services.lifecycle.ledger_up:
                waiting = _Reminder(POLICY_POLL_S)
                _log.info("the database %s answers again", _where(services))
            services.lifecycle.ledger_up = failures < 2
    finally:
        if beat is not None:
            beat.cancel()


async def _beat(services: Services) -> None:
    """Read; after a failed operation of the ledger also write: a standby and a full disk answer reads."""
    await services.policies.refresh()
    if services.ledger.doubted:
        await services.database.write(_write_anything)
        services.ledger.doubted = False


def _write_anything(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":  # a row that stays as it was would not be written
        number = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version = {(number + 1) % 2**31}")
    else:
        row = update(tables.tenants).where(tables.tenants.c.tenant_id == DEFAULT_TENANT)
        connection.execute(row.values(name=tables.tenants.c.name))


async def _end_streams_in_time(gateway: Gateway) -> None:
    """End and settle remaining streams with an error before the server cuts their connections."""
    services = gateway.services
    while not services.lifecycle.draining:  # noqa: ASYNC110 - a signal handler sets it
        await asyncio.sleep(0.1)
    await asyncio.sleep(services.settings.timings.drain_s * STREAMS_END_SHARE)
    for pump in list(gateway.turns.live_streams):
        pump.stop()


def _on_stop_signals(services: Services) -> Callable[[], None]:
    """On SIGTERM or SIGINT turn readiness off, then run the server's handler; return the undo."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGTERM)):
        return lambda: None  # the program that embeds the gateway handles its signals
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def drain(number: int, frame: FrameType | None) -> None:
        if not services.lifecycle.serving:
            os._exit(0)  # no client is being served, and the imports may take longer than the drain time
        if not services.lifecycle.draining:
            services.lifecycle.drain()
            exit_after(services.settings.timings.drain_s + HARD_STOP_S)
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
