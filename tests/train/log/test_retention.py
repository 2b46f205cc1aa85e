"""Retention: old decisions go, money stays, and nothing goes that the archive has not for good."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from gateway.config.settings import RetentionSettings
from gateway.database import tables
from gateway.database.database import transaction
from gateway.database.partitions import Month, make_partition, partitions
from gateway.ledger.audit import audit
from tests.train.log.test_episodes import EXPLORING
from tests.train.synthetic import NOW_MS, START_MS, write_log
from train.__main__ import run_command
from train.log import retention as subject
from train.log.archive import ArchiveError, archive_at
from train.log.export import Export, ExportError, export
from train.log.retention import Retention, RetentionError, retain

DAY_MS = 86_400_000
KEPT = RetentionSettings(decisions_s=30 * 86_400.0)


def counts(url: str) -> dict[str, int]:
    with transaction(url, read_only=True) as connection:
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (tables.decisions, tables.feedback, tables.sessions, tables.holds, tables.ledger_entries)
        }


def a_log(url: str) -> int:
    """Write sessions with money behind them; returns their decisions."""
    with transaction(url) as connection:
        write_log(connection, EXPLORING, 12, seed=1)
        d = tables.decisions.c
        connection.execute(sa.update(tables.decisions).values(created_at_ms=d.created_at_ms + DAY_MS * d.turn))
        for row in connection.execute(sa.select(d.decision_id, d.tenant_id, d.session_id, d.created_at_ms)).all():
            connection.execute(sa.insert(tables.holds).values(
                hold_id=f"hold_{row.decision_id}", tenant_id=row.tenant_id, session_id=row.session_id,
                decision_id=row.decision_id, attempt_id=f"att_{row.decision_id}",
                model="small", amount_nanousd=1, state="released",
                dispatched=0, checkpoint_nanousd=0, posted_nanousd=0, late=0, expires_at_ms=row.created_at_ms,
                created_at_ms=row.created_at_ms, resolved_at_ms=row.created_at_ms,
            ))  # fmt: skip
    return counts(url)["decisions"]


def missing_decisions(url: str) -> list[str]:
    with transaction(url, read_only=True) as connection:
        found = audit(connection, now_ms=NOW_MS, grace_ms=0)
        return [violation.subject for violation in found if violation.invariant == "hold: belongs to a logged decision"]


def test_old_decisions_go_and_the_money_stays(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setattr(subject, "DELETE_ROWS", 7)
    written, before = a_log(database_url), counts(database_url)
    pauses = list[float]()
    later = Retention(database_url, KEPT, START_MS + 32 * DAY_MS, pauses.append)
    with transaction(database_url, read_only=True) as connection:
        d = tables.decisions.c
        cutoff = datetime.fromtimestamp(START_MS / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        cutoff_ms = int(cutoff.timestamp() * 1000) + 2 * DAY_MS
        old = connection.execute(sa.select(sa.func.count()).where(d.created_at_ms < cutoff_ms)).scalar_one()
    assert 0 < old < written
    done = retain(later)
    assert (done["kept_since_ms"], done["deleted_rows"]["decisions"]) == (cutoff_ms, old)
    assert len(pauses) >= old // 7  # turns have the database after each batch
    after = counts(database_url)
    assert after["decisions"] == written - old
    assert {name: after[name] for name in ("sessions", "holds", "ledger_entries")} == {
        name: before[name] for name in ("sessions", "holds", "ledger_entries")
    }
    assert missing_decisions(database_url) == []  # their decisions were removed, not lost
    assert retain(later)["deleted_rows"]["decisions"] == 0


def test_a_decision_that_is_lost_is_still_found_by_the_audit(sqlite_url: str) -> None:
    a_log(sqlite_url)
    retain(Retention(sqlite_url, KEPT, START_MS + 31 * DAY_MS))
    with transaction(sqlite_url) as connection:
        d = tables.decisions.c
        lost = connection.execute(sa.select(d.decision_id).order_by(d.created_at_ms.desc()).limit(1)).scalar_one()
        connection.execute(sa.delete(tables.decisions).where(d.decision_id == lost))
    assert missing_decisions(sqlite_url) == [f"hold_{lost}"]


def test_a_month_goes_with_its_partition_unless_a_call_in_it_is_under_way(postgres_url: str) -> None:
    month = Month(2040, 1)
    with transaction(postgres_url) as connection:
        make_partition(connection, month)
        write_log(connection, EXPLORING, 4, seed=1)
        d = tables.decisions.c
        moved = {"decision_id": sa.literal(month.first_id) + d.decision_id, "created_at_ms": month.start_ms}
        connection.execute(sa.update(tables.decisions).values(moved))
        one = sa.select(sa.func.min(d.decision_id)).scalar_subquery()
        connection.execute(sa.update(tables.decisions).where(d.decision_id == one).values(status="pending"))
        connection.execute(sa.update(tables.feedback).values(created_at_ms=month.start_ms + 1))
    pauses: list[float] = []
    job = Retention(postgres_url, KEPT, Month(2040, 4).start_ms, pauses.append)
    scores = counts(postgres_url)["feedback"]
    assert scores > 0
    done = retain(job)
    assert ("decisions_2040_01" in done["dropped_partitions"], done["left_partitions"]) == (False, [])
    assert counts(postgres_url)["feedback"] == scores  # no earlier than the decisions
    with transaction(postgres_url) as connection:
        connection.execute(sa.update(tables.decisions).values(status="failed"))
    with transaction(postgres_url) as using:
        using.execute(sa.select(tables.decisions.c.decision_id)).all()
        done = retain(job)
    assert (done["dropped_partitions"], done["left_partitions"]) == ([], ["decisions_2040_01"])
    assert len(pauses) == subject.DROP_TRIES - 1
    assert retain(job)["dropped_partitions"] == ["decisions_2040_01"]
    with transaction(postgres_url) as connection:
        assert month not in {found.month for found in partitions(connection)}
    assert (counts(postgres_url)["decisions"], counts(postgres_url)["feedback"]) == (0, 0)


def test_a_second_run_at_the_same_time_removes_nothing(postgres_url: str) -> None:
    written = a_log(postgres_url)
    with transaction(postgres_url) as other:
        other.execute(sa.text(f"SELECT pg_advisory_xact_lock({subject.LOCK_KEY})"))
        with pytest.raises(RetentionError, match="another run"):
            retain(Retention(postgres_url, KEPT, START_MS + 90 * DAY_MS))
    assert counts(postgres_url)["decisions"] == written


def test_a_decision_of_the_last_day_removed_may_have_a_later_hold(sqlite_url: str) -> None:
    a_log(sqlite_url)
    h = tables.holds.c
    with transaction(sqlite_url) as connection:
        one = connection.execute(sa.select(tables.holds).order_by(h.created_at_ms).limit(1)).mappings().one()
        again = dict(one) | {"hold_id": "hold_again", "attempt_id": "att_again", "created_at_ms": NOW_MS + 9 * DAY_MS}
        connection.execute(sa.insert(tables.holds).values(again))
    retain(Retention(sqlite_url, KEPT, START_MS + 32 * DAY_MS))
    assert missing_decisions(sqlite_url) == []


def test_a_day_stays_while_the_archive_lacks_a_row_or_is_another_databases(tmp_path: Path, sqlite_url: str) -> None:
    written = a_log(sqlite_url)
    job = Retention(sqlite_url, replace(KEPT, archive=str(tmp_path / "archive")), START_MS + 90 * DAY_MS)
    export(Export(sqlite_url, tmp_path / "archive", job.now_ms))
    with transaction(sqlite_url) as connection:
        d = tables.decisions.c
        connection.execute(sa.update(tables.decisions).values(decision_id=sa.literal("other_") + d.decision_id))
    done = retain(job)
    assert "lacks" in done["kept_because"]
    assert counts(sqlite_url)["decisions"] == written


@pytest.mark.parametrize(("table", "column"), [(tables.decisions, "response_text"), (tables.feedback, "comment")])
def test_a_day_with_texts_stays_unless_the_archive_has_them(
    tmp_path: Path, sqlite_url: str, table: sa.Table, column: str
) -> None:
    a_log(sqlite_url)
    with transaction(sqlite_url) as connection:
        connection.execute(sa.update(table).values({column: "a text"}))
    before = counts(sqlite_url)[table.name]
    settings = replace(KEPT, archive=str(tmp_path / "without"))
    done = retain(Retention(sqlite_url, settings, START_MS + 90 * DAY_MS))
    assert "archive_texts" in done["kept_because"]
    assert counts(sqlite_url)[table.name] == before
    settings = replace(KEPT, archive=str(tmp_path / "with"), archive_texts=True)
    done = retain(Retention(sqlite_url, settings, START_MS + 90 * DAY_MS))
    assert "kept_because" not in done
    assert counts(sqlite_url)[table.name] == 0
    [first, *_] = sorted((tmp_path / "with" / table.name).glob("*/*.parquet"))
    assert pq.read_table(first).column(column)[0].as_py() == "a text"


def test_what_is_not_archived_for_good_stays(tmp_path: Path, sqlite_url: str) -> None:
    written = a_log(sqlite_url)
    archive = tmp_path / "archive"
    settings = replace(KEPT, archive=str(archive))
    done = retain(Retention(sqlite_url, settings, START_MS + 32 * DAY_MS))
    assert done["archived_rows"]["decisions"] == written
    assert done["deleted_rows"]["decisions"] > 0
    stored = sum(pq.read_metadata(path).num_rows for path in archive.glob("decisions/*/*.parquet"))
    assert stored == written
    # A day that the archive holds only in part, or a foreign file in its place, stops the removal.
    other = tmp_path / "other"
    left = counts(sqlite_url)["decisions"]
    day = sorted(path.name for path in (archive / "decisions").iterdir())[-1]
    (other / "decisions" / day).mkdir(parents=True)
    (other / "decisions" / day / "part-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(ExportError, match="expected a file of an export"):
        retain(Retention(sqlite_url, replace(KEPT, archive=str(other)), START_MS + 90 * DAY_MS))
    assert counts(sqlite_url)["decisions"] == left


def test_an_archive_without_an_age_removes_nothing(tmp_path: Path, sqlite_url: str) -> None:
    written = a_log(sqlite_url)
    done = retain(Retention(sqlite_url, RetentionSettings(archive=str(tmp_path / "a")), START_MS + 900 * DAY_MS))
    assert (done["archived_rows"]["decisions"], counts(sqlite_url)["decisions"]) == (written, written)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("s3://key:secret@bucket/x", "keys come from the environment"), ("s3:///x", "expected s3://bucket/prefix"),
        ("s3://bucket/x?acl=public", "expected s3://bucket/prefix"), ("ftp://host/x", "expected a folder or s3://"),
        ("s3://bucket/x?endpoint=127.0.0.1:9", "expected http"),
    ],
)  # fmt: skip
def test_an_impossible_place_is_refused_without_its_secrets(where: str, says: str) -> None:
    with pytest.raises(ArchiveError, match=says) as raised:
        archive_at(where, {})
    assert "secret" not in str(raised.value)


def test_the_command_says_what_it_did_or_what_is_missing(
    tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a_log(sqlite_url)
    prices = "{input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}"
    model = f"  - {{model_name: small, litellm_params: {{model: openai/s}}, model_info: {prices}}}"
    general = f"general_settings: {{database_url: '{sqlite_url}'"
    config = tmp_path / "gateway.yaml"
    config.write_text(f"model_list:\n{model}\n{general}}}\n")
    assert run_command(["retain", "--config", str(config)]) == 2
    assert "general_settings.retention" in capsys.readouterr().err
    config.write_text(f"model_list:\n{model}\n{general}, retention: {{decisions: 30d, archive: kept}}}}\n")
    assert run_command(["retain", "--config", str(config), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["deleted_rows"]["decisions"] > 0
    assert list((tmp_path / "kept" / "decisions").iterdir())
    config.write_text(config.read_text().replace(sqlite_url, "postgresql://user:hidden@127.0.0.1:1/none"))
    assert run_command(["retain", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("seqroute-train: database: ")
    assert (said.count("\n"), "hidden" in said) == (1, False)
