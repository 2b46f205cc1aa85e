"""Plans that need no network: by hand, and what they change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy.fixed_plans import LOST, at_least, plans_of
from policy.mdp import Decision
from policy.reload import pretrained
from policy.value_curves import Catalogue, Later
from tests.policy.observations import candidate, observation

F32 = np.float32
NOTHING = tuple(np.array([[x, x]], F32) for x in (0.0, 0.0, 1.0))
"""Values to go of an empty budget after one candidate, at two sums of money."""


def after(last: int, money_usd: list[float], *, context: float = 2000.0, price: float = 0.0, penalty: float = 0.0,
          known: Any = NOTHING, shown: tuple[bool, bool] = (True, True)) -> tuple[list[float], ...]:  # fmt: skip
    """Values of four later turns after `small` (0) or `large` (1), whose bills are 1 and 3 USD and earn .4 and .9.

    Reading 2,000 tokens costs 2 USD, on a warm cache .2; they do not grow.
    """
    columns = ([0.4, 0.9], [0.1, 0.1], [1.0, 3.0], [1.5, 4.0], [1.0, 1.0], [1e-3, 1e-3], [1e-4, 1e-4])
    catalogue = Catalogue._make([*(np.array([x], F32) for x in columns), np.array([shown])])
    terms = (4.0, context, 0.0, float(last), price, penalty)
    later = Later._make([np.array([x], F32) for x in terms])
    found = at_least(known, plans_of(catalogue, later), np.array([money_usd], F32))
    return tuple(x[0].tolist() for x in found)


def test_the_best_plan_by_hand() -> None:
    # All on a warm `large`: 4 x 3.2 = 12.8, and sqrt(4) (4 - 3) = 2 for the tail. With .01 less the last turn is
    # `small`'s, which reads the conversation for 1.8 more than on a warm cache.
    quality, spend, starved = after(1, [14.8, 14.79])
    assert quality == pytest.approx([0.9, (3 * 0.9 + 0.4) / 4], rel=1e-5)
    assert spend == pytest.approx([12.8 / 4, (3 * 3.2 + 1.8 + 1.2) / 4], rel=1e-5)
    assert starved == pytest.approx([LOST, LOST])


def test_a_cold_model_costs_its_first_reading() -> None:
    # After `small`, `large` reads 2,000 tokens for 1.8 more: 16.6. Staying on `small` is 4.8 and 1 for its tail.
    quality, spend, _ = after(0, [16.6, 5.8])
    assert quality == pytest.approx([0.9, 0.4], rel=1e-5)
    assert spend == pytest.approx([14.6 / 4, 4.8 / 4], rel=1e-5)


def test_a_plan_that_is_not_affordable_changes_nothing() -> None:
    assert after(0, [5.7, 0.0]) == tuple(x[0].tolist() for x in NOTHING)


def test_a_dear_turn_must_be_worth_its_money() -> None:
    # `large` earns .5 more a turn for 2 USD more, and 1.8 to start: at .2 a dollar it pays, at .3 it does not.
    assert after(0, [50.0, 50.0], price=0.1)[0] == pytest.approx([0.9, 0.9])
    assert after(0, [50.0, 50.0], price=0.3)[0] == pytest.approx([0.4, 0.4])


def test_better_values_of_the_network_stay() -> None:
    better = tuple(np.array([[x, x]], F32) for x in (0.95, 3.0, 0.0))
    assert after(1, [50.0, 14.8], known=better) == tuple(x[0].tolist() for x in better)


def test_a_chance_of_starving_has_its_price() -> None:
    surer = tuple(np.array([[x, x]], F32) for x in (0.85, 3.0, 0.0))
    assert after(1, [50.0, 50.0], known=surer, penalty=1.0)[0] == pytest.approx([0.9, 0.9])  # .2 against .05
    assert after(1, [50.0, 50.0], known=surer, penalty=5.0)[0] == pytest.approx([0.85, 0.85])  # .2 against .25


def test_no_plan_without_a_cache_or_with_a_model_that_may_not_be_used() -> None:
    assert after(1, [50.0, 50.0], context=900.0) == tuple(x[0].tolist() for x in NOTHING)
    assert after(1, [50.0, 50.0], shown=(True, False))[0] == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize("price", [0.0, 0.5])
def test_where_money_is_enough_for_the_better_model_a_fresh_install_fills_its_cache_first(price: float) -> None:
    """Without plans the shipped network began with the weaker model and read 8,000 tokens twice."""

    def first(money_usd: float) -> Decision:
        shown = [
            candidate(
                name, 8_116 * usd * 1e-6, prior, input_tokens=8_113, input_usd_per_mtok=usd,
                cached_input_usd_per_mtok=usd / 10.0,
            )
            for name, usd, prior in (("large", 10.0, 0.8), ("small", 0.6, 0.68))
        ]  # fmt: skip
        seen = observation(
            shown,
            lambda_per_usd=price,
            words="x" * 452,
            budget_usd=money_usd,
            remaining_usd=money_usd,
            expected_turns=8,
        )
        return pretrained().policy.decide(seen, 0.5)

    # Eight turns on `large`: 81 for the first reading, seven of 8,000 to 9,750 tokens on the cache, in thousandths.
    assert first(0.175).action == 0
    assert first(0.06).action == 1
