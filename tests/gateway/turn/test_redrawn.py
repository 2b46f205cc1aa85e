"""A turn that draws twice, since another turn took the room or the money of its first draw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from gateway.decisions.trainable import why_not_trained
from gateway.ledger.types import Balance, Refused
from gateway.providers.balance import Full
from gateway.routing.guard import Eligibility
from gateway.routing.router import POLICY_FAULT
from gateway.turn.context import Attempt
from gateway.turn.reserve import Reservations
from policy.mdp import ONLY_AFFORDABLE
from tests.gateway.turn.turns import attempt
from tests.harness.models import model

NO_ROOM, NO_MONEY = Full(1), Refused("session", Balance(1_000, 900, 0), pending=True)


async def reasons_of(propensities: list[float], lost: list[Any], last_reason: str = "policy") -> list[str]:
    """The logged reasons of a turn whose draws have these propensities and all but the last are lost so."""
    made, drawn, logged = attempt(), iter(propensities), []
    outcomes = iter([*lost, made])

    async def decide_soon(context: Any, funds: Any, *, patient: bool) -> Any:
        routed = made.choice.routed
        decision = structs.replace(routed.decision, propensity=next(drawn), reason=last_reason)
        return structs.replace(made.choice, routed=structs.replace(routed, decision=decision))

    async def reserve(context: Any, choice: Any, decision_id: str, row: dict[str, Any], deployments: Any) -> Any:
        logged.append(row["reason"])
        return next(outcomes)

    settings: Any = SimpleNamespace(settings=SimpleNamespace(policy=SimpleNamespace(judge=None, exploration_floor=0.1)))
    decider: Any = SimpleNamespace(decide_soon=decide_soon, executed=lambda choice: None)
    unused: Any = None
    subject: Any = Reservations(
        configuration=lambda: settings, decider=decider, ledger=unused, leases=unused, settling=unused,
        balancer=unused, held=unused, new_id=lambda kind: f"{kind}_1",
    )  # fmt: skip
    subject.reserve = reserve
    small, other = made.context.options[0], model("big")
    context = structs.replace(made.context, options=[small, Eligibility(other, other.deployments, "")])
    assert isinstance(await subject._try_to_reserve(context, patient=False, redraws=False), Attempt)
    return logged


@pytest.mark.parametrize("lost", [NO_ROOM, NO_MONEY])
async def test_a_turn_whose_first_of_several_draws_was_lost_is_logged_as_a_fallback(lost: Any) -> None:
    """By hand: of the models k (full, drawn with .6) and a (.4), a answers every turn. With the propensity of its last
    draw it weighs .4 * 1/.4 + .6 * 1/1 = 1.6 turns for each turn; without the turns drawn again it is 1."""
    assert await reasons_of([0.6, 1.0], [lost]) == ["policy", "fallback"]
    assert await reasons_of([0.6, 0.4, 1.0], [lost, NO_MONEY]) == ["policy", "fallback", "fallback"]
    row = {"origin": None, "status": "completed", "reason": "fallback", "feature_version": 3, "cost_nanousd": 1}
    assert why_not_trained(row) == "fallback"


async def test_after_a_lost_choice_without_chance_the_next_draw_is_exact() -> None:
    assert await reasons_of([1.0, 0.4], [NO_ROOM]) == ["policy", "policy"]


@pytest.mark.parametrize("reason", [ONLY_AFFORDABLE, POLICY_FAULT])
async def test_a_second_draw_still_counts_as_starved_or_as_a_fault(reason: str) -> None:
    assert await reasons_of([0.6, 1.0], [NO_MONEY], last_reason=reason) == [reason] * 2
