"""Backward induction by hand: two models, one kind of turn, certain bills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from gateway.database import tables
from gateway.database.database import transaction
from policy.catalogue_statistics import GROWN_TOKENS
from policy.mdp import COST_LEVELS, COST_MASSES
from tests.train.log.test_episodes import a_log, read
from train.config import PlanConfig
from train.fit.value_table import (
    UNKNOWN_USD,
    Samples,
    Setting,
    conversation_growth,
    draw_samples,
    step_of,
    tabulate,
)

LEVELS = len(COST_LEVELS)
CONFIG = PlanConfig(samples=8, turns=3, money_points=60, contexts_tokens=(0.0, 10_000.0), lambdas=(1.0,))


def samples(**changes: Any) -> Samples:
    """`small` earns .4 for 1 USD, `large` .9 for 3; a conversation costs 1e-4 USD per token cold, a tenth warm."""
    made = Samples(
        models=("small", "large"),
        quality=np.array([[0.4, 0.9]]),
        bills_usd=np.broadcast_to(np.array([[[1.0], [3.0]]]), (1, 2, len(COST_LEVELS))).copy(),
        input_usd=np.array([1e-4, 1e-4]),
        cached_usd=np.array([1e-5, 1e-5]),
        list_usd=np.array([1.0, 3.0]),
        answers=np.ones((3, len(COST_LEVELS))),
        grown_tokens=0.0,
    )
    return replace(made, **changes)


def value(
    of: Samples, turns: int, budget_usd: float, *, last: int = 2, context: int = 0, penalty: float = 0.0
) -> float:
    table = tabulate(of, CONFIG, Setting(penalty))
    return float(np.interp(budget_usd, table.budgets_usd, table.values[0, context, last, turns]))


def test_a_certain_bill_moves_the_budget_between_two_points_of_the_grid() -> None:
    step = step_of(
        np.full((1, len(COST_LEVELS)), 0.4),
        np.full((1, len(COST_LEVELS)), 0.5),
        np.array([0.0, 1.0, 2.0]),
        np.array([0.0]),
        Setting(starved_penalty=0.2),
    )
    # With 0 USD the answer is lost (-.2); 1 leaves .5, half way between 0 and 1; 2 leaves 1.5.
    assert step.reward[0, 0] == pytest.approx([-0.2, 0.4, 0.4])
    assert step.moved == pytest.approx(np.array([[0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]), abs=1e-6)


def test_a_cautious_budget_holds_back_for_a_tail_longer_than_the_law_knows() -> None:
    # The median is .5, the tail (levels .95, .98, .99; mass .045) 1.0: at caution 2 it is weighed as 1.5.
    bills = np.where(np.array(COST_LEVELS) >= 0.95, 1.0, 0.5)[None]
    budgets, free = np.array([0.0, 1.0, 2.0]), np.array([0.0])
    bold = step_of(np.ones((1, len(COST_LEVELS))), bills, budgets, free, Setting(1.0))
    careful = step_of(np.ones((1, len(COST_LEVELS))), bills, budgets, free, Setting(1.0, caution=2.0))
    tail = float(COST_MASSES[np.array(COST_LEVELS) >= 0.95].sum())
    assert bold.reward[0, 0, 1] == pytest.approx(1.0)
    assert careful.reward[0, 0, 1] == pytest.approx((1.0 - tail) - tail, abs=1e-6)
    # With 2 USD the tail leaves .5 instead of 1: what is left stands lower on the grid by half a step.
    assert careful.moved[2] @ budgets == pytest.approx(bold.moved[2] @ budgets - 0.5 * tail, abs=1e-6)


def test_the_best_use_of_a_budget_is_found() -> None:
    # The grid is coarse, so a budget a little beyond each threshold is asked for.
    assert value(samples(), 1, 3.5) == pytest.approx(0.9, abs=0.02)
    assert value(samples(), 2, 2.3) == pytest.approx(0.8, abs=0.03)  # twice small
    assert value(samples(), 2, 4.6) == pytest.approx(1.3, abs=0.03)  # one of each
    assert value(samples(), 2, 7.0) == pytest.approx(1.8, abs=0.03)  # twice large


def test_a_penalty_makes_an_empty_budget_worse_than_nothing() -> None:
    assert value(samples(), 1, 0.5, penalty=0.0) == pytest.approx(0.0, abs=0.01)
    assert value(samples(), 1, 0.5, penalty=1.0) == pytest.approx(-1.0, abs=0.01)


def test_a_warm_cache_is_worth_what_it_saves() -> None:
    # 10,000 tokens cost 1 USD cold and .1 warm: with 3.5 USD large is within reach warm (3.1), cold (4.0) it is not.
    assert value(samples(), 1, 3.5, last=1, context=1) == pytest.approx(0.9, abs=0.03)
    assert value(samples(), 1, 3.5, last=2, context=1) == pytest.approx(0.4, abs=0.03)
    blind = tabulate(samples(), CONFIG, Setting(), cache_aware=False)
    assert (blind.values[:, :, 0] == blind.values[:, :, 2]).all()


def test_a_growing_conversation_costs_later_turns_more() -> None:
    still = samples(cached_usd=samples().input_usd)
    growing = replace(still, grown_tokens=5_000.0)
    # Two turns with 2.4 USD: small twice for 2.0. Half way to 10,000 tokens, where the second is out of reach.
    assert value(still, 2, 2.4) > value(growing, 2, 2.4) + 0.1


def test_at_a_price_of_money_the_costly_model_must_earn_it() -> None:
    table = tabulate(samples(), CONFIG, Setting())
    price = float(table.lambdas_per_usd[1])
    assert price == pytest.approx(0.5)  # 1 per mean bill of 2 USD
    # Both lose at .5 a dollar (.4 - .5, .9 - 1.5): the cheaper loses less.
    assert table.values[1, 0, 2, 1, -1] == pytest.approx(-0.1, abs=0.01)


def test_a_model_that_was_not_offered_is_never_the_plan() -> None:
    bills = samples().bills_usd.copy()
    bills[:, 1] = UNKNOWN_USD
    assert value(samples(bills_usd=bills), 1, 3.5) == pytest.approx(0.4, abs=0.01)


def test_samples_of_a_log_carry_its_grades_prices_and_bills(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=10))
    grades = np.tile(np.array([0.1, 0.2, 0.3]), (*episodes.valid.shape, 1))
    found = draw_samples(episodes, grades, PlanConfig(samples=5))
    assert found.models == episodes.models
    order = [int(m) for m in episodes.model[0, 0]]
    assert found.quality[0, order] == pytest.approx([0.1, 0.2, 0.3])
    assert found.input_usd[order] == pytest.approx([0.2e-6, 1e-6, 5e-6], rel=1e-3)
    assert (found.bills_usd > 0).all()
    offered = found.bills_usd < UNKNOWN_USD
    assert offered.any(axis=-1).sum() >= 2 * 5
    assert (found.bills_usd[offered] <= episodes.cost_quantiles_usd.max() + 1e-9).all()


@pytest.mark.parametrize("pinned", [(), (1, 2)])
def test_the_growth_of_conversations_is_that_of_a_turn_whatever_the_log_leaves_out(
    tmp_path: Path, pinned: tuple[int, ...]
) -> None:
    # Every turn adds 1,000 tokens. Without turns 1 and 2 the neighbours (0, 3), (3, 4), (4, 5) differ by 3,000, 1,000
    # and 1,000; the estimate of what the turn itself adds differs by a few tokens between tasks.
    url = a_log(tmp_path, sessions=10, grown_tokens=1_000)
    with transaction(url) as connection:
        changed = sa.update(tables.decisions).where(tables.decisions.c.turn.in_(pinned))
        connection.execute(changed.values(reason="pinned"))
    episodes, _ = read(url)
    assert conversation_growth(episodes) == pytest.approx(1_000, abs=15)
    # Few sampled turns are neighbours, but the growth is that of the whole log.
    grades = np.full(episodes.mask.shape, 0.5)
    assert draw_samples(episodes, grades, PlanConfig(samples=3)).grown_tokens == conversation_growth(episodes)


def test_a_log_of_single_turns_says_nothing_of_growth(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=10))
    episodes.valid[:, 1:] = False
    assert conversation_growth(episodes) == GROWN_TOKENS
