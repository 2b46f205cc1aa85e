"""The gateway's own headers: what a client may ask of a turn is checked by name, what it is told is exact."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.ledger.types import Balance
from gateway.turn.headers import TurnHeaders, TurnReport, read_turn_headers

REPORT: dict[str, Any] = {
    "decision_id": "dec_1", "session_id": "s", "model": "small", "policy_id": "rule:resolving", "reason": "policy",
    "reserved_nanousd": 1_500_000, "max_tokens": None,
}  # fmt: skip


def test_a_turn_without_headers_asks_for_nothing() -> None:
    assert read_turn_headers({}) == TurnHeaders(None, None, False, None, None)


def test_every_header_of_a_turn_is_read() -> None:
    asked = read_turn_headers(
        {
            "x-session-budget-usd": "0.25",
            "x-session-expected-turns": "12",
            "x-session-end": "True",
            "x-route-lambda": "0.5",
            "idempotency-key": "order 66",
            "x-parent-session-id": "lead",
        }
    )
    assert asked == TurnHeaders(250_000_000, 12, True, 0.5, "order 66", parent_session_id="lead", parent_required=True)
    assert not read_turn_headers({"x-codex-parent-thread-id": "lead"}).parent_required


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Session-Budget-USD", "-0.01"),
        ("X-Session-Budget-USD", "NaN"),
        ("X-Session-Budget-USD", "Infinity"),
        ("X-Session-Budget-USD", "1e400"),
        ("X-Session-Budget-USD", "ten"),
        ("X-Session-Budget-USD", ""),
        ("X-Session-Budget-USD", "9" * 65),
        ("X-Session-Expected-Turns", "0"),
        ("X-Session-Expected-Turns", "-3"),
        ("X-Session-Expected-Turns", "2.5"),
        ("X-Session-Expected-Turns", "10001"),
        ("X-Session-Expected-Turns", "9" * 5000),
        ("X-Session-Expected-Turns", "٣"),
        ("X-Session-End", "maybe"),
        ("X-Session-End", ""),
        ("X-Route-Lambda", "-1"),
        ("X-Route-Lambda", "nan"),
        ("X-Route-Lambda", "inf"),
        ("X-Route-Lambda", "1e10"),
        ("X-Route-Lambda", "cheap"),
        ("X-Route-Lambda", "0" * 33),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "k" * 256),
        ("Idempotency-Key", "schlüssel"),
        ("Idempotency-Key", "a\tb"),
    ],
)
def test_a_bad_header_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_turn_headers({name.lower(): value})
    assert refused.value.param == name
    assert name in refused.value.message
    assert len(refused.value.message) < 300


@given(
    st.dictionaries(
        st.sampled_from(["x-session-budget-usd", "x-session-expected-turns", "x-session-end", "x-route-lambda"]),
        st.text(alphabet=st.characters(max_codepoint=255), max_size=40),
    )
)
def test_whatever_a_header_holds_it_is_read_within_bounds_or_refused(headers: dict[str, str]) -> None:
    try:
        asked = read_turn_headers(headers)
    except InvalidRequest:
        return
    assert asked.session_budget_nanousd is None or asked.session_budget_nanousd >= 0
    assert asked.expected_turns is None or 1 <= asked.expected_turns <= 10_000
    assert asked.lambda_per_usd is None or 0.0 <= asked.lambda_per_usd <= 1e9


@pytest.mark.parametrize("value", ["false", "0", "FALSE"])
def test_an_end_that_is_denied_keeps_the_session_open(value: str) -> None:
    assert not read_turn_headers({"x-session-end": value}).end_session


def test_a_report_before_the_bill_tells_the_hold_and_the_balances_of_the_reservation() -> None:
    session, tenant = Balance(1_000_000_000, 1_500_000, 0), Balance(5_000_000_000, 1_500_000, 1)
    headers = TurnReport(**REPORT, session=session, tenant=tenant).as_headers()
    assert headers == {
        "x-seqroute-decision-id": "dec_1",
        "x-seqroute-session-id": "s",
        "x-seqroute-model": "small",
        "x-seqroute-policy": "rule:resolving",
        "x-seqroute-reason": "policy",
        "x-seqroute-reserved-usd": "0.0015",
        "x-seqroute-session-spent-usd": "0",
        "x-seqroute-session-remaining-usd": "0.9985",
        "x-seqroute-tenant-remaining-usd": "4.998499999",
    }


def test_a_report_with_the_bill_carries_it_as_integer_and_as_decimal() -> None:
    report = TurnReport(**(REPORT | {"max_tokens": 77}), cost_nanousd=250, usage_source="estimated").as_object()
    assert report["cost_nano_usd"] == 250
    assert report["cost_usd"] == "0.00000025"
    assert report["usage_source"] == "estimated"
    assert report["max_tokens"] == 77
    assert "session_spent_usd" not in report


def test_a_name_that_no_header_can_carry_is_percent_encoded_and_others_stay_as_they_are() -> None:
    def header_of(model: str) -> str:
        return TurnReport(**REPORT | {"model": model}).as_headers()["x-seqroute-model"]

    assert header_of("深度求索/deepseek-chat") == "%E6%B7%B1%E5%BA%A6%E6%B1%82%E7%B4%A2/deepseek-chat"
    assert header_of("Café-modèle") == "Café-modèle"
    assert header_of("100%-small") == "100%-small"
    assert header_of("a\r\nx: b") == "a%0D%0Ax%3A%20b"


@given(st.text(), st.text())
def test_no_name_makes_headers_that_cannot_be_sent(model: str, session_id: str) -> None:
    headers = TurnReport(**REPORT | {"model": model, "session_id": session_id}).as_headers()
    for value in headers.values():
        assert value.encode("latin-1").isascii() or value.isprintable()
        assert not set(value) & set("\r\n\0")


@pytest.mark.parametrize(
    ("name", "field", "on", "off"),
    [
        ("x-wrap-up", "wrap_up", True, False),
        ("x-route-explore", "explore", True, False),
        ("x-session-end", "end_session", True, False),
        ("x-budget-visible", "budget_visible", "note", None),
    ],
)
def test_every_switch_takes_both_forms(name: str, field: str, on: object, off: object) -> None:
    for value in ("on", "true", "On", "TRUE", "1"):
        assert getattr(read_turn_headers({name: value}), field) == on
    for value in ("off", "false", "0"):
        assert getattr(read_turn_headers({name: value}), field) == off
    with pytest.raises(InvalidRequest, match="expected true or on, false or off"):
        read_turn_headers({name: "yes"})
