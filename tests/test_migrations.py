"""The migrations make exactly the tables that the code knows, on both databases, whoever runs them at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import inspect, text

from gateway.database.database import transaction
from gateway.database.tables import metadata
from gateway.ledger.windows import next_reset_ms
from migrations.upgrade import current_revision, downgrade, newest_revision, upgrade
from tests.harness.postgres import PostgresServer

ROOT = Path(__file__).parents[1]


def test_the_migrated_schema_is_the_one_the_code_knows(database_url: str) -> None:
    with transaction(database_url) as connection:
        # SQLite stores a default as the text it was written in, which Alembic cannot always compare.
        defaults = connection.dialect.name == "postgresql"
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": defaults}
        )
        assert compare_metadata(context, metadata) == []
        assert current_revision(connection) == newest_revision()


def test_checks_and_partial_indexes_are_there_too(database_url: str) -> None:
    """What Alembic's comparison does not see: CHECK constraints by name, and unique partial indexes."""
    with transaction(database_url) as connection:
        inspector = inspect(connection)
        for table in metadata.tables.values():
            found = {check["name"] for check in inspector.get_check_constraints(table.name)}
            wanted = {str(check.name) for check in table.constraints if type(check).__name__ == "CheckConstraint"}
            assert wanted <= found, table.name
            indexes = {index["name"] for index in inspector.get_indexes(table.name)}
            assert {index.name for index in table.indexes} <= indexes, table.name


def test_migrating_twice_and_back_and_forth_ends_at_the_same_schema(database_url: str) -> None:
    assert upgrade(database_url) == newest_revision()
    downgrade(database_url, "base")
    with transaction(database_url) as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    assert upgrade(database_url) == newest_revision()


def test_a_new_sqlite_file_is_made_with_its_folder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a folder' / 'x%41?.db'}"
    assert upgrade(url) == newest_revision()
    assert (tmp_path / "a folder").is_dir()


@pytest.mark.parametrize("name", ["two words.db", "100%.db", "a#b.db", "bücher.db"])
def test_a_sqlite_file_may_have_spaces_signs_and_umlauts(tmp_path: Path, name: str) -> None:
    upgrade(f"sqlite:///{tmp_path / name}")
    assert (tmp_path / name).stat().st_size > 0


def test_three_replicas_may_migrate_an_empty_database_at_once(postgres_server: PostgresServer) -> None:
    url = postgres_server.url("postgres")
    program = "import sys; from migrations.upgrade import upgrade; print(upgrade(sys.argv[1]))"
    replicas = [
        subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(3)
    ]
    assert [replica.communicate()[0].strip() for replica in replicas] == [newest_revision()] * 3
    assert [replica.returncode for replica in replicas] == [0, 0, 0]


def test_the_database_function_knows_the_same_window_boundaries(postgres_url: str) -> None:
    with transaction(postgres_url) as connection:

        @given(st.integers(1, 9_999), st.sampled_from(["h", "d", "mo"]), st.integers(0, 4_000_000_000_000))
        def agree(many: int, unit: str, now_ms: int) -> None:
            window = f"{min(many, 120) if unit == 'mo' else many}{unit}"
            query = text("SELECT seqroute_next_reset(:window, :now)")
            assert connection.execute(query, {"window": window, "now": now_ms}).scalar_one() == next_reset_ms(
                window, now_ms
            )

        agree()
