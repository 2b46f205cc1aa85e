"""Where the money of a call comes to rest: the bill of the deployment that answered, checkpoints that cover a crash."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from starlette.responses import Response

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.cost import Settlement
from gateway.catalog.tokens import TokenCounter
from gateway.catalog.usage import PartialUsage, Usage
from gateway.config.settings import RateQuota, RouterSettings
from gateway.errors import LedgerUnavailable
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Balance, IdempotencyClaim, Release, Resolved, Settle
from gateway.metrics import Metrics
from gateway.providers.balance import Demand, Full, LoadBalancer
from gateway.providers.errors import ConnectFault, TimeoutFault
from gateway.providers.replies import Reply
from gateway.turn.bill import bill_of
from gateway.turn.context import Attempt
from gateway.turn.headers import TurnReport
from gateway.turn.settle import Settlements
from tests.gateway.turn.turns import LEFT, attempt
from tests.harness.models import deployment, model, prices

HELD = attempt().choice.estimate.hold_nanousd


class Books:
    """Settles and releases everything; `down` makes it unavailable."""

    def __init__(self) -> None:
        self.settled: list[Settle] = []
        self.released: list[Release] = []
        self.down = False

    async def settle(self, op: Settle) -> Resolved:
        self.settled.append(op)
        if self.down:
            raise LedgerUnavailable("down")
        spent = Balance(LEFT, 0, op.amount_nanousd)
        return Resolved("settle", 0, spent, spent)

    async def release(self, op: Release) -> Resolved:
        self.released.append(op)
        return Resolved("release", 0, Balance(LEFT, 0, 0), Balance(LEFT, 0, 0))


def settling() -> tuple[Settlements, Books, Leases]:
    books = Books()
    ledger = cast(Ledger, cast(Any, books))
    leases = Leases(ledger, lambda: 0.0, ttl_s=10.0)
    made = Settlements(
        ledger=ledger, leases=leases, tokens=TokenCounter(), forecast=OutputForecast(), metrics=Metrics(),
        clock=lambda: 2.0,
    )  # fmt: skip
    return made, books, leases


def reply(**body: Any) -> Reply:
    message = {"message": {"content": "four words of answer"}, "finish_reason": "stop"}
    usage = body.pop("usage", Usage(10, 5))
    return Reply({"id": "x", "model": "small-2026", "choices": [message]} | body, usage, "stop")


def rendered(report: TurnReport, bill: Settlement) -> Response:
    return Response(b"{}", headers=report.as_headers())


# -- bills -------------------------------------------------------------------------------------------------------------


def test_the_deployment_that_answered_sends_the_bill_though_the_dearest_of_its_group_is_held() -> None:
    cheap = deployment("cheap", prices(0.5, 1.0))
    dear = deployment("dear", prices(1.0, 2.0))
    group = model("group", prices(1.0, 2.0), deployments=(cheap, dear))
    assert bill_of(attempt(group, chosen=cheap), Usage(10, 5), 0).amount_nanousd == 10 * 500 + 5 * 1_000
    assert bill_of(attempt(group, chosen=dear), Usage(10, 5), 0).amount_nanousd == 10 * 1_000 + 5 * 2_000


@pytest.mark.parametrize("reached", [False, True])
async def test_a_call_that_was_refused_before_sending_keeps_no_place_in_its_deployment_s_minute(reached: bool) -> None:
    made, _, _ = settling()
    balancer = LoadBalancer(lambda: 0.0, RouterSettings)
    only, wanted = [deployment("small#0", limits=RateQuota(1, None, None))], Demand("s", 10)
    taken = balancer.take(only, wanted)
    assert not isinstance(taken, Full)
    refused = replace(attempt(), slot=taken[1])
    await made.release(refused, status="failed", error_code="invalid_request", upstream_failure=reached)
    assert isinstance(balancer.take(only, wanted), Full) == reached


def test_a_tier_that_the_provider_was_not_sent_is_not_billed() -> None:
    group = model("small", prices(1.0, 2.0, service_tiers=(("priority", prices(3.0, 6.0)),)))
    asked = attempt(group, service_tier="priority")
    assert bill_of(asked, Usage(10, 5), 0).amount_nanousd == 10 * 3_000 + 5 * 6_000
    assert bill_of(replace(asked, dropped=("service_tier",)), Usage(10, 5), 0).amount_nanousd == 10 * 1_000 + 5 * 2_000


def test_missing_usage_is_our_own_count_and_marked() -> None:
    bill = bill_of(attempt(prompt_tokens=100), None, 7)
    assert bill == Settlement(100 * 1_000 + 7 * 2_000, "estimated", Usage(100, 7))


def test_impossible_usage_costs_our_own_count_and_raises_an_alarm() -> None:
    impossible = PartialUsage(Usage(0, 0), has_prompt=False, has_output=False, fault="x")
    bill = bill_of(attempt(prompt_tokens=100), impossible, 7)
    assert (bill.amount_nanousd, bill.alarm) == (100 * 1_000 + 7 * 2_000, "implausible_usage")


async def test_a_call_without_an_answer_is_charged_the_time_it_had_at_the_model_s_speed() -> None:
    made, books, _ = settling()
    # The clock stands at 2.0 s: half a second at the prior's 80 tokens a second.
    await made.abandoned(replace(attempt(prompt_tokens=100), sent_ms=1_500))
    [settle] = books.settled
    assert (settle.amount_nanousd, settle.usage_source) == (100 * 1_000 + 40 * 2_000, "estimated")


async def test_of_a_call_without_an_answer_what_was_reported_is_charged_as_reported() -> None:
    made, books, _ = settling()
    begun = PartialUsage(Usage(1_000, 0), has_prompt=True, has_output=False)
    await made.abandoned(replace(attempt(prompt_tokens=100), sent_ms=1_500), begun)
    [settle] = books.settled
    assert (settle.amount_nanousd, settle.usage_source) == (1_000 * 1_000 + 40 * 2_000, "estimated")


async def test_a_call_that_hung_for_long_is_charged_no_more_than_was_held() -> None:
    made, books, _ = settling()
    turn = replace(attempt(prompt_tokens=100, max_tokens=30), sent_ms=-(10**9))
    await made.abandoned(turn)
    [settle] = books.settled
    assert settle.amount_nanousd == 100 * 1_000 + 30 * 2_000 <= turn.choice.estimate.hold_nanousd


@given(st.integers(0, 100_000))
def test_a_stream_s_checkpoint_covers_what_was_received_and_stays_within_the_hold(received: int) -> None:
    made, _, _ = settling()
    turn = attempt(prompt_tokens=100, stream=True)
    checkpoint = made.checkpoint_nanousd(turn, received)
    hold = turn.choice.estimate.hold_nanousd
    assert min(hold, 100 * 1_000 + received * 2_000) <= checkpoint <= hold
    assert checkpoint <= made.checkpoint_nanousd(turn, received + 1)


def test_checkpoints_add_a_second_of_generation_and_a_whole_answer_s_is_the_likely_bill() -> None:
    made, _, _ = settling()
    turn = attempt(prompt_tokens=100, stream=True)
    assert made.checkpoint_nanousd(turn, 100) == 100 * 1_000 + (100 + 80) * 2_000
    whole = attempt(prompt_tokens=100)
    assert made.checkpoint_nanousd(whole, 100) == whole.choice.estimate.likely_nanousd


# -- endings -----------------------------------------------------------------------------------------------------------


async def test_an_answer_is_settled_once_and_told_with_the_balances_after_it() -> None:
    made, books, leases = settling()
    turn = attempt()
    leases.take(turn.hold_id, 1)
    answered, _ = await made.reply(turn, reply(), rendered)
    [settle] = books.settled
    assert (settle.hold_id, settle.amount_nanousd, settle.usage_source) == ("hold_1", 20_000, "reported")
    assert settle.decision is not None
    assert (settle.decision["status"], settle.decision["output_tokens"]) == ("completed", 5)
    assert answered.as_headers()["x-seqroute-cost-usd"] == "0.00002"
    assert answered.as_headers()["x-seqroute-session-spent-usd"] == "0.00002"
    assert leases.count == 0


async def test_the_answer_that_was_paid_for_is_given_although_the_bill_waits_for_the_database() -> None:
    made, books, leases = settling()
    books.down = True
    answered, _ = await made.reply(attempt(), reply(), rendered)
    assert answered.as_headers()["x-seqroute-cost-usd"] == "0.00002"
    assert "x-seqroute-session-spent-usd" not in answered.as_headers()
    assert leases.count == 0


async def test_a_fault_while_settling_leaves_the_hold_to_the_sweeper_not_to_an_endless_lease() -> None:
    made, _, leases = settling()
    turn = attempt()
    leases.take(turn.hold_id, 1)
    turn = replace(turn, context=replace(turn.context, idempotency=IdempotencyClaim("k", b"", 0)))

    def broken(report: TurnReport, bill: Settlement) -> Response:
        raise TypeError("a defect of a dialect")

    with pytest.raises(TypeError):
        await made.reply(turn, reply(), broken)
    assert leases.count == 0


async def test_a_call_that_never_left_is_released_and_one_that_may_be_billed_is_settled() -> None:
    made, books, _ = settling()
    await made.failed(attempt(), ConnectFault("no"), final=True)
    [release] = books.released
    assert release.decision is not None
    assert (release.decision["status"], release.decision["error_code"]) == ("failed", "upstream_error")
    await made.failed(attempt(), TimeoutFault("late"), final=True)
    [settle] = books.settled
    assert (settle.usage_source, settle.amount_nanousd > 0) == ("estimated", True)


async def test_a_failed_attempt_with_another_to_come_leaves_the_decision_pending() -> None:
    made, books, _ = settling()
    await made.failed(attempt(), ConnectFault("no"), final=False)
    await made.failed(attempt(), TimeoutFault("late", retryable=True), final=False)
    assert books.released[0].decision is None
    assert not books.released[0].drop_idempotency
    assert books.settled[0].decision is None


def test_a_bound_turn_reports_the_clamp_only_when_there_is_one() -> None:
    loose, tight = attempt(max_tokens=50), attempt(left_nanousd=3_000_000)
    assert loose.report().max_tokens is None
    assert tight.report().max_tokens == tight.choice.estimate.max_tokens
    assert isinstance(tight, Attempt)
