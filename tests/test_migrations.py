"""The migrations make exactly the tables that the code knows, on both databases, whoever runs them at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from gateway.clock import time_ordered_ids
from gateway.database.database import DatabaseStartError, transaction
from gateway.database.partitions import OTHER, is_partitioned, missing_months
from gateway.database.tables import metadata
from gateway.ledger.windows import next_reset_ms
from migrations.upgrade import LOCK_PAUSE_S, current_revision, downgrade, is_behind, newest_revision, upgrade
from tests.harness.postgres import PostgresServer

ROOT = Path(__file__).parents[1]


def test_the_migrated_schema_is_the_one_the_code_knows(database_url: str) -> None:
    with transaction(database_url) as connection:
        # SQLite stores a default as the text it was written in, which Alembic cannot always compare.
        defaults = connection.dialect.name == "postgresql"
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": defaults,
                "include_object": lambda _, name, kind, *__: kind != "table" or name in metadata.tables,
            },
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


def test_the_database_of_a_newer_version_stays_as_it_is(database_url: str) -> None:
    """On Postgres an older version can be put back in service beside it; an SQLite file has one user."""
    with transaction(database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        if connection.dialect.name == "postgresql":
            connection.execute(text("DROP FUNCTION seqroute_apply"))
    if database_url.startswith("sqlite"):
        with pytest.raises(DatabaseStartError, match="got 9999 of another version: use that version"):
            upgrade(database_url)
        return
    assert upgrade(database_url) == "9999"
    with transaction(database_url) as connection:
        made = connection.execute(text("SELECT count(*) FROM pg_proc WHERE proname = 'seqroute_apply'")).scalar_one()
        assert (made, current_revision(connection)) == (0, "9999")


def test_no_turn_waits_while_a_migration_waits_for_a_long_read_of_the_log(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    downgrade(postgres_url, "0033")
    paused: list[float] = []

    def pause(seconds: float) -> None:
        with transaction(postgres_url) as turn:  # would wait behind the migration
            turn.execute(text("SET LOCAL lock_timeout = 100"))
            turn.execute(DECISION, {"decision_id": f"dec_{len(paused)}"})
        paused.append(seconds)
        if len(paused) == 2:
            nightly.rollback()

    engine = create_engine(postgres_url)
    with engine.connect() as nightly:
        nightly.execute(text("SELECT count(*) FROM decisions"))
        assert upgrade(postgres_url, pause=pause) == newest_revision()
        assert paused == [LOCK_PAUSE_S] * 2
    downgrade(postgres_url, "0033")
    monkeypatch.setattr("migrations.upgrade.LOCK_TRIES", 1)
    with engine.connect() as nightly:
        nightly.execute(text("SELECT count(*) FROM decisions"))
        with pytest.raises(DatabaseStartError, match="a nightly run or a backup perhaps; nothing was changed"):
            upgrade(postgres_url, pause=lambda _: None)
    engine.dispose()


def test_a_database_of_the_first_revision_is_taken_over_with_its_rows(database_url: str) -> None:
    downgrade(database_url, "base")
    upgrade(database_url, "0008")
    with transaction(database_url) as connection:
        connection.execute(
            text("INSERT INTO sessions (tenant_id, session_id, created_at_ms, updated_at_ms) VALUES ('a', 's', 1, 1)")
        )
        entry = "INSERT INTO ledger_entries (kind, scope, amount_nanousd, tenant_id, created_at_ms)"
        connection.execute(text(f"{entry} VALUES ('grant', 'tenant', 7, 'a', 1)"))
    assert upgrade(database_url) == newest_revision()
    with transaction(database_url) as connection:
        assert connection.execute(text("SELECT state, own_limit, parent_session_id FROM sessions")).all() == [
            ("open", 1, None)
        ]
        assert connection.execute(text("SELECT kind, amount_nanousd FROM ledger_entries")).all() == [("grant", 7)]
        connection.execute(text("UPDATE sessions SET state = 'paused'"))


def test_decisions_made_before_the_partitions_stay_where_they_are(postgres_url: str) -> None:
    downgrade(postgres_url, "0029")
    new_id = time_ordered_ids(lambda: 1_700_000_000.0)
    early, odd = new_id("dec"), "dec_z"
    with transaction(postgres_url) as connection:
        assert not is_partitioned(connection)
        for name in (early, odd):
            connection.execute(DECISION, {"decision_id": name})
    upgrade(postgres_url)
    with transaction(postgres_url) as connection:
        found = connection.execute(text("SELECT decision_id, tableoid::regclass::text FROM decisions")).all()
        places = {row[0]: row[1] for row in found}
        assert places[odd] == OTHER
        assert places[early].startswith("decisions_through_")
        assert missing_months(connection, int(time.time() * 1000)) == []
        with pytest.raises(IntegrityError):
            connection.execute(DECISION, {"decision_id": early})
    downgrade(postgres_url, "0029")
    with transaction(postgres_url) as connection:
        assert set(connection.execute(text("SELECT decision_id FROM decisions")).scalars()) == {early, odd}


DECISION = text(
    "INSERT INTO decisions (decision_id, tenant_id, session_id, turn, requested_model, feature_version, features, "
    "candidate_features, candidates, lambda_per_usd, session_budget_nanousd, remaining_before_nanousd, model, action, "
    "propensity, uniform, policy_id, reason, reserved_nanousd, created_at_ms) "
    "VALUES (:decision_id, 't', 's', 0, 'auto', 1, '', '', '[]', 1, 1, 1, 'small', 0, 1, 0.5, 'rule', 'policy', 1, 1)"
)


@pytest.mark.parametrize(("revision", "commit"), [("0007", "7f86350"), ("0025", "e64c9b0")])
def test_an_unreleased_revision_is_refused_with_what_to_do(database_url: str, revision: str, commit: str) -> None:
    with transaction(database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    with pytest.raises(DatabaseStartError, match=f"found {revision}.*migrate` of commit {commit}"):
        upgrade(database_url)
    with transaction(database_url) as connection:
        assert is_behind(connection)


def test_a_database_without_a_column_is_refused_and_left_as_it_is(database_url: str) -> None:
    downgrade(database_url, "base")
    upgrade(database_url, "0008")
    with transaction(database_url) as connection:
        connection.execute(text("ALTER TABLE tenants DROP COLUMN store_text"))
    with pytest.raises(DatabaseStartError, match="found tenants without store_text"):
        upgrade(database_url)
    with transaction(database_url) as connection:
        assert current_revision(connection) == "0008"


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
