"""A long history is read once in a while, a short one every time."""

from __future__ import annotations

from typing import Any, cast

import pytest
from sqlalchemy import Connection

from gateway.decisions import forecasts, session_forecast
from gateway.decisions.forecasts import KEPT_MS, LONG_TURNS, MAX_KEPT, SessionForecasts
from gateway.decisions.session_forecast import PastTurn

NONE = cast(Any, None)


def history(turns: int) -> dict[str, list[PastTurn]]:
    return {"s": [PastTurn(1, ())] * turns}


@pytest.mark.parametrize(("turns", "reads"), [(LONG_TURNS, 3), (LONG_TURNS + 1, 2)])
def test_a_long_history_is_kept_for_a_minute(monkeypatch: pytest.MonkeyPatch, turns: int, reads: int) -> None:
    read: list[str] = []

    def past_sessions(connection: Connection, tenant_id: str, *, idle_before_ms: int) -> dict[str, list[PastTurn]]:
        read.append(tenant_id)
        return history(turns)

    monkeypatch.setattr(session_forecast, "past_sessions", past_sessions)
    made = SessionForecasts(configuration=NONE, database=NONE, clock=NONE, lambda_presets=dict)
    for at_ms in (0, KEPT_MS - 1, KEPT_MS):
        assert made._past(NONE, "a", at_ms, 0) == history(turns)
    assert len(read) == reads
    for number in range(3 * MAX_KEPT):
        made._past(NONE, f"t{number}", 0, 0)
    assert len(made._kept) <= forecasts.MAX_KEPT
