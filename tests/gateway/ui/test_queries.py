"""Queries of the dashboard: pages leave nothing out, and a search reads an index, whatever it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text

from gateway.database.database import transaction
from gateway.database.tables import sessions, tenants
from gateway.ui import queries


def test_pages_of_sessions_leave_out_none_that_were_used_at_the_same_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PAGE_ROWS", 2)
    used = [("a", "s1", 5), ("a", "s2", 7), ("a", "s3", 7), ("b", "s1", 7), ("b", "s2", 7), ("b", "s3", 9)]
    with transaction(database_url) as connection:
        for tenant_id in ("a", "b"):
            connection.execute(insert(tenants).values(tenant_id=tenant_id, name=tenant_id, created_at_ms=0))
        connection.execute(
            insert(sessions),
            [{"tenant_id": t, "session_id": s, "created_at_ms": 0, "updated_at_ms": ms} for t, s, ms in used],
        )
        found: list[tuple[str, str]] = []
        after: tuple[int, str, str] | None = None
        while page := queries.find_sessions(connection, tenant_id=None, after=after):
            found += [(row["tenant_id"], row["session_id"]) for row in page]
            after = page[-1]["updated_at_ms"], page[-1]["tenant_id"], page[-1]["session_id"]
    assert found == [("b", "s3"), ("a", "s2"), ("a", "s3"), ("b", "s1"), ("b", "s2"), ("a", "s1")]


def test_a_search_for_sessions_reads_an_index_by_id_or_by_use(database_url: str) -> None:
    with transaction(database_url) as connection:
        _make_sessions(connection, 20_000)
    with transaction(database_url, read_only=True) as connection:
        assert "sessions_by_id" in _plan(connection, "s_00123")
        assert "sessions_by_use" in _plan(connection, "s_")
        assert {row["session_id"] for row in _search(connection, "s_0012")} >= {"s_00129", "s_00128"}
        assert _search(connection, "s_00123")[0]["session_id"] == "s_00123"
        assert [row["tenant_id"] for row in _search(connection, "second")] == ["b"] * queries.PAGE_ROWS
        assert _search(connection, "S_00123") == _search(connection, "s%") == _search(connection, "s?00*") == []


def test_a_sign_of_a_pattern_in_a_search_stands_for_itself(database_url: str) -> None:
    names = ["a*b", "a?b", "a[b]", "a%b", "a_b", "a\\b"]
    with transaction(database_url) as connection:
        connection.execute(
            insert(sessions),
            [{"tenant_id": "a", "session_id": name, "created_at_ms": 0, "updated_at_ms": 0} for name in names],
        )
        for name in names:
            assert [row["session_id"] for row in _search(connection, name)] == [name]


def _make_sessions(connection: Connection, many: int) -> None:
    for tenant_id, name in (("a", "first"), ("b", "second")):
        connection.execute(insert(tenants).values(tenant_id=tenant_id, name=name, created_at_ms=0))
    rows = [("b" if number % 100 == 0 else "a", number) for number in range(many)]
    connection.execute(
        insert(sessions),
        [
            {"tenant_id": tenant_id, "session_id": f"s_{number:05d}", "created_at_ms": 0, "updated_at_ms": number}
            for tenant_id, number in rows
        ],
    )
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE sessions"))


def _search(connection: Connection, search: str) -> list[Mapping[str, Any]]:
    return queries.find_sessions(connection, tenant_id=None, search=search)


def _plan(connection: Connection, search: str) -> str:
    """How the database finds the page of this search."""
    seen: list[tuple[str, Any]] = []

    def note(*call: Any) -> None:
        seen.append((call[2], call[3]))

    event.listen(connection, "before_cursor_execute", note)
    _search(connection, search)
    event.remove(connection, "before_cursor_execute", note)
    statement, parameters = seen[-1]
    explain = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
    return "\n".join(str(row) for row in connection.exec_driver_sql(explain + statement, parameters))
