"""Which models money leaves to a turn, and why it leaves none: spent, held, or only busy."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.live import Configuration
from gateway.config.settings import RouterSettings, SessionSettings, Settings
from gateway.errors import GatewayError, RateLimited, SessionBudgetExceeded
from gateway.ledger.types import Balance
from gateway.metrics import Metrics
from gateway.providers.cooldown import Breaker
from gateway.routing.estimates import UNCERTAIN
from gateway.routing.exploration import ExplorationBudget
from gateway.routing.guard import BUSY, TOOL_LOOP, Eligibility
from gateway.routing.observe import Observer
from gateway.routing.router import Router
from gateway.turn.context import RoutingDecision, TurnContext
from gateway.turn.decide import Decider, Estimator
from gateway.turn.exhausted import exhausted
from gateway.turn.funds import Shortage
from gateway.turn.waiting import HeldMoney
from policy.reload import CheckpointRef, LoadedPolicy, ServingPolicies
from policy.rules import Cheapest
from tests.gateway.turn.turns import context, session_row
from tests.harness.models import catalog, model, prices

CHEAP, GOOD = model("cheap"), model("good", prices(1_000.0, 2_000.0))
ENOUGH_NANOUSD = 10_000_000
"""The cheap model's longest answer costs 8.2 million, the good one's prompt alone more than 100 million."""


def turn(granted_nanousd: int, *options: Eligibility, held_nanousd: int = 0) -> TurnContext:
    row = session_row(Balance(granted_nanousd, held_nanousd, 0))
    return replace(context(row=row), options=list(options))


SETTINGS = Settings(models=(), session=SessionSettings(10**9, 10**10))


def estimating() -> Estimator:
    return Estimator(
        configuration=lambda: Configuration(SETTINGS, catalog(CHEAP, GOOD)), forecast=OutputForecast(),
        breaker=Breaker(lambda: 0.0, RouterSettings), held=HeldMoney(),
    )  # fmt: skip


def refusal(asked: TurnContext) -> GatewayError:
    return exhausted(asked, estimating().shortage(asked, asked.funds, {}))


def decided(asked: TurnContext) -> RoutingDecision | Shortage:
    cheapest = LoadedPolicy(Cheapest(), CheckpointRef("rule:cheapest"), {})
    decider = Decider(
        estimator=estimating(), observer=Observer(),
        router=Router(
            lambda: SETTINGS.policy, cheapest, lambda: ServingPolicies(cheapest), monotonic=lambda: 0.0,
            on_fault=lambda: None,
        ),
        exploring=ExplorationBudget(lambda: 0, lambda: 0.0), metrics=Metrics(), clock=lambda: 0.0, uniform=lambda: 0.5,
    )  # fmt: skip
    return decider.decide(asked, asked.funds, patient=False)


BUSY_CHEAP = Eligibility(CHEAP, CHEAP.deployments, BUSY, wait_s=7)
FREE_GOOD = Eligibility(GOOD, GOOD.deployments, "")


def test_a_session_that_affords_only_a_busy_model_is_told_when_it_has_room() -> None:
    error = refusal(turn(ENOUGH_NANOUSD, BUSY_CHEAP, FREE_GOOD))
    assert isinstance(error, RateLimited)
    assert error.headers == {"Retry-After": "7"}
    assert "limit of requests, tokens or parallel calls; try again in 7 s" in error.message


def test_the_last_answer_s_money_may_be_that_of_a_busy_model() -> None:
    kept = replace(turn(ENOUGH_NANOUSD, BUSY_CHEAP, FREE_GOOD), kept_nanousd=1_000)
    assert isinstance(refusal(kept), RateLimited)


def test_a_session_that_cannot_pay_a_busy_model_either_has_ended() -> None:
    error = refusal(turn(10_000, BUSY_CHEAP, FREE_GOOD))
    assert isinstance(error, SessionBudgetExceeded)
    # It needs what the cheapest model needs, busy or not: 200 tokens of the prompt and 16 of an answer.
    assert error.details["needed_nano_usd"] == 200 * 1_000 + 16 * 2_000


def test_a_busy_model_outside_a_tool_loop_is_none_of_its_models() -> None:
    other = Eligibility(CHEAP, CHEAP.deployments, TOOL_LOOP, wait_s=7)
    assert isinstance(refusal(turn(ENOUGH_NANOUSD, other, FREE_GOOD)), SessionBudgetExceeded)


def test_money_that_others_hold_comes_before_a_busy_model() -> None:
    error = refusal(turn(10**9, BUSY_CHEAP, FREE_GOOD, held_nanousd=10**9 - 1_000))
    assert isinstance(error, RateLimited)
    assert "other turns hold" in error.message


UNCERTAIN_CHEAP = Eligibility(CHEAP, CHEAP.deployments, "", certain=False)


def test_hosted_tools_go_to_a_server_that_may_lack_them_when_money_covers_no_other() -> None:
    found = decided(turn(ENOUGH_NANOUSD, UNCERTAIN_CHEAP, FREE_GOOD))
    assert isinstance(found, RoutingDecision)
    assert found.estimate.option.model is CHEAP
    rich = decided(turn(10**12, UNCERTAIN_CHEAP, FREE_GOOD))
    assert isinstance(rich, RoutingDecision)
    assert rich.estimate.option.model is GOOD
    assert [each.why_not for each in rich.observation.candidates] == [UNCERTAIN, ""]


def test_hosted_tools_that_no_server_can_be_paid_for_cost_what_the_cheapest_needs() -> None:
    found = decided(turn(10_000, UNCERTAIN_CHEAP, FREE_GOOD))
    assert isinstance(found, Shortage)
    assert found.least_nanousd == 200 * 1_000 + 16 * 2_000
