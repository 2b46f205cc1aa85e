"""Which attempt follows a failed one: where it goes, how long it waits, and when there is none."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config.values import Secret
from gateway.providers.errors import (
    CredentialFault,
    FailedFault,
    MessagesRefused,
    RejectedFault,
    ThrottledFault,
    UpstreamFault,
    fault_from_status,
)
from gateway.providers.reported_error import report_in
from gateway.turn.retry import (
    BUDGET_FLOOR,
    BUDGET_WINDOW_S,
    Failures,
    Next,
    RetryBudget,
    next_attempt,
    pause_s,
)
from tests.harness.models import deployment

ONE, TWO = deployment("one"), deployment("two")


def following(fault: UpstreamFault, healthy: list[Any], **more: Any) -> Next | None:
    facts: dict[str, Any] = {"retries": 0, "most_retries": 2, "left_s": 60.0, "uniform": lambda: 0.5}
    return next_attempt(fault, more.pop("failed", ONE), healthy, more.pop("refused", []), **facts | more)


def test_another_deployment_is_asked_at_once() -> None:
    assert following(FailedFault("x"), [ONE, TWO]) == Next((TWO,), 0.0)


def test_the_same_one_is_asked_after_a_pause_that_doubles_and_varies() -> None:
    pauses = [following(FailedFault("x"), [ONE], retries=n, most_retries=9) for n in range(6)]
    assert [found.pause_s for found in pauses if found] == [0.375, 0.75, 1.5, 3.0, 6.0, 6.0]
    assert pause_s(0, None, lambda: 0.0) == 0.25
    assert pause_s(0, None, lambda: 1.0) == 0.5


def test_a_provider_is_left_alone_for_as_long_as_it_asks() -> None:
    found = following(ThrottledFault("x", retry_after_s=2.0), [ONE])
    assert found is not None
    assert found.pause_s == 2.0
    # Longer than any pause of our own, and never cut: the provider would refuse again.
    assert following(ThrottledFault("x", retry_after_s=120.0), [ONE], left_s=121.0) == Next((ONE,), 120.0)


@pytest.mark.parametrize(
    ("fault", "more"),
    [
        (ThrottledFault("x", retry_after_s=30.0), {"left_s": 20.0}),
        (FailedFault("x"), {"retries": 2}),
        (FailedFault("x"), {"most_retries": 0}),
        (RejectedFault("x", status=400), {}),
        (FailedFault("x", retryable=False), {}),
    ],
)
def test_no_further_attempt_where_time_number_or_kind_forbid_it(fault: UpstreamFault, more: dict[str, Any]) -> None:
    assert following(fault, [ONE], **more) is None


def test_a_key_that_was_refused_is_not_tried_again_anywhere() -> None:
    own, same, other = (deployment(name, api_key=Secret(key)) for name, key in (("a", "k1"), ("b", "k1"), ("c", "k2")))
    failures = Failures(0.0)
    failures.note(own, CredentialFault("x", status=401))
    found = following(CredentialFault("x", status=401), [own, same, other], failed=own, refused=failures.refused)
    assert found == Next((other,), 0.0)
    failures.note(other, CredentialFault("x", status=402))
    assert following(CredentialFault("x"), [own, same, other], failed=other, refused=failures.refused) is None


def test_deployments_without_a_key_share_the_one_of_the_environment() -> None:
    failures = Failures(0.0)
    failures.note(ONE, CredentialFault("x", status=403))
    assert following(CredentialFault("x", status=403), [ONE, TWO], refused=failures.refused) is None


def test_money_that_is_gone_at_the_provider_is_not_asked_for_twice() -> None:
    reported = report_in(b'{"error": {"message": "x", "type": "insufficient_quota", "code": "insufficient_quota"}}')
    fault = fault_from_status(429, None, "", reported)
    failures = Failures(0.0)
    failures.note(ONE, fault)
    assert following(fault, [ONE], refused=failures.refused) is None
    answer = fault.answer()
    assert answer.as_body()["error"]["code"] == "insufficient_quota"
    assert answer.headers["x-should-retry"] == "false"


def test_further_attempts_are_a_tenth_of_the_load_and_never_fewer_than_a_few() -> None:
    now = [0.0]
    budget = RetryBudget(lambda: now[0])
    assert sum(budget.take() for _ in range(100)) == BUDGET_FLOOR
    for _ in range(1_000):
        budget.turn()
    assert sum(budget.take() for _ in range(1_000)) == 100 - BUDGET_FLOOR
    now[0] = BUDGET_WINDOW_S
    assert sum(budget.take() for _ in range(100)) == BUDGET_FLOOR


def test_a_fallback_begins_its_retries_at_the_first() -> None:
    failures = Failures(0.0)
    failures.note(ONE, FailedFault("x"))
    failures.note(ONE, FailedFault("x"))
    assert (failures.count, failures.on_model, failures.models) == (2, 2, [])
    failures.leave("small")
    assert (failures.count, failures.on_model, failures.models) == (2, 0, ["small"])


def test_what_was_refused_in_the_gateway_is_none_of_the_turn_s_calls() -> None:
    failures = Failures(0.0)
    failures.note(ONE, MessagesRefused("x", status=400))
    assert failures.count == 0
