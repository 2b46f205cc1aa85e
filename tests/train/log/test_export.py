"""The log as Parquet: the same episodes as from the database, whole files only, and goes on where it stopped."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer

from gateway.config.settings import RetentionSettings
from gateway.database import tables
from gateway.database.database import transaction
from tests.train.log.test_episodes import EXPLORING, read
from tests.train.synthetic import NOW_MS, START_MS, write_log
from train.__main__ import run_command
from train.config import LogConfig, TrainConfig
from train.log import export as exporting
from train.log.archive import ArchiveError, archive_at
from train.log.episodes import Episodes
from train.log.export import Export, ExportError, export
from train.log.read import LogReport, read_episodes
from train.log.retention import Retention, retain
from train.log.source import LogError, ParquetLog, Row, rows

HOUR_MS = 3_600_000
FIRST_DAY = datetime.fromtimestamp(START_MS / 1000, UTC).date()


def a_log(url: str, sessions: int = 12) -> None:
    """Sessions of two tenants whose turns are ten hours apart: nearly every one lies in the files of several days."""
    with transaction(url) as connection:
        write_log(connection, EXPLORING, sessions, seed=1, tenant_of=lambda i: ("ten_b", "Ten-C", "ten_a")[i % 3])
        d = tables.decisions
        connection.execute(sa.update(d).values(created_at_ms=d.c.created_at_ms - 10 * HOUR_MS * (5 - d.c.turn)))
        connection.execute(
            sa.update(d).where(d.c.turn == 2).values(status="failed", request_text="secret", origin="judge")
        )


def parquet(folder: Path, config: TrainConfig = TrainConfig()) -> tuple[Episodes, LogReport]:  # noqa: B008
    return read_episodes(ParquetLog(folder), config, now_ms=NOW_MS)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(where: Path | str, column: str) -> list[Row]:
    archive = archive_at(where)
    return [row for name in archive.files("decisions") for row in rows(archive, name, (column,))]


@pytest.mark.parametrize("most", [100, 7])
def test_the_episodes_are_the_same_from_the_database_and_from_parquet(
    tmp_path: Path, database_url: str, most: int
) -> None:
    a_log(database_url)
    done = export(Export(database_url, tmp_path / "out", NOW_MS))
    assert len(done["written"]["decisions"]) > 1
    config = TrainConfig(log=LogConfig(max_sessions=most))
    (exported, counted), (episodes, report) = parquet(tmp_path / "out", config), read(database_url, config)
    assert exported.digest() == episodes.digest()
    assert counted == report
    assert report.excluded["judge"] > 0
    assert episodes.sessions == min(most, 12)


def test_files_of_a_version_without_a_column_are_read(tmp_path: Path, sqlite_url: str) -> None:
    """Days older than the database keeps stand in files alone, which no export writes again."""
    a_log(sqlite_url)
    export(Export(sqlite_url, tmp_path / "log", NOW_MS))
    for file in (tmp_path / "log" / "decisions").rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["root_session_id"]), file)
    found, report = parquet(tmp_path / "log")
    assert report == read(sqlite_url)[1]
    assert found.root_ids == found.session_ids


def test_a_day_is_written_again_until_its_bills_have_come_to_rest(tmp_path: Path, sqlite_url: str) -> None:
    a_log(sqlite_url)
    job = Export(sqlite_url, tmp_path / "out", NOW_MS)
    first = export(job)
    assert first["final_already"] == 0
    assert set(first["written"]["decisions"]) == {"2025-10-07", "2025-10-08", "2025-10-09"}
    again = export(job)  # it is the 10th, 8:53: the 8th ended more than a day ago
    assert set(again["written"]["decisions"]) == set(again["written"]["feedback"]) == {"2025-10-09"}
    later = replace(job, now_ms=NOW_MS + 3 * 86_400_000)
    export(later)
    before = files(tmp_path / "out")
    done = export(later)
    assert done["written"] == {"decisions": {}, "feedback": {}}
    assert done["final_already"] == len(before)
    assert files(tmp_path / "out") == before


def test_a_killed_export_leaves_no_half_day_and_the_next_one_ends_it(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_log(sqlite_url)
    job = Export(sqlite_url, tmp_path / "out", NOW_MS + 5 * 86_400_000)

    class Dies(pq.ParquetWriter):
        written = 0

        def write_batch(self, *args: object, **options: object) -> None:
            Dies.written += 1
            if Dies.written == 2:
                raise KeyboardInterrupt
            super().write_batch(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pq, "ParquetWriter", Dies)
    with pytest.raises(KeyboardInterrupt):
        export(job)
    monkeypatch.undo()
    whole = files(tmp_path / "out")
    assert len(whole) == 1
    done = export(job)
    assert done["final_already"] == 1
    assert files(tmp_path / "out").items() >= whole.items()
    assert parquet(tmp_path / "out")[0].digest() == read(sqlite_url)[0].digest()


def test_one_tenant_from_a_day_on_and_no_words_unless_asked_for(tmp_path: Path, sqlite_url: str) -> None:
    a_log(sqlite_url)
    since = FIRST_DAY - timedelta(days=1)
    job = Export(sqlite_url, tmp_path / "out", NOW_MS, since=since, tenant_id="ten_a")
    export(job)
    found = stored(tmp_path / "out", "tenant_id")
    assert found
    assert {row["tenant_id"] for row in found} == {"ten_a"}
    days = {path.name.removeprefix("date=") for path in (tmp_path / "out" / "decisions").iterdir()}
    assert min(days) >= since.isoformat()
    names = {name for file in (tmp_path / "out").rglob("*.parquet") for name in pq.read_schema(file).names}
    assert not names & exporting.TEXT_COLUMNS
    export(Export(sqlite_url, tmp_path / "words", NOW_MS, with_text=True))
    assert {row["request_text"] for row in stored(tmp_path / "words", "request_text")} == {"secret", None}


def test_a_folder_that_holds_another_export_is_refused(tmp_path: Path, sqlite_url: str) -> None:
    a_log(sqlite_url, 3)
    job = Export(sqlite_url, tmp_path / "out", NOW_MS)
    export(job)
    with pytest.raises(ExportError, match="name another folder"):
        export(replace(job, tenant_id="ten_a"))
    file = next((tmp_path / "out" / "decisions").rglob("*.parquet"))
    file.write_bytes(b"PAR1")
    with pytest.raises(ExportError, match="expected a file of an export"):
        export(job)
    with pytest.raises(LogError, match="expected a Parquet file"):
        stored(tmp_path / "out", "tenant_id")
    with pytest.raises(LogError, match='with "decisions" in it'):
        ParquetLog(tmp_path)


def test_an_export_holds_a_batch_of_rows_and_never_the_day(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_log(sqlite_url)
    monkeypatch.setattr(exporting, "ROWS_AT_ONCE", 3)
    export(Export(sqlite_url, tmp_path / "out", NOW_MS))
    groups = [
        meta.row_group(i).num_rows
        for file in (tmp_path / "out").glob("decisions/*/*")
        for meta in [pq.read_metadata(file)]
        for i in range(meta.num_row_groups)
    ]
    assert max(groups) == 3
    assert sum(groups) == read(sqlite_url)[0].turns + read(sqlite_url)[1].excluded["judge"]


def test_the_command_says_what_it_wrote_and_an_unknown_tenant_is_one_line(
    tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a_log(sqlite_url, 3)
    config = tmp_path / "gateway.yaml"
    config.write_text(json.dumps({"general_settings": {"database_url": sqlite_url}}))
    arguments = ["export", "--config", str(config), "--out", str(tmp_path / "out"), "--since", "2020-01-01"]
    assert run_command(arguments) == 0
    assert "rows of" in capsys.readouterr().out
    assert date.fromisoformat(min(p.name for p in (tmp_path / "out" / "decisions").iterdir())[5:]) < FIRST_DAY
    assert run_command([*arguments, "--tenant", "unknown"]) == 2
    assert capsys.readouterr().err == 'seqroute-train: --tenant: expected a name or an id, found no tenant "unknown"\n'
    assert run_command(["export"], program="seqroute") == 2
    assert capsys.readouterr().err == "seqroute: Missing option '--out'.\n"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3-compatible server, with a bucket; its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    httpx.put(f"{address}/logs").raise_for_status()
    yield address
    server.stop()


@pytest.fixture
def with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.usefixtures("with_keys")
def test_storage_over_s3_holds_the_same_log_and_goes_on_where_it_stopped(
    tmp_path: Path, sqlite_url: str, s3: str
) -> None:
    a_log(sqlite_url)
    where = f"s3://logs/some/prefix?endpoint={s3}"
    first = export(Export(sqlite_url, where, NOW_MS))
    assert len(first["written"]["decisions"]) > 1
    exported, _ = read_episodes(ParquetLog(where), TrainConfig(), now_ms=NOW_MS)
    assert exported.digest() == read(sqlite_url)[0].digest()
    later = export(Export(sqlite_url, where, NOW_MS + 3 * 24 * HOUR_MS))
    assert export(Export(sqlite_url, where, NOW_MS + 4 * 24 * HOUR_MS))["final_already"] >= sum(
        map(len, later["written"].values())
    )
    # The retention reads the same archive before it removes anything; that one has no texts.
    with transaction(sqlite_url) as connection:
        connection.execute(sa.update(tables.decisions).values(request_text=None))
    kept = RetentionSettings(decisions_s=7 * 86_400.0, archive=where)
    done = retain(Retention(sqlite_url, kept, NOW_MS + 30 * 24 * HOUR_MS))
    assert done["deleted_rows"]["decisions"] == len(stored(where, "tenant_id"))
    again, _ = read_episodes(ParquetLog(where), TrainConfig(), now_ms=NOW_MS)
    assert again.digest() == exported.digest()


@pytest.mark.usefixtures("with_keys")
def test_an_upload_that_is_interrupted_leaves_nothing(
    tmp_path: Path, sqlite_url: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"s3://logs/interrupted?endpoint={s3}"
    written = tmp_path / "written"
    written.write_bytes(b"x" * 3000)

    class Interrupted(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            if self.tell():
                raise KeyboardInterrupt
            return super().read(1000)

    interrupted = Interrupted(written.read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_: interrupted)
        with pytest.raises(KeyboardInterrupt):
            archive_at(where).keep(written, "decisions/date=2026-11-24/part-0.parquet")
    assert "part-0" not in httpx.get(f"{s3}/logs?prefix=interrupted").text
    archive_at(where).keep(written, "decisions/date=2026-11-24/part-0.parquet")
    with archive_at(where).open("decisions/date=2026-11-24/part-0.parquet") as stored_file:
        assert stored_file.read() == b"x" * 3000
    assert httpx.get(f"{s3}/logs?prefix=interrupted").text.count("part-0") == 1


@pytest.mark.usefixtures("with_keys")
def test_a_bucket_that_is_not_there_is_told_without_a_secret(
    tmp_path: Path, sqlite_url: str, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a_log(sqlite_url, 3)
    config = tmp_path / "gateway.yaml"
    config.write_text(f"general_settings: {{database_url: '{sqlite_url}'}}\n")
    where = f"s3://nowhere/x?endpoint={s3}"
    assert run_command(["export", "--out", where, "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "s3://nowhere/x" in said
    assert "secret" not in said
    with pytest.raises(LogError, match='with "decisions" in it'):
        ParquetLog(where)
    with pytest.raises(ArchiveError, match="cannot be written"):
        export(Export(sqlite_url, where, NOW_MS))
