"""Queries of the dashboard: pages that follow each other leave nothing out."""

from __future__ import annotations

import pytest
from sqlalchemy import insert

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
