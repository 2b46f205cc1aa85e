"""What money left is worth, and the planner that looks one bill ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from policy.mdp import COST_LEVELS, COST_MASSES, Observation
from policy.planned import Planner
from policy.text import STAT_NAMES
from policy.valuetable import ValueTable, bill_scores, cautious_usd, context_tokens
from tests.policy.observations import candidate, observation

LEVELS = len(COST_LEVELS)


def table(**changes: Any) -> ValueTable:
    """Two later turns at most; a turn is worth the dollars left for it, up to 1, whichever model served."""
    budgets = np.array([0.0, 1.0, 2.0], np.float32)
    values = np.zeros((1, 1, 3, 3, 3), np.float32)
    values[0, 0, :, 1] = [0.0, 1.0, 1.0]
    values[0, 0, :, 2] = [0.0, 1.0, 2.0]
    made = ValueTable(
        models=("small", "large"),
        list_usd=np.array([5.0, 5.0], np.float32),
        lambdas_per_usd=np.zeros(1, np.float32),
        contexts_tokens=np.zeros(1, np.float32),
        budgets_usd=budgets,
        values=values,
        answers=np.ones((3, LEVELS), np.float32),
    )
    return replace(made, **changes)


def later(of: ValueTable, usd: float, turns: float, lambda_per_usd: float = 0.0, context: float = 0.0) -> float:
    return float(of.later([candidate("small")], np.array([[usd]]), turns, lambda_per_usd, context)[0, 0])


def test_values_are_read_between_budgets_and_between_turns() -> None:
    assert later(table(), 0.5, 1.0) == pytest.approx(0.5)
    assert later(table(), 1.5, 1.0) == pytest.approx(1.0)
    # Half way between one turn (1) and two (1.5).
    assert later(table(), 1.5, 1.5) == pytest.approx(1.25)
    assert later(table(), 9.0, 2.0) == pytest.approx(2.0)


def test_no_later_turn_is_worth_nothing() -> None:
    assert later(table(), 2.0, 0.0) == 0.0


def test_more_turns_than_the_table_has_repeat_its_last_row() -> None:
    # Four turns with 2 USD are twice two turns with 1 USD each.
    assert later(table(), 2.0, 4.0) == pytest.approx(2.0)


def test_prices_and_contexts_are_interpolated_and_held_beyond_the_ends() -> None:
    values = np.zeros((2, 2, 3, 2, 2), np.float32)
    values[1, 0, :, 1], values[0, 1, :, 1], values[1, 1, :, 1] = 1.0, 2.0, 3.0
    of = table(
        lambdas_per_usd=np.array([0.0, 10.0], np.float32),
        contexts_tokens=np.array([0.0, 1000.0], np.float32),
        budgets_usd=np.array([0.0, 1.0], np.float32),
        values=values,
    )
    assert later(of, 1.0, 1.0, lambda_per_usd=5.0, context=500.0) == pytest.approx(1.5)
    assert later(of, 1.0, 1.0, lambda_per_usd=99.0, context=9999.0) == pytest.approx(3.0)


def test_doubled_prices_and_budgets_and_half_the_lambda_change_nothing() -> None:
    of = table(
        lambdas_per_usd=np.array([0.0, 10.0], np.float32), values=np.concatenate([table().values, table().values / 2])
    )
    costlier = candidate("small", input_usd_per_mtok=2.0, output_usd_per_mtok=8.0)
    found = of.later([costlier], np.array([[3.0]]), 2.0, 2.5, 0.0)
    assert found[0, 0] == pytest.approx(later(of, 1.5, 2.0, lambda_per_usd=5.0))


def test_the_warm_cache_belongs_to_the_model_that_serves_and_an_unknown_one_is_cold() -> None:
    values = np.zeros((1, 1, 3, 2, 2), np.float32)
    values[0, 0, :, 1] = np.array([[0.1], [0.2], [0.05]])
    of = table(budgets_usd=np.array([0.0, 1.0], np.float32), values=values)
    found = of.later([candidate("large"), candidate("new"), candidate("small")], np.full((3, 1), 1.0), 1.0, 0.0, 0.0)
    assert found[:, 0] == pytest.approx([0.2, 0.05, 0.1])


def test_a_bill_beyond_the_budget_loses_the_answer_and_the_budget() -> None:
    # Two bills of mass 1/2 each would be .5; here the 8 lower levels (mass .55) cost 1, the others 3; 2 USD are left.
    bills = np.where(np.array(COST_LEVELS) < 0.55, 1.0, 3.0)[None]
    found = bill_scores(np.full((1, LEVELS), 0.8), bills, bills, np.full((1, LEVELS), 0.4), 2.0, 0.1, 0.5)
    # .55 * (.8 + .4) - .45 * .5 - .1 * (.55 * 1 + .45 * 2)
    assert found[0] == pytest.approx(0.66 - 0.225 - 0.145, abs=1e-6)


def test_caution_stretches_the_tail_from_the_median_and_nothing_that_all_bills_share() -> None:
    bills = np.linspace(1.0, 2.4, LEVELS)
    weighed = cautious_usd(bills, 2.0)
    tail = np.array(COST_LEVELS) >= 0.95
    median = float(bills[COST_LEVELS.index(0.5)])
    assert weighed[~tail] == pytest.approx(bills[~tail])
    assert weighed[tail] == pytest.approx(median + 2.0 * (bills[tail] - median))
    assert cautious_usd(bills + 7.0, 2.0) == pytest.approx(weighed + 7.0)  # a conversation that every bill reads
    assert cautious_usd(bills, 1.0) == pytest.approx(bills)


def test_a_tail_that_is_weighed_twice_is_paid_once() -> None:
    bills = np.where(np.array(COST_LEVELS) >= 0.95, 2.0, 1.0)[None]
    found = bill_scores(np.ones((1, LEVELS)), bills, cautious_usd(bills, 3.0), np.zeros((1, LEVELS)), 2.5, 0.1, 0.0)
    tail = float(COST_MASSES[np.array(COST_LEVELS) >= 0.95].sum())
    assert found[0] == pytest.approx((1.0 - tail) - 0.1 * (1.0 + tail), abs=1e-6)


def seen_with(budget_usd: float, turns: int) -> Observation:
    return observation(
        [candidate("small", 0.5), candidate("large", 1.0)],
        expected_turns=turns,
        budget_usd=2.0,
        remaining_usd=budget_usd,
    )


class Known:
    """small .3, large .9."""

    def predict(self, observation: Observation) -> np.ndarray:
        return np.array([0.3, 0.9], np.float32)

    average = predict


def test_money_that_later_turns_need_is_kept_and_on_the_last_turn_it_is_not() -> None:
    policy = Planner("p", Known(), table())
    # Two to come: large leaves 1 USD (.9 + 1.0 = 1.9), small 1.5 (.3 + 1.5 = 1.8).
    assert policy.decide(seen_with(2.0, 3), 0.5).action == 1
    # A penniless turn is worth nothing: with 1 USD small leaves .5 (.8 in all), large nothing (.9); the last: large.
    assert policy.decide(seen_with(1.0, 2), 0.5).action == 1
    costly = replace(table(), values=table().values * 2)
    assert Planner("p", Known(), costly).decide(seen_with(1.0, 2), 0.5).action == 0
    assert Planner("p", Known(), costly).decide(seen_with(1.0, 1), 0.5).action == 1


def test_of_equal_scores_the_cheaper_is_taken() -> None:
    class Alike:
        def predict(self, observation: Observation) -> np.ndarray:
            return np.array([0.9, 0.9], np.float32)

        average = predict

    assert Planner("p", Alike(), table()).decide(seen_with(2.0, 1), 0.5).action == 0


def test_the_conversation_is_the_prompt_without_the_turns_own_text() -> None:
    seen = observation([candidate("small", input_tokens=1100)])
    stats = np.zeros_like(seen.text_stats)
    stats[STAT_NAMES.index("log_chars")] = np.log1p(400) / 12.0
    assert context_tokens(structs.replace(seen, text_stats=stats)) == pytest.approx(1000.0, abs=0.1)


def test_a_table_of_before_takes_bill_and_answer_to_be_independent() -> None:
    arrays = table().arrays()
    del arrays["answers"]
    assert (ValueTable.from_arrays(table().models, arrays).answers == 1.0).all()


def test_a_bill_beyond_the_budget_costs_little_where_costly_answers_are_the_failures() -> None:
    # A budget of 1 USD holds every bill but the costliest: right below it, wrong beyond, only failures are lost.
    bills = np.full((2, LEVELS), 0.5)
    bills[1, 10:] = 1.5
    shares = np.ones((3, LEVELS), np.float32)
    shares[1, 10:] = 0.0
    of = table(answers=shares)
    answers = of.by_bill([candidate("small"), candidate("large")], np.array([0.5, 0.8]))
    assert answers[0] == pytest.approx(np.full(LEVELS, 0.5))
    assert answers[1, [0, 12]] == pytest.approx([0.8, 0.0])
    scores = bill_scores(answers, bills, bills, np.zeros((2, LEVELS)), 1.0, 0.0, 0.0)
    assert scores[1] == pytest.approx(0.8 * COST_MASSES[:10].sum())
    # Of a model that the table does not know, what is known of all.
    assert of.by_bill([candidate("new")], np.array([0.5]))[0] == pytest.approx(np.full(LEVELS, 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((1, 1, 2, 3, 3), np.float32)}, "3 models"),
        ({"budgets_usd": np.array([0.0, 2.0, 1.0], np.float32)}, "budgets_usd"),
        ({"lambdas_per_usd": np.array([1.0], np.float32)}, "lambdas_per_usd"),
        ({"list_usd": np.zeros(2, np.float32)}, "list_usd"),
        ({"values": np.zeros(3, np.float32)}, "5 axes"),
        ({"answers": np.ones((2, LEVELS), np.float32)}, "values/answers"),
    ],
)
def test_a_table_that_is_none_is_refused(changes: dict[str, Any], message: str) -> None:
    arrays = table().arrays()
    assert ValueTable.from_arrays(table().models, arrays).models == table().models
    with pytest.raises(ValueError, match=message):
        ValueTable.from_arrays(table().models, arrays | changes)
