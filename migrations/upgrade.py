"""Bring a database to the newest schema: `seqroute migrate`, and what `seqroute serve` does by itself on SQLite.

Several replicas may call it at once: on Postgres an advisory lock of the transaction lets one of them do the work.
The functions of `migrations/sql` are made as they are now after the last revision, so no revision carries their text; a
change of theirs that a running gateway would notice comes with a revision all the same.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gateway.database.database import transaction

HERE = Path(__file__).parent
FUNCTIONS = ("now_ms", "next_reset", "remember", "apply")
"""Files of `migrations/sql`, each after those it calls."""
PERCENT = "%"


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration, with the connection that `env.py` migrates through."""
    configuration = Config()
    configuration.set_main_option("script_location", str(HERE).replace(PERCENT, PERCENT * 2))
    configuration.attributes["connection"] = connection
    return configuration


def upgrade(url: str, revision: str = "head") -> str:
    """Run every migration up to `revision` in one transaction; answer the revision the database is at.

    Raises DatabaseStartError or the driver's error when the database cannot be opened.
    """
    with transaction(url) as connection:
        command.upgrade(configuration(connection), revision)
        if revision == "head":
            make_functions(connection)
        return current_revision(connection) or ""


def make_functions(connection: Connection) -> None:
    """Make Postgres' functions as the files of `migrations/sql` have them; SQLite needs none."""
    if connection.dialect.name != "postgresql":
        return
    for name in FUNCTIONS:
        # The driver must not look for parameters: PL/pgSQL has percent signs of its own.
        statement = (HERE / "sql" / f"{name}.sql").read_text()
        connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def downgrade(url: str, revision: str) -> None:
    """Undo migrations down to `revision` ("base": all of them). For development; data goes with the tables."""
    with transaction(url) as connection:
        command.downgrade(configuration(connection), revision)


def current_revision(connection: Connection) -> str | None:
    """The revision a database is at; None when it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """The revision this code expects."""
    head = ScriptDirectory.from_config(configuration()).get_current_head()
    assert head is not None
    return head


def is_behind(connection: Connection) -> bool:
    """Whether `upgrade` has anything to do. A revision that this code does not know is a newer version's."""
    found = current_revision(connection)
    script = ScriptDirectory.from_config(configuration())
    known = {revision.revision for revision in script.walk_revisions()}
    return found is None or (found in known and found != script.get_current_head())
