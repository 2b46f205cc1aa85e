"""What a turn can spend, and the words of a 402."""

from __future__ import annotations

import pytest

from gateway.errors import SessionBudgetExceeded, TenantBudgetExceeded
from gateway.headers import TurnReport
from gateway.operations import Balance, Resolved, SessionTerms
from gateway.scene import exhausted, settled
from tests.gateway.turns import bound, scene, session_row


def test_a_first_turn_can_spend_the_default_budget() -> None:
    assert scene(terms=SessionTerms(default_nanousd=70)).left_nanousd == 70


def test_the_header_s_ceiling_counts_before_the_session_s_own_and_what_is_spent_and_reserved_comes_off() -> None:
    row = session_row(Balance(granted_nanousd=100, reserved_nanousd=10, spent_nanousd=20))
    assert scene(row=row).left_nanousd == 70
    raised = scene(row=row, terms=SessionTerms(default_nanousd=1, ceiling_nanousd=500))
    assert (raised.budget_nanousd, raised.left_nanousd) == (500, 470)


def test_a_ceiling_below_what_is_spent_leaves_nothing_and_never_less() -> None:
    row = session_row(Balance(100, 10, 20))
    assert scene(row=row, terms=SessionTerms(default_nanousd=1, ceiling_nanousd=5)).left_nanousd == 0


def test_the_tenant_s_purse_binds_too() -> None:
    assert scene(tenant=Balance(50, 20, 10)).left_nanousd == 20
    assert scene(tenant=Balance(50, 20, 60, overage_nanousd=30)).left_nanousd == 0


def test_a_402_names_the_account_that_binds_what_is_left_and_what_is_needed() -> None:
    error = exhausted(scene(terms=SessionTerms(default_nanousd=1_500)), 1_500, 32_000, contended=False)
    assert isinstance(error, SessionBudgetExceeded)
    assert error.headers == {"x-should-retry": "false"}
    assert error.details == {
        "session_id": "s", "remaining_nano_usd": 1_500, "remaining_usd": "0.0000015", "needed_nano_usd": 32_000,
        "needed_usd": "0.000032",
    }  # fmt: skip
    assert "X-Session-Budget-USD" in error.message
    poor_tenant = exhausted(scene(tenant=Balance(10, 0, 0)), 10, 32_000, contended=True)
    assert isinstance(poor_tenant, TenantBudgetExceeded)
    assert poor_tenant.headers == {"x-should-retry": "false", "Retry-After": "1"}
    assert "operator" in poor_tenant.message


def test_a_report_takes_over_the_balances_of_its_settlement() -> None:
    report = bound().report()
    spent = Balance(100, 0, 7)
    told = settled(report, Resolved("settle", 0, spent, spent))
    assert isinstance(told, TurnReport)
    assert told.as_headers()["x-seqroute-session-spent-usd"] == "0.000000007"
    assert settled(report, None) is report


@pytest.mark.parametrize("left", [1_000_000_000, 5_000_000])
def test_what_is_reported_as_reserved_is_what_is_held(left: int) -> None:
    turn = bound(left_nanousd=left)
    assert turn.report().reserved_nanousd == turn.choice.estimate.hold_nanousd == turn.session.reserved_nanousd
