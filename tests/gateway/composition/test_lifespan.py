"""The start of a gateway, with and without its database, and its end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from gateway.app import app_parts, build
from gateway.catalog.build import load
from gateway.composition import lifespan
from gateway.composition.lifespan import Gateway, running
from gateway.composition.services import Services
from gateway.providers.providers import Upstream
from migrations.upgrade import upgrade
from tests.harness.postgres import PostgresServer
from tests.harness.processes import free_port


class NoUpstream(Upstream):
    async def start(self) -> None:
        pass


def made(folder: Path, database_url: str, environ: Mapping[str, str] | None = None) -> Gateway:
    path = folder / "gateway.yaml"
    path.write_text(
        "model_list: [{model_name: a, litellm_params: {model: openai/gpt-4o-mini}}]\n"
        f"general_settings: {{master_key: sk-Zt7qWc41LmVx9uRkPb2nHs8d, database_url: '{database_url}'}}\n"
    )
    settings, models = load(path, environ or {})
    return app_parts(build(settings, models, upstream=NoUpstream()))


@asynccontextmanager
async def started(parts: Gateway, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(lifespan, "RETRY_S", 0.02)
    async with running(parts), asyncio.timeout(60):
        yield


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110 - the start has no event
        await asyncio.sleep(0.01)


async def test_what_is_to_be_done_after_the_start_is_done_once_and_before_the_first_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(f"sqlite:///{tmp_path}/g.db")
    parts = made(tmp_path, "sqlite:///g.db")
    seen: list[bool] = []
    parts.on_started = lambda: seen.append(parts.services.lifecycle.started)
    async with started(parts, monkeypatch):
        await until(lambda: parts.services.lifecycle.started)
    assert seen == [False]


async def test_a_database_that_is_away_is_told_once_without_its_password_and_costs_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    parts = made(tmp_path, f"postgresql://app:s3cret%2Fword@127.0.0.1:{port}/ledger")
    tries: list[int] = []
    opened = lifespan._open_accounts

    async def counted(services: Services) -> None:
        tries.append(threading.active_count())
        await opened(services)

    monkeypatch.setattr(lifespan, "_open_accounts", counted)
    with caplog.at_level(logging.WARNING, "seqroute.app"):
        async with started(parts, monkeypatch):
            await until(lambda: len(tries) >= 12)
            assert not parts.services.lifecycle.started
    said = [record.getMessage() for record in caplog.records if record.name == "seqroute.app"]
    assert len(said) == 1, said
    assert f"postgresql://app@127.0.0.1:{port}/ledger cannot be reached" in said[0]
    assert "refused" in said[0]
    assert "general_settings.database_url" in said[0]
    assert "s3cret" not in said[0]
    assert max(tries) == tries[8] == tries[-1]  # the pool's four threads are there by then


async def test_a_database_that_is_not_migrated_is_told_with_the_command_and_served_from_when_it_is(
    tmp_path: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_server.url("postgres")
    parts = made(tmp_path, url)
    with caplog.at_level(logging.INFO, "seqroute.app"):
        async with started(parts, monkeypatch):
            await until(lambda: bool(caplog.records))
            assert not parts.services.lifecycle.started
            await asyncio.to_thread(upgrade, url)
            await until(lambda: parts.services.lifecycle.started)
    said = [record.getMessage() for record in caplog.records if record.name == "seqroute.app"]
    assert len(said) == 2, said
    assert f"seqroute migrate --config {tmp_path}/gateway.yaml" in said[0]
    assert said[1].startswith("ready: 1 models")


async def test_a_server_that_became_a_standby_is_not_ready_says_so_once_and_serves_open_tenants_meanwhile(
    tmp_path: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_server.url("postgres")
    upgrade(url)
    monkeypatch.setattr(lifespan, "POLICY_POLL_S", 0.02)
    parts = made(tmp_path, url, {"SEQROUTE_SWEEP_SECONDS": "0.1"})
    services = parts.services

    def become(mode: str) -> None:
        with psycopg.connect(url, autocommit=True) as operator:
            operator.execute(f"ALTER SYSTEM SET default_transaction_read_only = {mode}")
            operator.execute("SELECT pg_reload_conf()")

    with caplog.at_level(logging.INFO, "seqroute.app"):
        async with started(parts, monkeypatch):
            await until(lambda: services.lifecycle.ready)
            await asyncio.to_thread(become, "on")
            await until(lambda: not services.lifecycle.ready)
            assert services.outage.noticed
            await asyncio.to_thread(become, "off")
            await until(lambda: services.lifecycle.ready)
    said = [record.getMessage() for record in caplog.records if record.name == "seqroute.app"][1:]
    assert len(said) == 2, said
    assert "cannot be written to" in said[0]
    assert "primary" in said[0]
    assert said[1].endswith("answers again")


async def test_a_loop_that_fails_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifespan, "LOOP_PAUSE_S", 0.0)
    ran: list[int] = []

    async def failing() -> None:
        ran.append(1)
        if len(ran) < 3:
            raise ZeroDivisionError

    await lifespan._run_forever(failing)
    assert len(ran) == 3
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
