"""Shared options of the commands, and the settings, tenants and dates they name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from datetime import date as calendar_date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from train.errors import InputError, kind_of

if TYPE_CHECKING:
    from gateway.config.reader import AssumedEnvironment
    from gateway.config.settings import Settings
    from policy.text import TextSpace
    from train.config import TrainConfig

BAD_INPUT = 2
"""Exit status of a command that cannot run as it was asked."""
BROKEN = 1
"""Exit status where the database, a file or a folder cannot be used."""
FOR_CALLS = re.compile(
    r"model_list\[\d+]\.litellm_params\.(?!model$)|credential_list\[|environment_variables\."
    r"|general_settings\.(master_key$|webhooks\[|jwt\.)"
)
"""Key paths of what only a gateway uses: keys and addresses of providers, and its own secrets."""
Config = Annotated[Path, typer.Option("--config", envvar="SEQROUTE_CONFIG", help="The gateway's gateway.yaml.")]
Training = Annotated[Path | None, typer.Option("--training", help="YAML with training settings; see docs/training.md.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed of the split and the fit (default 0).")]
LogFolder = Annotated[
    str | None,
    typer.Option("--log", metavar="DIR", help="Read this export, a folder or s3://..., instead of the database's log."),
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Use this replay folder instead of a gateway's log.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


class InvalidOption(InputError):
    """An invalid command line."""


def training_environment() -> AssumedEnvironment:
    """The environment, where variables that no training command uses may be unset."""
    from gateway.config.reader import AssumedEnvironment

    return AssumedEnvironment(os.environ, FOR_CALLS)


def gateway_settings(path: Path) -> Settings:
    """Read the gateway's configuration, without the providers' keys. Raises InvalidOption."""
    from gateway.config.load import load_settings
    from gateway.config.reader import SettingsError

    try:
        return load_settings(path, training_environment())
    except SettingsError as error:
        raise InvalidOption("\n".join(error.problems)) from error


def text_of(settings: Settings) -> TextSpace:
    """The text space of the gateway's configuration. Raises InvalidOption."""
    from gateway.config.reader import SettingsError
    from gateway.routing.text_space import text_space

    try:
        return text_space(settings.policy.text)
    except SettingsError as error:
        raise InvalidOption("\n".join(error.problems)) from error


def database_url(path: Path) -> str:
    """URL of a migrated database, the only setting read: an export needs no providers' keys."""
    from gateway.config.load import read_database_url
    from gateway.config.reader import SettingsError

    try:
        return migrated(read_database_url(path, training_environment()).reveal())
    except SettingsError as error:
        raise InvalidOption("\n".join(error.problems)) from error


def database_of(settings: Settings) -> str:
    """URL of the gateway's database. Raises InvalidOption unless it is migrated."""
    return migrated(settings.general.database_url.reveal())


def migrated(url: str) -> str:
    """The URL of a database with the tables of this code. Raises InvalidOption for another one."""
    from gateway.database.database import transaction
    from migrations.upgrade import NotMigrated, expect_file, expect_migrated

    try:
        expect_file(url)
        with transaction(url, read_only=True) as connection:
            expect_migrated(connection)
    except NotMigrated as error:
        raise InvalidOption(f"database: {error}") from error
    return url


def training_settings(path: Path | None, seed: int | None, data: Path | None = None) -> TrainConfig:
    """Read the training settings, or the defaults (for a replay folder the quick preset's)."""
    import yaml

    from train.config import ConfigError, from_mapping

    if path is None and data is not None:
        from train.replay.grid import quick

        return replace(quick().training, seed=seed or 0)
    values: object = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise InvalidOption(f"{path}: expected a readable file: {error.strerror}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidOption(f"{path}: expected YAML in UTF-8") from error
    if not isinstance(values, Mapping):
        raise InvalidOption(f"{path}: expected a mapping, got {kind_of(values)}")
    try:
        return from_mapping(values, seed)
    except ConfigError as error:
        raise InvalidOption(f"{path}: {error}") from error


def run_date(text: str | None, option: str = "--date") -> str:
    """Validate a date; the default is today, UTC. Raises InvalidOption."""
    if text is None:
        return datetime.now(UTC).date().isoformat()
    try:
        return calendar_date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise InvalidOption(f'{option}: expected YYYY-MM-DD, got "{text}"') from error


def tenant_named(url: str, name: str) -> str:
    """Id of the tenant with this name or id. Raises InvalidOption."""
    from gateway.accounts import tenants
    from gateway.database.database import transaction

    with transaction(url, read_only=True) as connection:
        found = tenants.find_tenant(connection, name) or tenants.find_tenant_by_name(connection, name)
    if found is None:
        raise InvalidOption(f'--tenant: expected a name or an id, found no tenant "{name}"')
    return found.tenant_id


def now_ms() -> int:
    """Unix time in milliseconds."""
    return int(datetime.now(UTC).timestamp() * 1000)


def show(report: Mapping[str, Any], as_json: bool) -> None:
    """Print a report, as text or as JSON."""
    if as_json:
        print(json.dumps(report, indent=1, sort_keys=True))
        return
    from train.nightly.text_report import describe

    for line in describe(report):
        print(line)


def database_errors() -> tuple[type[Exception], ...]:
    """Errors of an unusable database, imported only when an error is handled."""
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.database.sqlite_connection import DatabaseStartError

    return SQLAlchemyError, DatabaseStartError


def problem_of(error: Exception) -> str:
    """First line of a database error, because the next ones may quote statements and values."""
    from gateway.database.sqlite_connection import DatabaseStartError

    cause = getattr(error, "orig", None) or error
    kind = "" if isinstance(error, DatabaseStartError) else f"{type(cause).__name__}: "
    return f"database: {kind}{' '.join((str(cause).strip().splitlines() or [''])[0].split())[:300]}"
