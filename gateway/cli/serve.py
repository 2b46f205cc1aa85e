"""Commands that run a gateway: serve, check-config, migrate, demo."""

from __future__ import annotations

import errno
import logging.config
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.console import (
    BAD_INPUT,
    BROKEN,
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    environment,
    first_line,
    say,
    show,
    show_one,
)
from gateway.logs import logging_config
from gateway.wording import counted

if TYPE_CHECKING:
    from gateway.catalog.models import Catalog
    from gateway.config.settings import Settings

WORKER_SILENCE_S = 60
"""An unresponsive worker is killed after this time. With uvicorn's default of five seconds a busy machine looks like a
hang: starting workers are killed repeatedly, and serving workers lose their streams."""
STARTUP_FAILURE = 3
"""uvicorn's exit code for an application that could not start."""
KEEP_ALIVE_S = 75
"""Longer than the idle time of common client pools, so that the client closes first and no request is lost."""


def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 4000,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; more than one needs Postgres.")] = 1,
    log_level: Annotated[str, typer.Option(help="critical, error, warning, info or debug.")] = "info",
    log_format: Annotated[
        str | None, typer.Option(help="text, or json: one object a line (default: general_settings.log_format).")
    ] = None,
) -> None:
    """Serve the gateway until SIGTERM or SIGINT; running turns finish first."""
    # Threads for a decision's small products cost more than they save, and compete with the event loop. Every worker
    # inherits this, and NumPy reads it when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from gateway.config.reader import SettingsError
    from gateway.config.settings import LOG_FORMATS

    if log_format not in (None, *LOG_FORMATS):
        raise CommandError(f'--log-format: expected text or json, got "{log_format[:40]}"')
    if log_level not in ("critical", "error", "warning", "info", "debug"):
        raise CommandError(f'--log-level: expected critical, error, warning, info or debug, got "{log_level[:40]}"')
    if threading.current_thread() is threading.main_thread():
        # No turn is running yet. An exception could be swallowed by an import or a destructor.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    log = _LogLines(log_level, log_format or environment().get("SEQROUTE_LOG_FORMAT") or LOG_FORMATS[0])
    try:
        _serve(config, host, port, workers, log, fixed=log_format is not None)
    except (CommandError, SettingsError) as error:
        if log.format != "json":
            raise
        found = error.problems if isinstance(error, SettingsError) else error.lines
        for line in found:
            log.logger.critical("%s", line)
        raise typer.Exit(BAD_INPUT if isinstance(error, SettingsError) else error.status) from error


class _LogLines:
    """How this process and its workers write log lines."""

    def __init__(self, level: str, log_format: str) -> None:
        self.level = level
        self.logger = logging.getLogger("seqroute.serve")
        self.use(log_format)

    def use(self, log_format: str) -> None:
        """Write lines in this format from now on."""
        self.format = log_format
        self.config = logging_config(self.level, log_format)
        logging.config.dictConfig(self.config)


def _serve(config: Path, host: str, port: int, workers: int, told: _LogLines, *, fixed: bool) -> None:
    from gateway.catalog.build import draft
    from gateway.config.master_key import with_stored_master_key
    from gateway.config.reader import SettingsError
    from gateway.routing.text_space import text_space

    read = draft(config, environment())
    settings, catalog = read.settings, read.catalog
    if not fixed:
        told.use(settings.general.log_format)
    if read.problems:
        raise SettingsError(read.problems)
    text_space(settings.policy.text)  # what is missing stops the start here, not in each worker
    log = told.logger
    on_sqlite = settings.general.database_url.reveal().startswith("sqlite:")
    if workers > 1 and on_sqlite:
        raise CommandError(
            f"--workers: expected 1 on SQLite, got {workers}: one process serves a SQLite file; "
            "set general_settings.database_url to a Postgres database for more"
        )
    with _bound(host, port) as listener:
        if on_sqlite:
            _check_alone(settings)
        at = f"{host}:{listener.getsockname()[1]}"
        log.info("seqroute %s starts: %s on http://%s, ready in a few seconds", version("seqroute"), config, at)
        for warning in (*settings.warnings, *catalog.warnings):
            log.warning("%s", warning)
        keyed = with_stored_master_key(settings)
        if keyed.made and keyed.file is not None:
            log.info("a master key for this gateway was created and written to %s", keyed.file)
        if on_sqlite:
            _upgrade(settings.general.database_url.reveal(), log.info)
        os.environ["SEQROUTE_CONFIG"] = str(settings.path)
        _run(settings, listener, workers, told)


