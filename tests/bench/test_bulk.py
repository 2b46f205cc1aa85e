"""The made-up past is lawful: what reads it finds what it would find in production."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from bench.rig import filled_database as bulk
from gateway.database.database import transaction
from gateway.database.tables import decisions, ledger_entries, sessions, tenants
from gateway.ledger.audit import audit


def filled(url: str, wanted: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(bulk, "BATCH_SESSIONS", 100)
    return list(bulk.fill(url, wanted, vector_bytes=8))


def check(url: str) -> None:
    """1,999 decisions are 250 sessions of eight; a grant for each and for each of 100 tenants, two entries a turn."""
    with transaction(url, read_only=True) as connection:
        assert audit(connection, now_ms=bulk.PAST_MS, grace_ms=0) == []
        tables = (tenants, sessions, decisions, ledger_entries)
        counts = [connection.scalar(select(func.count()).select_from(table)) for table in tables]
        assert counts == [100, 250, 2_000, 4_350]
        spent = select(tenants.c.spent_nanousd).where(tenants.c.tenant_id == "default")
        assert connection.scalar(spent) == 3 * 8 * 1_000
        last = connection.execute(select(sessions.c.last_decision_id).order_by(sessions.c.session_id).limit(1)).scalar()
        assert last == "dec_" + "7".rjust(26, "0")


def test_a_made_up_past_breaks_no_law(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled(database_url, 1_999, monkeypatch) == [800, 1_600, 2_000]
    check(database_url)
