"""Schema upgrades, for `seqroute migrate` and the start of `seqroute serve` on SQLite.

Several replicas may call it at once: on Postgres an advisory lock lets one of them do the work. The functions of
`migrations/sql` are replaced after the last revision, so no revision contains their text; a change that a running
gateway would notice still needs a revision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError

from gateway.database.database import DatabaseStartError, dialect_of, parse_url, sqlite_path, transaction
from gateway.database.partitions import Month, make_partition, missing_months
from gateway.database.tables import metadata

HERE = Path(__file__).parent
FUNCTIONS = ("now_ms", "next_reset", "remember", "limits", "free", "move_above", "budget_header", "apply")
"""Files of `migrations/sql`, each after the ones it calls."""
LAST_WITH_REVISION = {f"{number:04d}": "7f86350" for number in range(1, 8)} | {
    f"{number:04d}": "e64c9b0" for number in (9, *range(20, 26))
}
"""Revisions before the first release that became part of 0008 and 0026: the last commit that upgrades them."""
PERCENT = "%"
LOCK_TIMEOUT_MS = 1_000
"""Less than a turn waits for a lock."""
LOCK_TRIES = 60
LOCK_PAUSE_S = 5.0
LOCK_STATES = ("55P03", "40P01")
"""SQLSTATE of a lock that was not granted in time, and of a deadlock."""
T = TypeVar("T")


class NotMigrated(DatabaseStartError):
    """The database has not the tables of this code; the message says what to run."""


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration, with the connection for `env.py`."""
    configuration = Config()
    configuration.set_main_option("script_location", str(HERE).replace(PERCENT, PERCENT * 2))
    configuration.attributes["connection"] = connection
    return configuration


def upgrade(url: str, revision: str = "head", *, pause: Callable[[float], None] = time.sleep) -> str:
    """Run every migration up to `revision` in one transaction; return the database's revision.

    The log's partitions are made after it, each in a transaction of its own. On Postgres a newer version's database
    stays as it is, so that an older version can be put back in service. Nothing waits long for a lock: every turn would
    wait behind it. So a transaction that meets a long read of the log is repeated after a pause.
    Raises DatabaseStartError when the database cannot be taken over, with nothing changed; or the driver's error when
    it cannot be opened.
    """
    reached, missing = _repeated(lambda: _upgraded(url, revision), pause)
    for month in missing:
        _repeated(partial(_make_partition, url, month), pause)
    return reached


def _upgraded(url: str, revision: str) -> tuple[str, list[Month]]:
    missing: list[Month] = []
    with transaction(url) as connection:
        found = current_revision(connection) or ""
        if found in LAST_WITH_REVISION:
            raise DatabaseStartError(
                f"expected revision 0008, 0026 or later, found {found}, which was never released: "
                f"run `seqroute migrate` of commit {LAST_WITH_REVISION[found]} on it first"
            )
        if found and found not in revisions():
            expect_migrated(connection)
            return found, missing
        command.upgrade(configuration(connection), revision)
        if revision == "head":
            check_tables(connection)
            create_functions(connection)
            missing = missing_months(connection, int(time.time() * 1000))
        return current_revision(connection) or "", missing


def _make_partition(url: str, month: Month) -> None:
    with transaction(url) as connection:
        limit_waits(connection)
        make_partition(connection, month)


def limit_waits(connection: Connection) -> None:
    """Let no statement of this Postgres transaction wait long for a lock."""
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": f"{LOCK_TIMEOUT_MS}"})


def _repeated(work: Callable[[], T], pause: Callable[[float], None]) -> T:
    for _ in range(LOCK_TRIES):
        try:
            return work()
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in LOCK_STATES:
                raise
        pause(LOCK_PAUSE_S)
    raise DatabaseStartError(
        "another transaction uses the tables for long, a nightly run or a backup perhaps; nothing was changed: "
        "run `seqroute migrate` again after it"
    )


def expect_file(url: str) -> None:
    """Raise NotMigrated for an SQLite file that is not there: opening it would make one."""
    parsed = parse_url(url)
    path = "" if dialect_of(parsed) == "postgresql" else sqlite_path(parsed)
    if path and not Path(path).exists():
        raise NotMigrated(f"{Path(path).name} does not exist yet: run `seqroute migrate` or `seqroute serve`")


def check_tables(connection: Connection) -> None:
    """Raise DatabaseStartError for a table or column that the database lacks."""
    inspector = inspect(connection)
    for table in metadata.sorted_tables:
        found = (
            {column["name"] for column in inspector.get_columns(table.name)} if inspector.has_table(table.name) else {}
        )
        if missing := [column.name for column in table.columns if column.name not in found]:
            raise DatabaseStartError(
                f"expected the tables of revision {current_revision(connection)}, found {table.name} without "
                f"{', '.join(missing)}: restore the database from a backup, or migrate an empty one"
            )


def create_functions(connection: Connection) -> None:
    """Create or replace the Postgres functions of `migrations/sql`; SQLite needs none."""
    if connection.dialect.name != "postgresql":
        return
    for name in FUNCTIONS:
        # The driver must not interpret percent signs, which PL/pgSQL uses.
        statement = (HERE / "sql" / f"{name}.sql").read_text()
        connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def downgrade(url: str, revision: str) -> None:
    """Undo migrations down to `revision` ("base": all). For development: data is dropped too."""
    with transaction(url) as connection:
        command.downgrade(configuration(connection), revision)


def current_revision(connection: Connection) -> str | None:
    """The database's revision; None when it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


@cache
def revisions() -> tuple[str, ...]:
    """The revisions that this code knows, the newest first."""
    script = ScriptDirectory.from_config(configuration())
    return tuple(revision.revision for revision in script.walk_revisions())


def newest_revision() -> str:
    """The revision that this code expects."""
    return revisions()[0]


def is_behind(connection: Connection) -> bool:
    """True when `upgrade` has work to do; False for the unknown revision of a newer version."""
    found = current_revision(connection)
    return found is None or found in LAST_WITH_REVISION or found in revisions()[1:]


def expect_migrated(connection: Connection) -> None:
    """Raise NotMigrated unless this code can use the database.

    On Postgres a newer version's database is used as it is: during a rolling upgrade both versions run.
    """
    found, expected = current_revision(connection), newest_revision()
    if is_behind(connection):
        raise NotMigrated(f"expected revision {expected}, got {found or 'an empty database'}: run `seqroute migrate`")
    if found != expected and connection.dialect.name != "postgresql":
        raise NotMigrated(f"expected revision {expected}, got {found} of another version: use that version")