def _bound(host: str, port: int) -> socket.socket:
    """Bind the port before the slow imports; it listens once the gateway can answer."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.set_inheritable(True)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        what = "in use by another process" if error.errno == errno.EADDRINUSE else first_line(error.strerror or error)
        raise CommandError(
            f"--host, --port: expected a free address, got {host}:{port}: {what}; stop it or choose another --port",
            status=BROKEN,
        ) from error
    return listener


def _check_alone(settings: Settings) -> None:
    """Raise when another process serves from this SQLite file, before any migration."""
    from gateway.database.database import DatabaseStartError, parse_url, sqlite_path
    from gateway.database.sqlite_connection import FileLock

    path = Path(sqlite_path(parse_url(settings.general.database_url.reveal())))
    if not path.parent.exists():
        return
    lock = FileLock(str(path))
    try:
        lock.acquire()
    except (DatabaseStartError, OSError) as error:
        raise CommandError(f"database: {first_line(error)}", status=BROKEN) from error
    lock.release()


def _run(settings: Settings, listener: socket.socket, workers: int, log: _LogLines) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from gateway.api.server import BoundedHttp
    from gateway.composition.lifespan import CONNECTIONS_END_SHARE

    config = uvicorn.Config(
        "gateway.app:from_environment",
        factory=True,
        workers=workers,
        log_level=log.level,
        log_config=log.config,
        access_log=False,
        lifespan="on",
        ws="none",
        http=BoundedHttp,
        timeout_keep_alive=KEEP_ALIVE_S,
        # Otherwise uvicorn waits forever for the last stream.
        timeout_graceful_shutdown=max(1, math.ceil(settings.timings.drain_s * CONNECTIONS_END_SHARE)),
        timeout_worker_healthcheck=WORKER_SILENCE_S,
        server_header=False,
        proxy_headers=False,
    )
    try:
        if workers > 1:
            Multiprocess(config, sockets=[listener]).run()
            return
        config.load()
        # uvicorn finishes running requests and then raises the signal again: a requested stop is a success.
        signal.signal(signal.SIGTERM, _stopped)
        uvicorn.Server(config).run(sockets=[listener])
    except SystemExit as ended:
        if ended.code != STARTUP_FAILURE:
            raise
        raise typer.Exit(BROKEN) from ended
    except OSError as error:
        raise CommandError(f"the server cannot listen: {first_line(error)}", status=BROKEN) from error


def _stopped(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def check_config(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List every problem of the configuration with its key path; exit 2 if there are any."""
    from gateway.catalog.build import load
    from gateway.routing.text_space import text_space

    settings, catalog = load(config, environment())
    text_space(settings.policy.text)
    for warning in (*settings.warnings, *catalog.warnings, *_lost_defaults(catalog)):
        say(f"warning: {warning}")
    rows = []
    for model in catalog.models.values():
        rates = model.prices.at(0)
        rows.append(
            {
                "model": model.name,
                "input_usd_per_mtok": rates.input_femtousd / 1e9,
                "output_usd_per_mtok": rates.output_femtousd / 1e9,
                "cached_usd_per_mtok": rates.cached_input_femtousd / 1e9,
                "quality_prior": model.quality_prior,
                "max_input_tokens": model.max_input_tokens,
                "max_output_tokens": model.max_output_tokens,
                "mode": model.mode,
                "deployments": len(model.deployments),
                "efforts": [level.effort for level in model.efforts],
                "capabilities": sorted(model.possible_capabilities),
            }
        )
    show(rows, list(rows[0]) if rows else [], as_json=as_json, empty="no models")
    say(f"{config}: valid, {counted(len(catalog.models), 'model')}, catalogue {catalog.digest[:12]}")


def _lost_defaults(catalog: Catalog) -> Iterator[str]:
    """Warnings about parameters in `litellm_params` that LiteLLM does not write into the provider's requests."""
    having = [
        (model, deployment)
        for model in catalog.models.values()
        for deployment in model.deployments
        if model.mode == "chat" and deployment.request_defaults
    ]
    if not having:
        return  # what follows takes seconds
    from gateway.providers.errors import CallRefused
    from gateway.providers.providers import Call, Upstream

    upstream = Upstream()
    for model, deployment in having:
        options = {name: value.reveal() for name, value in deployment.provider_params.items()}
        call = Call(
            deployment.litellm_model,
            (),
            api_base=deployment.api_base,
            api_key="k",
            defaults=deployment.request_defaults,
            allowed_params=deployment.allowed_params,
            dropped_params=deployment.dropped_params,
            drop_params=True,
            options=options,
            base_model=deployment.base_model,
            service_tiers=deployment.prices.tier_names,
        )
        try:
            lost = sorted(upstream.lost_defaults(call))
        except CallRefused as refused:
            yield f'"{model.name}": requests to {deployment.litellm_model[:120]} cannot be made: {refused.message}'
            continue
        if lost:
            yield (
                f'"{model.name}": litellm_params.{", litellm_params.".join(lost)}: not sent: LiteLLM does not write '
                f"{'it' if len(lost) == 1 else 'them'} into requests to {deployment.litellm_model[:120]}"
            )


def migrate(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Upgrade the database to the newest schema. Safe to repeat and to run concurrently."""
    from gateway.config.load import read_database_url
    from migrations.upgrade import newest_revision

    revision = _upgrade(read_database_url(config, environment()).reveal())
    if as_json:
        show_one({"revision": revision}, as_json=True)
    else:
        newer = "" if revision == newest_revision() else ", of a newer version: nothing was changed"
        print(f"the database is at revision {revision}{newer}")


def _upgrade(url: str, tell: Callable[[str], None] = say) -> str:
    from alembic.util.exc import CommandError as AlembicError
    from sqlalchemy.exc import DBAPIError

    from gateway.database.database import DatabaseStartError
    from migrations.upgrade import upgrade

    if url.startswith("sqlite:///"):
        folder = Path(url.removeprefix("sqlite:///")).parent
        if not folder.exists():
            folder.mkdir(parents=True)
            tell(f"created the folder {folder} for the database")
    try:
        return upgrade(url)
    except DatabaseStartError as error:
        raise CommandError(f"database: {error}", status=BROKEN) from error
    except AlembicError as error:
        raise CommandError(f"database: {first_line(error)}", status=BROKEN) from error
    except DBAPIError as error:
        raise CommandError(f"database: {type(error.orig).__name__}: {first_line(error.orig)}", status=BROKEN) from error


def demo(context: typer.Context) -> None:
    """Play sessions against a simulated provider, train on them, and play again."""
    finished = subprocess.run([sys.executable, "-m", "demo.play", *context.args], check=False)
    raise typer.Exit(finished.returncode)


def demo_provider(context: typer.Context) -> None:
    """Serve the simulated provider of the shipped gateway.yaml."""
    finished = subprocess.run([sys.executable, "-m", "demo.provider", *context.args], check=False)
    raise typer.Exit(finished.returncode)
