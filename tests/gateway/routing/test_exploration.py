"""Exploring has a budget of its own, by day: what it is expected to cost is counted, shared, and ends it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.database.database import Database
from gateway.routing.exploration import ExplorationBudget, Spent, price_of
from policy.exploration import Exploration
from policy.mdp import Decision, Observation
from policy.rules import Strongest
from policy.text import STAT_NAMES
from tests.policy.observations import candidate, observation

NOON = 1_760_011_200.0
"""2025-10-09 12:00 UTC."""
DAY_S = 86_400.0


def decision(*probabilities: float) -> tuple[Observation, Decision]:
    """Three candidates at 1, 3 and 2 thousandths of a dollar, believed at .8, .9 and .5."""
    seen = observation([candidate("a", 0.001), candidate("b", 0.003), candidate("c", 0.002)])
    made = Strongest().decide(seen, 0.0)
    return seen, replace(
        made,
        probabilities=np.array(probabilities, np.float32),
        quality=np.array([0.8, 0.9, 0.5], np.float32),
    )


class Time:
    def __init__(self) -> None:
        self.now_s = NOON

    def __call__(self) -> float:
        return self.now_s


def test_a_decision_costs_what_its_chances_cost_on_average_by_hand() -> None:
    paid = price_of(*decision(0.9, 0.05, 0.05))
    assert paid.extra_usd == pytest.approx(0.05 * 0.002 + 0.05 * 0.001)
    assert paid.quality == pytest.approx(0.05 * 0.3 - 0.05 * 0.1)
    assert price_of(*decision(1.0, 0.0, 0.0)) == (0.0, 0.0)


def test_a_quota_lacks_what_was_not_answered_to_this_kind_of_prompt() -> None:
    budget = ExplorationBudget(lambda: 10**9, Time(), lambda: 4)
    seen, made = decision(1.0, 0.0, 0.0)
    assert budget.wanted(seen, seen.candidates) == (1.0, 1.0, 1.0)
    for _ in range(3):
        budget.count(seen, made)
    assert budget.wanted(seen, seen.candidates) == (0.25, 1.0, 1.0)
    stats = seen.text_stats.copy()
    stats[STAT_NAMES.index("code_marks")] = 1.0 - stats[STAT_NAMES.index("code_marks")]
    assert budget.wanted(replace(seen, text_stats=stats), seen.candidates) == (1.0, 1.0, 1.0), "another kind"
    for _ in range(9):
        budget.count(seen, made)
    assert budget.wanted(seen, seen.candidates) == (0.0, 1.0, 1.0)


def test_a_model_that_never_answers_is_tried_for_its_quota_five_times_as_often_at_most() -> None:
    budget = ExplorationBudget(lambda: 10**9, Time(), lambda: 4)
    seen, made = decision(1.0, 0.0, 0.0)

    def begun() -> Observation:
        turn = replace(seen, wanted=budget.wanted(seen, seen.candidates))
        budget.tried(turn, made)
        return turn

    for _ in range(10):
        begun()
    assert budget.wanted(seen, seen.candidates)[0] == pytest.approx(0.5)
    budget.count(begun(), made)  # answered: one whole answer
    assert budget.wanted(seen, seen.candidates)[0] == pytest.approx(0.25)
    for _ in range(30):
        begun()
    assert budget.wanted(seen, seen.candidates)[0] == pytest.approx(0.0)
    before = budget.wanted(seen, seen.candidates)
    begun()  # nothing is wanted of it any more: nothing is counted
    assert budget.wanted(seen, seen.candidates) == before


async def test_a_quota_is_of_all_replicas_and_restarts_and_is_lacking_again_after_weeks(
    database_url: str,
) -> None:
    clock = Time()
    seen, made = decision(1.0, 0.0, 0.0)
    one, other = (ExplorationBudget(lambda: 10**9, clock, lambda: 4) for _ in range(2))
    database = Database(database_url)
    await database.start()
    try:
        one.count(seen, made)
        other.count(seen, made)
        for budget in (one, other, one):
            await budget.share(database)
        again = ExplorationBudget(lambda: 10**9, clock, lambda: 4)
        await again.share(database)
        for budget in (one, other, again):
            assert budget.wanted(seen, seen.candidates) == (0.5, 1.0, 1.0)
        clock.now_s += 7 * DAY_S
        lacking = pytest.approx((1 - 2 * 0.9**7 / 4, 1.0, 1.0))
        assert one.wanted(seen, seen.candidates) == lacking
        await other.share(database)
        assert other.wanted(seen, seen.candidates) == lacking
        one.count(seen, made)
        for budget in (one, other):
            await budget.share(database)
            assert budget.wanted(seen, seen.candidates)[0] == pytest.approx(1 - (2 * 0.9**7 + 1) / 4)
    finally:
        await database.close()


async def test_answers_that_could_not_be_written_are_kept(sqlite_url: str) -> None:
    budget = ExplorationBudget(lambda: 10**9, Time(), lambda: 4)
    seen, made = decision(1.0, 0.0, 0.0)
    budget.count(seen, made)
    database = Database(sqlite_url)
    await database.start()

    class Away:
        read = database.read

        async def write(self, run: object) -> None:
            raise ConnectionError

    away: Any = Away()
    try:
        with pytest.raises(ConnectionError):
            await budget.share(away)
        assert budget.wanted(seen, seen.candidates) == (0.75, 1.0, 1.0)
        for _ in range(2):
            await budget.share(database)
        assert budget.wanted(seen, seen.candidates) == (0.75, 1.0, 1.0)
    finally:
        await database.close()


def test_quotas_leave_half_of_the_day_s_budget_to_ordinary_exploration() -> None:
    clock = Time()
    budget = ExplorationBudget(lambda: 600_000, clock, lambda: 4)
    seen, made = decision(0.9, 0.05, 0.05)  # 150,000 nano-USD
    budget.charge(seen, made)
    assert budget.wanted(seen, seen.candidates) == (1.0, 1.0, 1.0)
    budget.charge(seen, made)
    assert budget.wanted(seen, seen.candidates) == ()
    assert budget.allows()
    clock.now_s += DAY_S
    assert budget.wanted(seen, seen.candidates) == (1.0, 1.0, 1.0)


def test_no_quota_tries_what_would_take_more_than_a_fifth_of_the_session_s_money() -> None:
    budget = ExplorationBudget(lambda: 10**9, Time(), lambda: 4)
    seen, _ = decision(1.0, 0.0, 0.0)  # .001, .003 and .002 USD
    poor = replace(seen, session=replace(seen.session, remaining_usd=0.0125, tenant_remaining_usd=1.0))
    assert budget.wanted(poor, poor.candidates) == (1.0, 0.0, 1.0)
    assert budget.wanted(replace(seen, explore=False), seen.candidates) == ()
    assert ExplorationBudget(lambda: 10**9, Time()).wanted(seen, seen.candidates) == ()


def test_what_is_used_up_ends_exploring_until_midnight() -> None:
    clock = Time()
    budget = ExplorationBudget(lambda: 300_000, clock)  # .0003 USD: two such turns
    for _ in range(2):
        assert budget.allows()
        budget.charge(*decision(0.9, 0.05, 0.05))
    assert not budget.allows()
    clock.now_s += DAY_S / 2 - 1
    assert not budget.allows()
    clock.now_s += 1
    assert budget.allows()
    assert budget.today == Spent()


def test_a_limit_of_nothing_never_explores() -> None:
    assert not ExplorationBudget(lambda: 0, Time()).allows()


async def test_replicas_count_together_and_a_restart_forgets_nothing(database_url: str) -> None:
    clock = Time()
    one, other = (ExplorationBudget(lambda: 300_000, clock) for _ in range(2))
    database = Database(database_url)
    await database.start()
    try:
        one.charge(*decision(0.9, 0.05, 0.05))
        other.charge(*decision(0.9, 0.05, 0.05))
        for budget in (one, other, one):
            await budget.share(database)
        for budget in (one, other):
            assert budget.today.extra_nanousd == pytest.approx(300_000, abs=2)
            assert budget.today.quality == pytest.approx(0.02)
            assert not budget.allows()
        again = ExplorationBudget(lambda: 300_000, clock)
        await again.share(database)
        assert not again.allows()
        clock.now_s += DAY_S
        await again.share(database)
        assert again.allows()
    finally:
        await database.close()


async def test_what_could_not_be_written_is_kept_and_written_on_its_own_day(sqlite_url: str) -> None:
    clock = Time()
    budget = ExplorationBudget(lambda: 10**9, clock)
    budget.charge(*decision(0.9, 0.05, 0.05))

    class Away:
        async def write(self, run: object) -> None:
            raise ConnectionError

    away: Any = Away()
    with pytest.raises(ConnectionError):
        await budget.share(away)
    assert budget.today.extra_nanousd == pytest.approx(150_000, abs=1)
    clock.now_s += DAY_S
    database = Database(sqlite_url)
    await database.start()
    try:
        await budget.share(database)
        assert budget.today == Spent()
        clock.now_s -= DAY_S
        await budget.share(database)
        assert budget.today.extra_nanousd == pytest.approx(150_000, abs=1)
    finally:
        await database.close()


def test_the_exploration_that_is_priced_is_the_one_that_is_drawn() -> None:
    seen = observation([candidate("a", 0.001, 0.8), candidate("b", 0.003, 0.8), candidate("c", 0.002, 0.8)])
    policy = Strongest(exploration=Exploration(floor=0.3))
    rng = np.random.default_rng(0)
    drawn = [policy.decide(seen, float(u)) for u in rng.random(4_000)]
    extra = [seen.candidates[d.action].cost_quantiles_usd[0] - 0.001 for d in drawn]
    assert float(np.mean(extra)) == pytest.approx(price_of(seen, drawn[0]).extra_usd, rel=0.1)
