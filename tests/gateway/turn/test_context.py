"""What a turn can spend, and the words of a 402."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.catalog.cost import estimated
from gateway.errors import RateLimited, SessionBudgetExceeded, TenantBudgetExceeded
from gateway.ledger.types import AccountKind, Balance, Refused, Resolved, SessionTerms
from gateway.turn.exhausted import exhausted
from gateway.turn.funds import AvailableFunds, Shortage
from tests.gateway.turn.turns import attempt, context, session_row


def test_a_first_turn_can_spend_the_default_budget() -> None:
    assert context(terms=SessionTerms(default_nanousd=70)).funds.left_nanousd == 70


def test_the_header_s_ceiling_counts_before_the_session_s_own_and_what_is_spent_and_reserved_comes_off() -> None:
    row = session_row(Balance(granted_nanousd=100, reserved_nanousd=10, spent_nanousd=20))
    assert context(row=row).funds.left_nanousd == 70
    raised = context(row=row, terms=SessionTerms(default_nanousd=1, ceiling_nanousd=500))
    assert (raised.budget_nanousd, raised.funds.left_nanousd) == (500, 470)


def test_a_ceiling_below_what_is_spent_leaves_nothing_and_never_less() -> None:
    row = session_row(Balance(100, 10, 20))
    assert context(row=row, terms=SessionTerms(default_nanousd=1, ceiling_nanousd=5)).funds.left_nanousd == 0


def test_the_tenant_s_budget_binds_too() -> None:
    assert context(tenant=Balance(50, 20, 10)).funds.left_nanousd == 20
    assert context(tenant=Balance(50, 20, 60, overage_nanousd=30)).funds.left_nanousd == 0


def test_a_402_names_the_account_that_binds_what_is_left_and_what_is_needed() -> None:
    error = exhausted(context(), Shortage(AvailableFunds(1_500, "session", 1_500), 32_000, held=False))
    assert isinstance(error, SessionBudgetExceeded)
    assert error.headers == {"x-should-retry": "false"}
    assert error.details == {
        "session_id": "s", "remaining_nano_usd": 1_500, "remaining_usd": "0.0000015", "needed_nano_usd": 32_000,
        "needed_usd": "0.000032", "stop_reason": "budget_reached", "spend_control": {"reached": True},
    }  # fmt: skip
    too_low = exhausted(context(), Shortage(AvailableFunds(1_500, "request", 1_500), 32_000, held=False))
    assert "stop_reason" not in too_low.details
    assert "X-Session-Budget-USD" in error.message
    poor_tenant = exhausted(context(), Shortage(AvailableFunds(10, "tenant", 20), 32_000, held=False))
    assert isinstance(poor_tenant, TenantBudgetExceeded)
    assert poor_tenant.headers == {"x-should-retry": "false"}
    assert "operator" in poor_tenant.message


def test_money_that_others_only_hold_is_worth_asking_again_for() -> None:
    error = exhausted(context(), Shortage(AvailableFunds(1_500, "session", 51_500), 32_000, held=True))
    assert isinstance(error, RateLimited)
    assert (error.status, error.code, error.headers) == (429, "rate_limited", {"Retry-After": "1"})
    assert "other turns hold 0.00005 USD" in error.message
    assert error.details["remaining_nano_usd"] == 1_500


def test_an_account_below_zero_is_told_as_it_is_and_spends_nothing() -> None:
    funds = context(row=session_row(Balance(1_000_000_000, 0, 1_250_000_000, overage_nanousd=250_000_000))).funds
    assert (funds.left_nanousd, funds.account) == (0, "session")
    error = exhausted(context(), Shortage(funds, 0, held=False))
    assert "the session's budget has -0.25 USD left" in error.message
    assert error.details["remaining_nano_usd"] == -250_000_000
    refused = Refused("tenant", Balance(50, 20, 60, overage_nanousd=30), pending=False)
    after = AvailableFunds(1, "session", 1).after(refused)
    assert (after.left_nanousd, after.remainder_nanousd) == (0, -30)


def test_what_is_kept_for_the_last_answer_makes_no_account_negative() -> None:
    row = session_row(Balance(1_000, 0, 400))
    embedding = replace(context(row=row), kept_nanousd=900)
    funds = embedding.funds
    assert (funds.remainder_nanousd, funds.unspent_nanousd, funds.overdrawn_nanousd) == (0, 0, 0)
    error = exhausted(embedding, Shortage(funds, 32_000, held=False))
    assert isinstance(error, SessionBudgetExceeded)
    assert (error.details["remaining_nano_usd"], error.details["spend_control"]) == (0, {"reached": False})
    spent = replace(context(row=session_row(Balance(1_000, 0, 1_000))), kept_nanousd=900)
    assert exhausted(spent, Shortage(spent.funds, 32_000, held=False)).details["spend_control"] == {"reached": True}


def test_a_key_s_own_budget_is_the_operator_s_to_raise() -> None:
    error = exhausted(context(), Shortage(AvailableFunds(10, "key", 10), 32_000, held=False))
    assert isinstance(error, TenantBudgetExceeded)
    assert "the key's budget has 0.00000001 USD left" in error.message


@pytest.mark.parametrize(
    ("tenant", "account", "contended"),
    [
        (Balance(50, 0, 0), "tenant", False),
        (Balance(70, 0, 0), "session", False),
        (Balance(70, 20, 0), "tenant", True),
        (Balance(900, 20, 0), "session", False),
    ],
)
def test_the_account_with_the_least_left_binds_and_only_holds_on_that_one_contend(
    tenant: Balance, account: AccountKind, contended: bool
) -> None:
    found = context(tenant=tenant, terms=SessionTerms(default_nanousd=70)).funds
    assert (found.account, found.contended) == (account, contended)


def test_a_refusal_lowers_the_funds_to_what_it_found_and_never_raises_it() -> None:
    funds = AvailableFunds(70, "session", 90)
    assert funds.after(Refused("key", Balance(50, 0, 20), pending=False)) == AvailableFunds(30, "key", 30)
    assert funds.after(Refused("key", Balance(50, 15, 20), pending=True)) == AvailableFunds(15, "key", 30)
    assert funds.after(Refused("tenant", Balance(90, 20, 0), pending=True)) == funds
    assert funds.after(Refused("tenant", Balance(5, 0, 9), pending=False)).left_nanousd == 0
    assert funds.undisturbed() == AvailableFunds(90, "session", 90)


def test_a_report_takes_over_the_balances_of_its_settlement() -> None:
    bill, spent = estimated(7), Balance(100, 0, 7)
    told = attempt().report(bill, Resolved("settle", 0, spent, spent))
    assert told.as_headers()["x-seqroute-session-spent-usd"] == "0.000000007"
    assert attempt().report(bill).session is None  # the ledger is still posting it


@pytest.mark.parametrize("left", [1_000_000_000, 5_000_000])
def test_what_is_reported_as_reserved_is_what_is_held(left: int) -> None:
    turn = attempt(left_nanousd=left)
    assert turn.report().reserved_nanousd == turn.choice.estimate.hold_nanousd == turn.session.reserved_nanousd
